"""Racing: who is dropped, and how often wrongly."""

from __future__ import annotations

import pytest
import torch

from sned.score.racing import paired_margin, still_racing, student_quantile

# Quantiles of Student's t from printed tables.
TABLE = {
    (0.95, 7): 1.895,
    (0.95, 15): 1.753,
    (0.95, 30): 1.697,
    (0.99, 7): 2.998,
    (0.99, 15): 2.602,
    (0.99, 30): 2.457,
    (0.99, 120): 2.358,
    (0.999, 7): 4.785,
    (0.999, 15): 3.733,
    (0.999, 30): 3.385,
    (0.999, 120): 3.160,
}


def draws(seed: int, *means: float, units: int = 16, own_noise: float = 0.1) -> torch.Tensor:
    """Scores of candidates that share most of their noise: a hard window is hard for all."""
    generator = torch.Generator().manual_seed(seed)
    shared = 5 * torch.randn(units, generator=generator)
    own = own_noise * torch.randn(len(means), units, generator=generator)
    return torch.tensor(means)[:, None] + shared + own


@pytest.mark.parametrize(("confidence", "freedom"), TABLE)
def test_quantiles_are_those_of_the_tables(confidence: float, freedom: int) -> None:
    assert student_quantile(confidence, freedom) == pytest.approx(TABLE[confidence, freedom], rel=0.02)


def test_many_degrees_of_freedom_make_a_normal_distribution() -> None:
    assert student_quantile(0.999, 10**6) == pytest.approx(3.0902, abs=1e-3)


@pytest.mark.parametrize("freedom", [-1, 0, 1, 2])
def test_too_few_units_rule_nothing_out(freedom: int) -> None:
    assert student_quantile(0.9, freedom) == float("inf")
    values = torch.tensor([[0.0], [1e6]]) + torch.rand(2, freedom + 1) if freedom >= 0 else torch.zeros(2, 1)
    assert still_racing(values, 0.9).all()


def test_margins_are_paired() -> None:
    """What all share drops out: these two differ by one everywhere, on units that differ by far more."""
    values = draws(0, 0.0, 1.0, own_noise=0.0)
    mean, error = paired_margin(values, values[0])
    assert mean.tolist() == pytest.approx([0, 1], abs=1e-5)
    assert error.tolist() == pytest.approx([0, 0], abs=1e-5)
    by_hand = draws(1, 0.0, 0.3)
    mean, error = paired_margin(by_hand, by_hand[0])
    difference = by_hand[1] - by_hand[0]
    assert float(error[1]) == pytest.approx(float((difference - difference.mean()).square().sum() / 15 / 16) ** 0.5)
    assert float(mean[1]) == pytest.approx(float(difference.mean()))


@pytest.mark.parametrize("confidence", [0.9, 0.97])
def test_the_best_is_dropped_no_more_often_than_stated(confidence: float) -> None:
    """Two that are equally good are the hardest case: then the rate is the stated one, neither above nor below."""
    runs = 3000
    lost = sum(not bool(still_racing(draws(seed, 0.0, 0.0), confidence)[0]) for seed in range(runs))
    spread = (confidence * (1 - confidence) / runs) ** 0.5
    assert lost / runs == pytest.approx(1 - confidence, abs=4 * spread)


def test_a_best_that_is_better_is_hardly_ever_dropped() -> None:
    assert all(bool(still_racing(draws(seed, 0.0, 0.1, 0.2, 0.3), 0.99)[0]) for seed in range(500))


def test_clear_losers_are_dropped_and_close_ones_stay() -> None:
    alive = [still_racing(draws(seed, 0.0, 0.01, 1.0, 3.0), 0.999).tolist() for seed in range(200)]
    assert all(a[2:] == [False, False] for a in alive)
    assert sum(a[0] and a[1] for a in alive) > 190


def test_more_units_settle_more() -> None:
    few, many = (sum(int(still_racing(draws(i, 0.0, 0.1, units=n), 0.99).sum()) for i in range(50)) for n in (6, 200))
    assert few > 75, "of two in each of fifty races"
    assert many == 50


def test_a_candidate_that_failed_is_out() -> None:
    values = draws(0, 0.0, 0.0, 0.0)
    values[0, 3], values[2] = torch.nan, torch.inf
    assert still_racing(values, 0.999).tolist() == [False, True, False]


def test_one_stays_even_if_all_failed() -> None:
    assert still_racing(torch.full((3, 8), torch.nan), 0.999).sum() == 1


def test_what_is_seen_is_certain() -> None:
    """Of a finite number of units, those that were seen leave no doubt, and the rest as much as their share."""
    near = draws(0, 0.0, 0.01, 0.5, units=64, own_noise=0.02)
    assert still_racing(near, 0.999).tolist() == [True, True, False]
    assert still_racing(near, 0.999, seen=0.25).tolist() == [True, True, False]
    assert still_racing(near, 0.999, seen=1.0).tolist().count(True) == 1


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_the_best_of_all_units_is_seldom_ruled_out_by_some(share: float) -> None:
    """Of pairs that do not differ but by chance, at most the stated share is decided wrongly."""
    wrong, trials, confidence = 0, 2000, 0.95
    for seed in range(trials):
        values = draws(seed, 0.0, 0.0, units=64)
        best = int(values.mean(1).argmin())
        alive = still_racing(values[:, : round(64 * share)], confidence, share)
        wrong += not bool(alive[best])
    assert wrong / trials < 1.2 * (1 - confidence)
