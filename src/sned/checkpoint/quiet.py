"""Keeping transformers quiet for a while: the command line has its own bars, and errors their own words.

Imports nothing of sned.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the warnings and bars of transformers."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or say that there is none."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    return (lines[0].removesuffix(":") if lines else "no reason given")[:300]
