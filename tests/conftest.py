"""Settings that must stand before torch is imported, and what every test would else wait for."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads starve the other worker's
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test reaches for a network
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(scope="session", autouse=True)
def _nursery() -> Iterator[None]:
    """Verify checkpoints in processes that need not import torch and transformers first; those of commands still do."""
    from kit.nursery import Nursery

    from sned.checkpoint import verify

    nursery = Nursery()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verify, "start", nursery.start)
        yield
    nursery.close()
