"""How much of an evaluation text was already in the calibration text, by hashes of runs of tokens.

A method that has seen the text it is measured on looks better than it is. Imports errors and numpy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sned.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sned.data.tokens import Tokens

RUN = 32
LIMIT = 0.01
# An odd multiplier with well mixed bits: the polynomial hash is exact arithmetic modulo 2**64.
_BASE = np.uint64(0x9E3779B97F4A7C15)


def overlap(a: Tokens, b: Tokens) -> float:
    """Return the share of b's runs of 32 tokens that occur anywhere in a; 0 to 1.

    Every offset counts, so the texts need not be cut into windows alike. Texts shorter than 32 tokens are
    compared in runs of the shorter one's length.
    """
    text_a, text_b = _text(a), _text(b)
    run = min(RUN, len(text_a), len(text_b))
    return float(np.isin(_run_hashes(text_b, run), _run_hashes(text_a, run)).mean())


def require_disjoint(calibration: Tokens, evaluation: Tokens, *, allow: bool = False) -> float:
    """Return the overlap of two texts, and refuse one of more than 1% unless it is allowed.

    Raises:
        DataError: the texts overlap, and `allow` is false.
    """
    share = overlap(calibration, evaluation)
    if share > LIMIT and not allow:
        raise DataError(
            f"{share:.1%} of the evaluation text ({evaluation.source}) is also in the calibration text "
            f"({calibration.source}), so the result would flatter the pruned model.",
            hint="evaluate on other text, or pass --allow-overlap and have the report say so",
        )
    return share


def _text(tokens: Tokens) -> NDArray[np.uint64]:
    ids = tokens.ids.numpy()
    # A first column that never changes is BOS: without it the windows are the running text again.
    if len(ids) > 1 and (ids[:, 0] == ids[0, 0]).all():
        ids = ids[:, 1:]
    return ids.astype(np.uint64).ravel()


def _run_hashes(text: NDArray[np.uint64], run: int) -> NDArray[np.uint64]:
    count = len(text) - run + 1
    hashes = np.zeros(count, dtype=np.uint64)
    for offset in range(run):
        hashes *= _BASE
        hashes += text[offset : offset + count]
    return hashes
