"""Racing: who is dropped, and how often wrongly."""

from __future__ import annotations

import pytest
import torch

from sned.score.racing import Estimate, Fall, carry_over, most_fallen, still_racing, student_quantile

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


def racing(values: torch.Tensor, confidence: float, total: int = 10**9) -> list[bool]:
    """Who may still win, of candidates that were all measured on the same of very many units."""
    return still_racing([Estimate(row, len(row)) for row in values], confidence, total)


@pytest.mark.parametrize(("confidence", "freedom"), TABLE)
def test_quantiles_are_those_of_the_tables(confidence: float, freedom: int) -> None:
    assert student_quantile(confidence, freedom) == pytest.approx(TABLE[confidence, freedom], rel=0.02)


def test_many_degrees_of_freedom_make_a_normal_distribution() -> None:
    assert student_quantile(0.999, 10**6) == pytest.approx(3.0902, abs=1e-3)


@pytest.mark.parametrize("units", [1, 2, 3])
def test_too_few_units_rule_nothing_out(units: int) -> None:
    assert student_quantile(0.9, units - 1) == float("inf")
    assert racing(torch.tensor([[0.0], [1e6]]) + torch.rand(2, units), 0.9) == [True, True]


def test_comparisons_are_paired() -> None:
    """What all share drops out: these two differ by one everywhere, on units that differ by far more."""
    assert racing(draws(0, 0.0, 1.0, own_noise=0.0), 0.999) == [True, False]
    shuffled = draws(0, 0.0, 1.0, own_noise=0.0)
    shuffled[1] = shuffled[1].flip(0)
    assert racing(shuffled, 0.999) == [True, True]


@pytest.mark.parametrize("confidence", [0.9, 0.97])
def test_the_best_is_dropped_no_more_often_than_stated(confidence: float) -> None:
    """Two that are equally good are the hardest case: then the rate is the stated one, neither above nor below."""
    runs = 3000
    lost = sum(not racing(draws(seed, 0.0, 0.0), confidence)[0] for seed in range(runs))
    spread = (confidence * (1 - confidence) / runs) ** 0.5
    assert lost / runs == pytest.approx(1 - confidence, abs=4 * spread)


def test_a_best_that_is_better_is_hardly_ever_dropped() -> None:
    assert all(racing(draws(seed, 0.0, 0.1, 0.2, 0.3), 0.99)[0] for seed in range(500))


def test_clear_losers_are_dropped_and_close_ones_stay() -> None:
    alive = [racing(draws(seed, 0.0, 0.01, 1.0, 3.0), 0.999) for seed in range(200)]
    assert all(a[2:] == [False, False] for a in alive)
    assert sum(a[0] and a[1] for a in alive) > 190


def test_more_units_settle_more() -> None:
    few, many = (sum(sum(racing(draws(i, 0.0, 0.1, units=n), 0.99)) for i in range(50)) for n in (6, 200))
    assert few > 75, "of two in each of fifty races"
    assert many == 50


def test_a_candidate_that_failed_is_out() -> None:
    values = draws(0, 0.0, 0.0, 0.0)
    values[0, 3], values[2] = torch.nan, torch.inf
    assert racing(values, 0.999) == [False, True, False]


def test_one_stays_even_if_all_failed() -> None:
    assert sum(racing(torch.full((3, 8), torch.nan), 0.999)) == 1


def test_what_is_seen_is_certain() -> None:
    """Of a finite number of units, those that were seen leave no doubt, and the rest as much as their share."""
    near = draws(0, 0.0, 0.01, 0.5, units=64, own_noise=0.02)
    assert racing(near, 0.999) == [True, True, False]
    assert racing(near, 0.999, total=256) == [True, True, False]
    assert racing(near, 0.999, total=64).count(True) == 1


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_the_best_of_all_units_is_seldom_ruled_out_by_some(share: float) -> None:
    """Of pairs that do not differ but by chance, at most the stated share is decided wrongly."""
    wrong, trials, confidence = 0, 2000, 0.95
    for seed in range(trials):
        values = draws(seed, 0.0, 0.0, units=64)
        best = int(values.mean(1).argmin())
        wrong += not racing(values[:, : round(64 * share)], confidence, total=64)[best]
    assert wrong / trials < 1.2 * (1 - confidence)


class TestCarriedOver:
    """Scores of an earlier step stand in where a candidate was not measured in this one."""

    KNOWN = draws(3, 0.0, units=64, own_noise=1.0)[0]

    def now(self, change: float, noise: float = 0.0, seed: int = 0) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return self.KNOWN + change + noise * torch.randn(64, generator=generator)

    def test_what_changed_by_as_much_everywhere_is_known_from_few(self) -> None:
        estimate = carry_over(self.KNOWN, self.now(0.5)[:4])
        assert estimate.values.tolist() == pytest.approx(self.now(0.5).tolist(), abs=1e-5)
        assert estimate.error == pytest.approx(0, abs=1e-6)
        assert estimate.doubt(0.99, 64) == pytest.approx(0, abs=1e-5)

    def test_its_error_is_the_one_that_it_makes(self) -> None:
        runs, n = 2000, 16
        off, stated = list[float](), list[float]()
        for seed in range(runs):
            now = self.now(0.5, noise=0.3, seed=seed)
            estimate = carry_over(self.KNOWN, now[:n])
            off.append((estimate.mean - float(now.mean())) ** 2)
            stated.append(estimate.error**2)
        assert sum(off) == pytest.approx(sum(stated), rel=0.1)
        plain = float(self.KNOWN.var()) / n * (1 - n / 64)
        assert sum(stated) / runs < plain / 50, "of the variance without what is known"

    def test_as_many_units_as_before_need_nothing_of_before(self) -> None:
        estimate = carry_over(self.KNOWN[:8], self.now(1.0)[:8])
        assert (estimate.values.tolist(), estimate.error) == (self.now(1.0)[:8].tolist(), 0.0)

    def test_two_are_told_apart_by_far_fewer_units(self) -> None:
        """They differ by a tenth of how their scores vary: known before, four units tell; unknown, they do not."""
        other = draws(4, 0.0, units=64, own_noise=1.0)[0]
        other += self.KNOWN.mean() - other.mean() + 0.1
        before, after = (self.KNOWN, other), (self.now(0.0, 0.01, 1)[:4], other[:4] + 0.0)
        carried = [carry_over(*pair) for pair in zip(before, after, strict=True)]
        assert still_racing(carried, 0.95, 64) == [True, False]
        assert still_racing([Estimate(now, 4) for now in after], 0.95, 64) == [True, True]

    def test_without_a_look_it_may_have_fallen(self) -> None:
        """Out, unless it may have become cheaper than the leader."""
        leader, higher = Estimate(self.KNOWN, 64), self.KNOWN + 1
        assert still_racing([leader, Estimate(higher, 0, fall=0.9)], 0.99, 64) == [True, False]
        assert still_racing([leader, Estimate(higher, 0, fall=1.1)], 0.99, 64) == [True, True]

    def test_the_leader_is_one_that_was_measured(self) -> None:
        """What was cheapest may have become dear, so that it rules nobody out before it is looked at."""
        stale, fresh = Estimate(self.KNOWN - 5, 0, fall=0.0), Estimate(self.KNOWN, 64)
        assert still_racing([stale, fresh], 0.99, 64) == [True, True]


def test_until_falls_are_known_half_is_allowed_for_and_then_what_was_seen() -> None:
    assert most_fallen(-0.4, 3, [Fall(1, 0.1)] * 19, 0.95) == pytest.approx(0.2)
    falls = [Fall(1, 0.01 * i) for i in range(101)]
    assert most_fallen(5.0, 3, falls, 0.9) == pytest.approx(3 * 0.95), "no more than was seen"
    assert most_fallen(0.1, 3, falls, 0.9) == pytest.approx(3 * 0.095), "no greater share than was seen"
    assert most_fallen(0.4, 3, [Fall(1, -0.1)] * 20, 0.95) == 0, "all became dearer"
