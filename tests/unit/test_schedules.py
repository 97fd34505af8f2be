"""From evidence to shares of zeros: the formulas one number at a time, and what must hold of any schedule."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from sned.errors import NumericalError
from sned.score.schedules import outlier_shares, ramp, row_shares, tail_shares

SPARSITY, SPREAD = 0.7, 0.08
SIZES = torch.tensor([100, 300, 50, 1000, 20, 700])
EVIDENCE = torch.tensor([0.3, 2.0, 0.7, 1.1, 4.0, 0.9])

Shares = Callable[[torch.Tensor, float, float], torch.Tensor]


def by_tails(values: torch.Tensor, sparsity: float, spread: float) -> torch.Tensor:
    return tail_shares(values, SIZES[: len(values)], sparsity, spread)


every = pytest.mark.parametrize("shares", [outlier_shares, row_shares, by_tails])
centred = pytest.mark.parametrize("shares", [outlier_shares, row_shares])


def exactly(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@centred
def test_more_evidence_means_fewer_zeros(shares: Shares) -> None:
    low, high = float(EVIDENCE.min()), float(EVIDENCE.max())
    kept = [(float(x) - low) / (high - low) * 2 * SPREAD for x in EVIDENCE]
    mean = sum(kept) / len(kept)
    want = exactly(*(1 - (d - mean + 1 - SPARSITY) for d in kept))
    torch.testing.assert_close(shares(EVIDENCE, SPARSITY, SPREAD), want, atol=1e-7, rtol=0)


@centred
def test_the_mean_is_the_sparsity_and_the_span_twice_the_spread(shares: Shares) -> None:
    got = shares(EVIDENCE, SPARSITY, SPREAD)
    assert float(got.mean()) == pytest.approx(SPARSITY, abs=1e-12)
    assert float(got.max() - got.min()) == pytest.approx(2 * SPREAD, abs=1e-12)
    assert got.argsort(descending=True).tolist() == EVIDENCE.argsort().tolist()


def test_one_block_of_outliers_pays_for_itself_alone() -> None:
    ratios = torch.zeros(16)
    ratios[3] = 5.0
    got = outlier_shares(ratios, SPARSITY, SPREAD)
    assert float(got[3]) == pytest.approx(0.55)  # further than the spread from the sparsity
    assert float(got[0]) == pytest.approx(0.71)


@centred
def test_only_the_order_and_the_distances_of_evidence_matter(shares: Shares) -> None:
    want = shares(EVIDENCE, SPARSITY, SPREAD)
    torch.testing.assert_close(shares(30 * EVIDENCE - 7, SPARSITY, SPREAD), want, atol=1e-6, rtol=0)


def test_rows_that_move_take_their_share_along() -> None:
    order = torch.tensor([4, 0, 5, 2, 1, 3])
    signed = EVIDENCE - 1
    torch.testing.assert_close(
        row_shares(signed[order], SPARSITY, SPREAD), row_shares(signed, SPARSITY, SPREAD)[order], atol=1e-12, rtol=0
    )


def test_a_lighter_tail_means_more_zeros() -> None:
    low, high = float(EVIDENCE.min()), float(EVIDENCE.max())
    relative = [(float(x) - low) / (high - low) * 2 * 0.3 + 0.7 for x in EVIDENCE]
    sizes = SIZES.tolist()
    eta = SPARSITY * sum(sizes) / sum(n * r for n, r in zip(sizes, relative, strict=True))
    want = exactly(*(eta * r for r in relative))
    torch.testing.assert_close(tail_shares(EVIDENCE, SIZES, SPARSITY, 0.3), want, atol=1e-7, rtol=0)


@pytest.mark.parametrize("spread", [0.0, 0.2, 1.0])
def test_the_mean_over_weights_is_the_sparsity(spread: float) -> None:
    got = tail_shares(EVIDENCE, SIZES, SPARSITY, spread)
    assert float((got * SIZES).sum() / SIZES.sum()) == pytest.approx(SPARSITY, abs=1e-12)
    if spread:
        assert got.argsort().tolist() == EVIDENCE.argsort().tolist()
        assert float(got.min() / got.max()) == pytest.approx((1 - spread) / (1 + spread))


def test_an_infinite_exponent_counts_as_the_largest_that_is_finite() -> None:
    flat = EVIDENCE.clone()
    flat[1] = torch.inf
    largest = EVIDENCE.clone()
    largest[1] = 4.0
    got = tail_shares(flat, SIZES, SPARSITY, 0.3)
    torch.testing.assert_close(got, tail_shares(largest, SIZES, SPARSITY, 0.3))
    one = torch.tensor([torch.inf, 3.0, torch.inf])
    torch.testing.assert_close(tail_shares(one, SIZES[:3], SPARSITY, 0.3), exactly(SPARSITY, SPARSITY, SPARSITY))


@pytest.mark.parametrize("value", [0.0, 1e-9, 3.3, torch.inf])
def test_spectra_that_are_alike_are_pruned_alike(value: float) -> None:
    for spread in (0.3, 1.0):
        got = tail_shares(torch.full((6,), value), SIZES, SPARSITY, spread)
        torch.testing.assert_close(got, torch.full((6,), SPARSITY, dtype=torch.float64))


@every
@pytest.mark.parametrize("values", [[0.4] * 6, [0.0] * 6, [-2.0] * 4, [1.5], [0.1 + 0.2, 0.3, 0.3]])
def test_equal_evidence_gives_equal_shares(shares: Shares, values: list[float]) -> None:
    """Values that differ by rounding are equal."""
    got = shares(exactly(*values), SPARSITY, SPREAD)
    torch.testing.assert_close(got, torch.full((len(values),), SPARSITY, dtype=torch.float64))


@every
def test_no_spread_gives_equal_shares(shares: Shares) -> None:
    torch.testing.assert_close(shares(EVIDENCE, SPARSITY, 0.0), torch.full((6,), SPARSITY, dtype=torch.float64))


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.int64])
def test_shares_are_in_double_precision(shares: Shares, dtype: torch.dtype) -> None:
    assert shares(EVIDENCE.to(dtype), SPARSITY, SPREAD).dtype == torch.float64


@every
def test_evidence_that_is_not_finite_is_told(shares: Shares) -> None:
    broken = EVIDENCE.clone()
    broken[2] = torch.nan
    with pytest.raises(NumericalError, match="NaN or infinity"):
        shares(broken, SPARSITY, SPREAD)


@pytest.mark.parametrize("n_blocks", [2, 3, 12, 33])
def test_a_ramp_rises_evenly(n_blocks: int) -> None:
    got = ramp(n_blocks, SPARSITY, 0.15)
    want = exactly(*(SPARSITY + 0.15 * (2 * i / (n_blocks - 1) - 1) for i in range(n_blocks)))
    torch.testing.assert_close(got, want)
    assert float(got.mean()) == pytest.approx(SPARSITY, abs=1e-12)
    assert (got.diff() > 0).all()


def test_a_ramp_of_one_block_or_without_spread_is_level() -> None:
    assert ramp(1, SPARSITY, 0.15).tolist() == [SPARSITY]
    assert ramp(5, SPARSITY, 0.0).tolist() == [SPARSITY] * 5
