"""Budgets: exact to the weight, as good as brute force, and honest where they cannot be met."""

from __future__ import annotations

import itertools
import math
import random
import time

import pytest
import torch

from sned.errors import BudgetError, NumericalError
from sned.score import apportion as module
from sned.score.apportion import apportion, choose_zeros_of_m, project

seeds = pytest.mark.parametrize("seed", range(40))


def shares_of(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def sizes_of(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64)


def case(seed: int) -> tuple[torch.Tensor, torch.Tensor, float, float, float]:
    """Random raw shares, sizes, bounds, and a share within the bounds."""
    rng = random.Random(seed)
    k = rng.randint(1, 12)
    low, high = rng.choice([(0.0, 1.0), (0.0, 0.99), (0.2, 0.7)])
    scale = rng.choice([0.05, 1.0, 50.0])
    raw = shares_of(*(rng.gauss(0.5, scale) for _ in range(k)))
    sizes = sizes_of(*(rng.randint(1, 10 ** rng.randint(1, 8)) for _ in range(k)))
    return raw, sizes, rng.choice([low, high, rng.uniform(low, high)]), low, high


class TestProject:
    @seeds
    def test_the_budget_is_met_within_bounds_and_in_order(self, seed: int) -> None:
        raw, sizes, share, low, high = case(seed)
        got = project(raw, sizes, share, low, high)
        weights = float(sizes.sum())
        assert abs(float(got @ sizes.double()) - share * weights) <= 1e-12 * weights
        assert got.min() >= low
        assert got.max() <= high
        assert got[raw.argsort()].diff().ge(0).all()
        assert torch.allclose(project(got, sizes, share, low, high), got, rtol=0, atol=1e-12)

    @seeds
    def test_all_shares_within_bounds_move_by_one_amount(self, seed: int) -> None:
        raw, sizes, share, low, high = case(seed)
        got = project(raw, sizes, share, low, high)
        moved = (got - raw)[(got > low) & (got < high)]
        if len(moved):
            shift = float(moved.mean())
            assert moved.sub(shift).abs().max() < 1e-10
            assert torch.allclose(got, (raw + shift).clamp(low, high), rtol=0, atol=1e-10)

    def test_what_is_clipped_is_made_up_for(self) -> None:
        got = project(shares_of(0.2, 0.6, 1.4), sizes_of(1, 1, 1), 0.7)
        assert got.tolist() == pytest.approx([0.35, 0.75, 1.0], abs=1e-12)
        got = project(shares_of(0.2, 0.6), sizes_of(3, 1), 0.5)
        assert got.tolist() == pytest.approx([0.4, 0.8], abs=1e-12)

    def test_equal_shares_are_uniform(self) -> None:
        assert project(shares_of(3, 3, 3), sizes_of(5, 700, 31), 0.35).tolist() == pytest.approx([0.35] * 3, abs=1e-12)

    def test_shares_far_apart_are_still_met(self) -> None:
        got = project(shares_of(0, 1e17), sizes_of(1, 1), 0.25)
        assert got.tolist() == pytest.approx([0, 0.5], abs=1e-12)

    @pytest.mark.parametrize(("share", "nearest"), [(0.1, "0.2"), (0.95, "0.9")])
    def test_a_share_out_of_bounds_names_the_closest(self, share: float, nearest: str) -> None:
        with pytest.raises(BudgetError, match=f"{share} cannot be reached: the closest is {nearest}$"):
            project(shares_of(0.5), sizes_of(10), share, 0.2, 0.9)


class TestApportion:
    @seeds
    def test_counts_add_up_and_stay_within_one(self, seed: int) -> None:
        rng = random.Random(seed)
        raw, sizes, share, low, high = case(seed)
        shares = project(raw, sizes, share, low, high)
        quota = shares * sizes
        for total in {math.floor(float(quota.sum())), math.ceil(float(quota.sum())), round(share * int(sizes.sum()))}:
            got = apportion(shares, sizes, total)
            assert got.dtype == torch.int64
            assert int(got.sum()) == total
            assert (got - quota).abs().max() <= 1 + 1e-5
            assert got.ge(0).all()
            assert got.le(sizes).all()
        anything = rng.randint(0, int(sizes.sum()))
        got = apportion(shares, sizes, anything)
        assert (int(got.sum()), bool((got >= 0).all()), bool((got <= sizes).all())) == (anything, True, True)

    @pytest.mark.parametrize("total", range(10))
    def test_the_largest_remainders_are_rounded_up(self, total: int) -> None:
        """No counts are closer to the shares, in squares, among all that add up; checked on every total in reach."""
        sizes = sizes_of(2, 4, 3)
        shares = project(shares_of(0.3, 0.55, 0.9), sizes, total / 9)
        got = apportion(shares, sizes, total)
        quota = (shares * sizes).tolist()
        ways = (w for w in itertools.product(*(range(int(n) + 1) for n in sizes)) if sum(w) == total)
        least = min(sum((a - b) ** 2 for a, b in zip(way, quota, strict=True)) for way in ways)
        assert sum((a - b) ** 2 for a, b in zip(got.tolist(), quota, strict=True)) == pytest.approx(least, abs=1e-6)

    def test_ties_go_to_the_first(self) -> None:
        assert apportion(shares_of(0.5, 0.5, 0.5, 0.5), sizes_of(3, 3, 3, 3), 6).tolist() == [2, 2, 1, 1]
        assert apportion(shares_of(0.5, 0.5, 0.5), sizes_of(2, 2, 2), 2).tolist() == [0, 1, 1]
        assert apportion(shares_of(1.0, 0.5, 0.5), sizes_of(2, 2, 2), 5).tolist() == [2, 2, 1]

    def test_what_is_noise_does_not_matter(self) -> None:
        for share in (0.7, 0.57, 0.29, 0.1 + 0.2, 0.3 - 1e-16):
            sizes = sizes_of(100, 2000, 1000, 30000)
            want = [round(share * n) for n in sizes.tolist()]
            assert apportion(shares_of(*[share] * 4), sizes, sum(want)).tolist() == want

    @pytest.mark.parametrize(
        ("share", "size", "total", "want"),
        [
            (0.57, 100, 106, [49, 57]),
            (0.57, 100, 108, [51, 57]),
            (0.1 + 0.2, 10, 9, [6, 3]),
            (0.1 + 0.2, 10, 7, [4, 3]),
        ],
    )
    def test_noise_breaks_no_tie(self, share: float, size: int, total: int, want: list[int]) -> None:
        """Both shares are whole weights but for noise, and one weight is too many or too few: the first gives way."""
        assert share * size != round(share * size)
        assert apportion(shares_of(0.5, share), sizes_of(size, size), total).tolist() == want

    def test_equal_remainders_tie_whatever_their_noise(self) -> None:
        """All of these are a half; the later ones are one rounding above it."""
        shares = shares_of(0.5 - 1e-15, 0.5, 0.5 + 1e-15, 0.5 + 2e-15)
        assert apportion(shares, sizes_of(101, 101, 101, 101), 202).tolist() == [51, 51, 50, 50]

    def test_shares_that_miss_the_total_are_shifted(self) -> None:
        assert apportion(shares_of(0.2, 0.4), sizes_of(100, 100), 100).tolist() == [40, 60]
        assert apportion(shares_of(1.2, 0.3), sizes_of(10, 10), 15).tolist() == [10, 5]
        assert apportion(shares_of(-3, 0.5, 9), sizes_of(10, 10, 10), 0).tolist() == [0, 0, 0]
        assert apportion(shares_of(-3, 0.5, 9), sizes_of(10, 10, 10), 30).tolist() == [10, 10, 10]

    def test_many_weights_are_counted_exactly(self) -> None:
        sizes = torch.full((500,), 123_456_789)
        total = round(0.6180339887 * int(sizes.sum()))
        got = apportion(torch.full((500,), 0.6180339887, dtype=torch.float64), sizes, total)
        assert int(got.sum()) == total
        assert int(got.max() - got.min()) <= 1

    @pytest.mark.parametrize(("total", "nearest"), [(31, 30), (-1, 0)])
    def test_more_than_there_is_names_the_closest(self, total: int, nearest: int) -> None:
        with pytest.raises(BudgetError, match=f"{total} weights cannot be reached: the closest is {nearest}$"):
            apportion(shares_of(0.5, 0.5), sizes_of(10, 20), total)


def cost(zeros: list[int], raw: list[float], sizes: list[int], m: int) -> float:
    return sum(n * (z / m - r) ** 2 for z, r, n in zip(zeros, raw, sizes, strict=True))


def all_ways(raw: list[float], sizes: list[int], m: int, most: int | None = None) -> dict[int, float]:
    """The least cost of every total that can be reached."""
    least: dict[int, float] = {}
    for way in itertools.product(range((m if most is None else most) + 1), repeat=len(raw)):
        total = sum(z * n // m for z, n in zip(way, sizes, strict=True))
        least[total] = min(least.get(total, math.inf), cost(list(way), raw, sizes, m))
    return least


class TestZerosOfM:
    @pytest.mark.parametrize("units", [(6, 6, 6, 6), (3, 1, 8, 8), (12, 30, 30), (7, 5, 11, 5), (1000, 1)])
    @pytest.mark.parametrize("m", [1, 2, 4])
    def test_no_other_choice_is_better(self, units: tuple[int, ...], m: int) -> None:
        rng = random.Random(m)
        raw, sizes = [rng.gauss(0.5, 0.4) for _ in units], [unit * m for unit in units]
        for total, least in all_ways(raw, sizes, m).items():
            got = choose_zeros_of_m(shares_of(*raw), sizes_of(*sizes), m, total)
            assert got.dtype == torch.int64
            assert sum(z * n // m for z, n in zip(got.tolist(), sizes, strict=True)) == total
            assert min(got.tolist()) >= 0
            assert max(got.tolist()) <= m
            assert cost(got.tolist(), raw, sizes, m) == pytest.approx(least, rel=1e-9)

    @pytest.mark.parametrize("units", [(6, 6, 6, 6), (3, 1, 8, 8), (7, 5, 11, 5)])
    @pytest.mark.parametrize("most", [1, 3])
    def test_no_block_loses_more_than_it_may(self, units: tuple[int, ...], most: int) -> None:
        raw, sizes = [0.1, 0.2, 1.4, 1.3], [4 * unit for unit in units]
        reachable = all_ways(raw, sizes, 4, most)
        for total, least in reachable.items():
            got = choose_zeros_of_m(shares_of(*raw), sizes_of(*sizes), 4, total, most)
            assert max(got.tolist()) <= most
            assert cost(got.tolist(), raw, sizes, 4) == pytest.approx(least, rel=1e-9)
        with pytest.raises(BudgetError, match=f"the closest is {max(reachable)}$"):
            choose_zeros_of_m(shares_of(*raw), sizes_of(*sizes), 4, max(reachable) + 1, most)

    @pytest.mark.parametrize("units", [(6, 6, 6), (3, 9, 12), (7, 12, 31), (50,)])
    def test_a_total_out_of_reach_names_the_closest(self, units: tuple[int, ...]) -> None:
        m = 2
        sizes = [unit * m for unit in units]
        reachable = all_ways([0.5] * len(units), sizes, m)
        for total in set(range(-5, sum(sizes) + 5)) - reachable.keys():
            with pytest.raises(BudgetError, match="the closest is") as caught:
                choose_zeros_of_m(torch.full((len(units),), 0.5), sizes_of(*sizes), m, total)
            named = int(str(caught.value).rpartition(" ")[2])
            assert named in reachable
            assert abs(named - total) == min(abs(other - total) for other in reachable)

    def test_of_equal_blocks_the_first_lose_more(self) -> None:
        assert choose_zeros_of_m(torch.full((4,), 0.5), sizes_of(8, 8, 8, 8), 4, 18).tolist() == [3, 2, 2, 2]

    def test_patterns_that_meet_the_budget_are_kept(self) -> None:
        raw = shares_of(0.25, 0.75, 0.5, 0.5)
        sizes = sizes_of(4096, 4096, 11008, 1024)
        assert choose_zeros_of_m(raw, sizes, 8, 1024 + 3072 + 5504 + 512).tolist() == [2, 6, 4, 4]

    def test_a_large_model_takes_no_time(self) -> None:
        start = time.perf_counter()
        q, kv, wide = 4096 * 4096, 1024 * 4096, 14336 * 4096
        sizes = sizes_of(*[q, kv, kv, q, wide, wide, wide] * 32)
        raw = 0.5 + 0.2 * torch.randn(len(sizes), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        got = choose_zeros_of_m(raw, sizes, 4, int(sizes.sum()) // 2)
        assert int((got * sizes).sum()) == 4 * (int(sizes.sum()) // 2)
        assert time.perf_counter() - start < 20

    def test_sizes_with_too_little_in_common_are_told(self, monkeypatch: pytest.MonkeyPatch) -> None:
        sizes = sizes_of(4 * 101, 4 * 211)
        monkeypatch.setattr(module, "MOST_STATES", 2 * (101 * 4 + 211 + 1))
        assert choose_zeros_of_m(shares_of(1, 0), sizes, 4, 4 * 101).tolist() == [4, 0]
        monkeypatch.setattr(module, "MOST_STATES", 2 * (101 * 4 + 211 + 1) - 1)
        with pytest.raises(BudgetError, match="2 sizes have too little in common"):
            choose_zeros_of_m(shares_of(1, 0), sizes, 4, 4 * 101)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_shares_that_are_not_finite_are_told(bad: float) -> None:
    shares, sizes = shares_of(0.5, bad), sizes_of(8, 8)
    for share_out in (
        lambda: project(shares, sizes, 0.5),
        lambda: apportion(shares, sizes, 8),
        lambda: choose_zeros_of_m(shares, sizes, 4, 8),
    ):
        with pytest.raises(NumericalError, match="NaN or infinite"):
            share_out()
