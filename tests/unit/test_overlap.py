"""Evaluation text that the calibration has already seen is found, however it is cut."""

from __future__ import annotations

import time

import pytest
import torch

from sned.data.overlap import overlap, require_disjoint
from sned.data.tokens import Tokens
from sned.errors import DataError


def text(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(1_000, (count,), generator=torch.Generator().manual_seed(seed))


def windows(ids: torch.Tensor, length: int, bos: int | None = None) -> Tokens:
    rows = ids[: len(ids) // length * length].view(-1, length)
    if bos is not None:
        rows = torch.cat([torch.full((len(rows), 1), bos), rows], dim=1)
    return Tokens(rows, "text")


def test_disjoint_text_has_none() -> None:
    assert require_disjoint(windows(text(8_192), 128), windows(text(8_192, seed=1), 128)) == 0.0


@pytest.mark.parametrize("bos", [None, 0])
@pytest.mark.parametrize("shift", [0, 77])
def test_a_planted_quarter_is_found_at_any_offset(bos: int | None, shift: int) -> None:
    a, b = text(16_384), text(8_192, seed=1)
    b[1_000 + shift : 1_000 + shift + 2_048] = a[3_000:5_048]
    share = overlap(windows(a, 256, bos), windows(b, 128, bos))
    assert share == pytest.approx(0.25, abs=0.01)


def test_text_within_itself() -> None:
    a = text(4_096)
    assert overlap(windows(a, 128), windows(a, 128)) == 1.0
    assert overlap(windows(a, 128), windows(a, 64)) == 1.0
    assert overlap(windows(a, 128, bos=0), windows(a[5:], 64, bos=0)) == 1.0
    assert overlap(windows(a[:20], 20), windows(a[:8], 8)) == 1.0


def test_short_common_phrases_are_no_overlap() -> None:
    a, b = text(4_096), text(4_096, seed=1)
    for start in range(0, 4_096, 64):
        b[start : start + 31] = a[start : start + 31]
    assert overlap(windows(a, 128), windows(b, 128)) == 0.0


def test_repeated_tokens_are_told_from_their_number() -> None:
    a, b = torch.zeros(128, dtype=torch.int64), torch.ones(128, dtype=torch.int64)
    assert overlap(windows(a, 64), windows(b, 64)) == 0.0


def test_overlapping_text_is_refused_unless_allowed() -> None:
    a, b = text(8_192), text(8_192, seed=1)
    b[:512] = a[:512]
    calibration, evaluation = windows(a, 128), windows(b, 128)
    with pytest.raises(DataError, match=r"5\.9% of the evaluation text") as caught:
        require_disjoint(calibration, evaluation)
    assert "--allow-overlap" in (caught.value.hint or "")
    assert require_disjoint(calibration, evaluation, allow=True) == pytest.approx(0.059, abs=0.001)
    b[64:512] = text(448, seed=2)
    assert 0 < require_disjoint(calibration, windows(b, 128)) < 0.01


def test_a_hundred_thousand_tokens_take_no_time() -> None:
    a, b = windows(text(100_000), 1_000), windows(text(100_000, seed=1), 1_000)
    start = time.perf_counter()
    overlap(a, b)
    assert time.perf_counter() - start < 2.0
