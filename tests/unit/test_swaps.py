"""Swapping weights of a mask: against the rule written out, and on rows whose answer is known."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from sned.errors import NumericalError
from sned.score.masks import n_of_m, rows_lowest
from sned.score.swaps import swap

OUT, IN = 24, 64


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


WEIGHT = draw(0, OUT, IN)
MEAN = draw(1, IN)
VARIANCE = draw(2, IN).square() + 0.1
NORM = (MEAN.square() + VARIANCE).sqrt()
STATISTICS = MEAN, VARIANCE, NORM
COUNTS = 10 + torch.arange(OUT) * 2
MASK = rows_lowest(WEIGHT.abs() * NORM, COUNTS)
PATTERN = n_of_m(WEIGHT.abs() * NORM, 2, 4)
either = pytest.mark.parametrize(("mask", "group"), [(MASK, None), (PATTERN, 4)], ids=["rows", "runs"])


def off(mask: torch.Tensor, weight: torch.Tensor = WEIGHT, mean: torch.Tensor = MEAN) -> torch.Tensor:
    """The expected change of every row's output, up to its sign."""
    return (weight * mean * mask).sum(1)


def written_out(
    row: int, start: torch.Tensor, cycles: int, tolerance: float, power: float, group: int | None
) -> torch.Tensor:
    """The rule for one row, weight by weight."""
    shift, wanda = (WEIGHT[row] * MEAN).tolist(), (WEIGHT[row].abs() * NORM).tolist()
    gain = (WEIGHT[row] * MEAN / VARIANCE**power).tolist()
    gone = {j for j in range(IN) if start[row, j]}
    first = rest = sum(shift[j] for j in gone)
    lost, kept = set(gone), set(range(IN)) - gone
    for _ in range(cycles):
        if abs(rest) <= tolerance * abs(first):
            break
        towards = 1 if rest > 0 else -1
        swaps = [
            (-towards * gain[g], wanda[p], g, p)
            for g in lost
            for p in kept
            if towards * shift[g] > 0
            and (towards * shift[p] < 0 if group is None else g // group == p // group)
            and abs(rest - shift[g] + shift[p]) < abs(rest)
        ]
        if not swaps:
            break
        _, _, g, p = min(swaps)
        risk = [float(WEIGHT[row, j] ** 2 * VARIANCE[j]) for j in (g, p)]
        if (rest - shift[g] + shift[p]) ** 2 - risk[0] + risk[1] >= rest**2:
            break
        lost.remove(g)
        kept.remove(p)
        gone = gone - {g} | {p}
        rest += shift[p] - shift[g]
    return torch.tensor([j in gone for j in range(IN)])


@either
@pytest.mark.parametrize("cycles", [1, 2, 50])
@pytest.mark.parametrize(("tolerance", "power"), [(0.1, 1.0), (0.0, 0.5), (0.4, 0.0)])
def test_it_is_the_rule(mask: torch.Tensor, group: int | None, cycles: int, tolerance: float, power: float) -> None:
    got = swap(WEIGHT, mask, *STATISTICS, cycles=cycles, tolerance=tolerance, power=power, group=group)
    want = [written_out(row, mask, cycles, tolerance, power, group) for row in range(OUT)]
    assert torch.equal(got, torch.stack(want))


@either
def test_rows_and_runs_keep_their_number(mask: torch.Tensor, group: int | None) -> None:
    got = swap(WEIGHT, mask, *STATISTICS, group=group, tolerance=0.0)
    assert not torch.equal(got, mask)
    assert torch.equal(got.sum(1), mask.sum(1))
    if group:
        assert (got.view(OUT, -1, group).sum(2) == 2).all()


@either
def test_every_swap_brings_the_output_nearer(mask: torch.Tensor, group: int | None) -> None:
    """Where inputs hardly vary, next to nothing is left of the change."""
    before, last = off(mask).abs(), mask
    for cycles in range(1, 12):
        now = swap(WEIGHT, mask, MEAN, VARIANCE / 10_000, NORM, cycles=cycles, tolerance=0.0, group=group)
        moved = (now != last).sum(1)
        assert set(moved.tolist()) <= {0, 2}
        after = off(now).abs()
        assert torch.equal(after < before, moved > 0)
        before, last = after, now
    assert before.mean() < 0.1 * off(mask).abs().mean()


def expected_square(mask: torch.Tensor) -> torch.Tensor:
    """The mean square of every row's change, `[rows]`, if inputs do not depend on each other."""
    return off(mask).square() + (WEIGHT.square() * VARIANCE * mask).sum(1)


@either
def test_every_swap_makes_the_expected_change_smaller(mask: torch.Tensor, group: int | None) -> None:
    """Not only its mean: a weight on inputs that vary is not given up for one that shifts the mean."""
    last = mask
    for cycles in range(1, 12):
        now = swap(WEIGHT, mask, *STATISTICS, cycles=cycles, tolerance=0.0, group=group)
        assert torch.equal(expected_square(now) < expected_square(last), (now != last).any(1))
        last = now
    assert not torch.equal(last, mask)


def test_what_makes_up_for_the_mean_but_varies_more_stays() -> None:
    # off by 1: putting back the 1 and taking the -0.5 leaves less of a mean; what the last one varies is worse
    mean, mask = torch.tensor([1.0, -0.5]), torch.tensor([[True, False]])
    norm, steady, wild = torch.ones(2), torch.ones(2), torch.tensor([1.0, 3.0])
    assert swap(torch.ones(1, 2), mask, mean, steady, norm, tolerance=0.0).tolist() == [[False, True]]
    assert swap(torch.ones(1, 2), mask, mean, wild, norm, tolerance=0.0).tolist() == [[True, False]]


@either
def test_a_weight_is_swapped_once(mask: torch.Tensor, group: int | None) -> None:
    masks = [swap(WEIGHT, mask, *STATISTICS, cycles=n, tolerance=0.0, group=group) for n in range(20)]
    changes = torch.stack([now != last for last, now in pairwise(masks)])
    assert changes.sum(0).max() == 1


def test_rows_stop_at_a_share_of_their_own_change() -> None:
    scale = torch.logspace(-6, 6, OUT).double()[:, None]
    got = swap(WEIGHT * scale, MASK, *STATISTICS, tolerance=0.3)
    assert torch.equal(got, swap(WEIGHT, MASK, *STATISTICS, tolerance=0.3))
    fine = off(swap(WEIGHT, MASK, *STATISTICS, tolerance=0.0)).abs()
    assert (off(got).abs() >= fine).all()
    assert torch.equal(swap(WEIGHT, MASK, *STATISTICS, tolerance=1.0), MASK)


@either
def test_nothing_to_do_changes_nothing(mask: torch.Tensor, group: int | None) -> None:
    assert torch.equal(swap(WEIGHT, mask, *STATISTICS, cycles=0, group=group), mask)
    assert torch.equal(swap(WEIGHT, mask, torch.zeros(IN), VARIANCE, NORM, group=group), mask)
    for extreme in (torch.zeros_like(mask), torch.ones_like(mask)):
        assert torch.equal(swap(WEIGHT, extreme, *STATISTICS, group=group), extreme)


@either
def test_the_sign_and_the_scale_of_the_inputs_do_not_matter(mask: torch.Tensor, group: int | None) -> None:
    want = swap(WEIGHT, mask, *STATISTICS, group=group)
    assert torch.equal(swap(WEIGHT, mask, -MEAN, VARIANCE, NORM, group=group), want)
    assert torch.equal(swap(-WEIGHT, mask, *STATISTICS, group=group), want)
    assert torch.equal(swap(WEIGHT, mask, 64 * MEAN, 64**2 * VARIANCE, 8 * NORM, group=group), want)


def known(mean: list[float], gone: list[int], variance: float = 1.0, **options: int) -> list[int]:
    """Which weights are gone from one row of ones afterwards; the score of weight j is j + 1."""
    mask = torch.zeros(1, len(mean), dtype=torch.bool)
    mask[0, gone] = True
    norm = torch.arange(1.0, len(mean) + 1)
    spread = torch.full_like(norm, variance)
    got = swap(torch.ones_like(norm)[None], mask, torch.tensor(mean), spread, norm, tolerance=0.0, **options)
    return got[0].nonzero()[:, 0].tolist()


def test_it_grows_the_largest_and_removes_the_cheapest_of_the_other_sign() -> None:
    assert known([3.0, 1.0, 0.5, -1.0, -2.0], [0, 1], cycles=1) == [1, 3]
    assert known([1.0, 3.0, 0.5, -1.0, -2.0], [0, 1], cycles=1, variance=0.0) == [0, 3]
    assert known([-3.0, -1.0, -0.5, 1.0, 2.0], [0, 1], cycles=1) == [1, 3]


def test_what_overshoots_is_passed_over() -> None:
    # off by 2: putting back 5 is too much, 1 with -3.5 as well, 1 with -2 is not
    assert known([5.0, -4.0, 1.0, -3.5, -2.0], [0, 1, 2]) == [0, 1, 4]
    assert known([5.0, -4.0, 1.0, -3.5, -3.0], [0, 1, 2]) == [0, 1, 2]


def test_in_a_run_what_goes_may_have_either_sign() -> None:
    assert known([3.0, 1.0, -1.0, -1.0], [0, 2], cycles=1, group=2) == [1, 2]
    assert known([1.0, 3.0, -1.0, -1.0], [0, 2], group=2) == [0, 2]


def test_inputs_that_never_vary_or_never_come_are_no_trouble() -> None:
    mean, variance, norm = MEAN.clone(), VARIANCE.clone(), NORM.clone()
    variance[:8] = 0.0
    mean[4:12] = norm[4:12] = 0.0
    mask = rows_lowest(WEIGHT.abs() * norm, COUNTS)
    got = swap(WEIGHT, mask, mean, variance, norm, tolerance=0.0)
    assert mask[:, 4:12].all()
    assert got[:, 4:12].all()
    assert torch.equal(got.sum(1), COUNTS)
    assert (off(got, mean=mean).abs() <= off(mask, mean=mean).abs()).all()
    assert torch.equal(swap(WEIGHT, mask, mean, torch.zeros(IN), norm).sum(1), COUNTS)


def test_zeros_never_come_back() -> None:
    weight = WEIGHT.masked_fill(MASK & (draw(3, OUT, IN) > 0), 0.0)
    got = swap(weight, MASK, *STATISTICS, tolerance=0.0)
    assert got[MASK & (weight == 0)].all()
    assert not torch.equal(got, MASK)


@either
def test_parameters_of_any_precision_will_do(mask: torch.Tensor, group: int | None) -> None:
    weight = torch.nn.Parameter(WEIGHT.bfloat16())
    got = swap(weight, mask, *STATISTICS, group=group)
    assert got.dtype == torch.bool
    assert torch.equal(got, swap(WEIGHT.bfloat16().float(), mask, *STATISTICS, group=group))
    assert (off(got, weight.double()).abs() <= off(mask, weight.double()).abs() + 1e-5).all()


@pytest.mark.parametrize("broken", range(4))
def test_what_is_not_finite_is_told(broken: int) -> None:
    tensors = [WEIGHT.clone(), *(values.clone() for values in STATISTICS)]
    tensors[broken].view(-1)[5] = torch.nan
    weight, *statistics = tensors
    with pytest.raises(NumericalError, match="NaN or infinite"):
        swap(weight, MASK, *statistics)
