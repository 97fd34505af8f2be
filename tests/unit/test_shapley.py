"""Shapley values against the sum over all coalitions, and the axioms that make them what they are."""

from __future__ import annotations

import math
from itertools import combinations, pairwise, permutations

import pytest
import torch

from sned.score.shapley import (
    Coalition,
    antithetic_orders,
    coalitions,
    efficiency_gap,
    kendall_tau,
    shapley_values,
)

Losses = dict[Coalition, float]


def subsets(n: int) -> list[Coalition]:
    return [Coalition(chosen) for size in range(n + 1) for chosen in combinations(range(n), size)]


def some_game(n: int, seed: int = 0) -> Losses:
    drawn = torch.rand(2**n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return dict(zip(subsets(n), drawn.tolist(), strict=True))


def enumerated(n: int, losses: Losses) -> list[float]:
    """The definition: what a part adds to each coalition of others, weighed by how often an order meets that one."""
    values = []
    for part in range(n):
        others = [gone for gone in subsets(n) if part not in gone]
        weights = [math.factorial(len(gone)) * math.factorial(n - len(gone) - 1) / math.factorial(n) for gone in others]
        pairs = zip(weights, others, strict=True)
        values.append(math.fsum(weight * (losses[gone | {part}] - losses[gone]) for weight, gone in pairs))
    return values


def every_order(n: int) -> list[list[int]]:
    """All orders, each followed by its reverse."""
    firsts = [order for order in permutations(range(n)) if order[0] < order[-1]]
    return [list(order) for first in firsts for order in (first, first[::-1])]


def orders_of(n: int, count: int, seed: int = 0) -> list[list[int]]:
    return antithetic_orders(n, count, torch.Generator().manual_seed(seed))


class TestOrders:
    @pytest.mark.parametrize("n", [1, 2, 7])
    def test_each_is_an_order_of_all_parts_and_every_second_one_a_reverse(self, n: int) -> None:
        orders = orders_of(n, 6)
        assert len(orders) == 6
        assert all(sorted(order) == list(range(n)) for order in orders)
        assert [order[::-1] for order in orders[0::2]] == orders[1::2]

    def test_the_seed_decides_and_more_begin_with_the_same(self) -> None:
        assert orders_of(6, 8) == orders_of(6, 8)
        assert orders_of(6, 8) != orders_of(6, 8, seed=1)
        assert orders_of(6, 20)[:8] == orders_of(6, 8)

    def test_each_coalition_is_met_once_from_none_to_all(self) -> None:
        orders = orders_of(5, 8)
        met = coalitions(orders)
        assert len(met) == len(set(met))
        assert set(met) == {Coalition(order[:k]) for order in orders for k in range(6)}
        assert {Coalition(), Coalition(range(5))} <= set(met)

    def test_neighbours_agree_on_the_first_parts_for_as_long_as_can_be(self) -> None:
        met = coalitions(every_order(4))
        flags = [[part in gone for part in range(4)] for gone in met]
        for depth in range(1, 4):
            starts = [tuple(row[:depth]) for row in flags]
            runs = 1 + sum(a != b for a, b in pairwise(starts))
            assert runs == len(set(starts))


class TestValues:
    @pytest.mark.parametrize("n", [2, 3, 4, 5])
    def test_all_orders_give_what_all_coalitions_give(self, n: int) -> None:
        losses = some_game(n)
        assert shapley_values(every_order(n), losses).values == pytest.approx(enumerated(n, losses), abs=1e-12)

    def test_sampled_values_lie_within_their_errors(self) -> None:
        losses, outside = some_game(5), 0
        for seed in range(20):
            found = shapley_values(orders_of(5, 64, seed), losses)
            assert found.errors is not None
            pairs = zip(found.values, found.errors, enumerated(5, losses), strict=True)
            outside += sum(abs(value - true) > 2 * error for value, error, true in pairs)
        assert 0 < outside < 12  # of a hundred, where five or so are due

    def test_errors_are_those_of_independent_pairs(self) -> None:
        """On a game in which order matters fully, twins cancel: an error over single orders would be far too large."""
        pull = {gone: float(len(gone) ** 2) for gone in subsets(5)}
        found = shapley_values(orders_of(5, 10), pull)
        assert found.values == pytest.approx([5.0] * 5)
        assert found.errors == pytest.approx([0.0] * 5, abs=1e-12)

    @pytest.mark.parametrize("n", [1, 2, 6])
    def test_parts_that_do_not_interact_are_known_from_one_pair(self, n: int) -> None:
        worth = torch.rand(n, generator=torch.Generator().manual_seed(3), dtype=torch.float64).tolist()
        losses = {gone: 2.0 + sum(worth[part] for part in gone) for gone in subsets(n)}
        found = shapley_values(orders_of(n, 2), losses)
        assert found.values == pytest.approx(worth)
        assert found.errors is None
        assert found.agreement is None

    @pytest.mark.parametrize("count", [2, 6, 16])
    def test_they_add_up_to_what_all_parts_cost_whatever_the_orders(self, count: int) -> None:
        losses = {gone: 1e3 * loss for gone, loss in some_game(7).items()}
        found = shapley_values(orders_of(7, count), losses)
        whole = losses[Coalition(range(7))] - losses[Coalition()]
        assert sum(found.values) == pytest.approx(whole, abs=1e-9)
        assert abs(found.gap) < 1e-9

    def test_a_part_that_never_matters_is_worth_nothing_and_twins_are_worth_the_same(self) -> None:
        """Part 3 is idle; parts 0 and 1 do each other's work, and only losing both hurts."""
        losses = {gone: 1.0 * (0 in gone and 1 in gone) + 0.3 * (2 in gone) for gone in subsets(4)}
        assert shapley_values(every_order(4), losses).values == pytest.approx([0.5, 0.5, 0.3, 0.0], abs=1e-12)

    def test_agreement_compares_the_halves(self) -> None:
        losses = some_game(6)
        orders = orders_of(6, 10)
        halves = [shapley_values(part, losses).values for part in (orders[:4], orders[6:])]
        assert shapley_values(orders, losses).agreement == kendall_tau(*halves)
        clear = {gone: float(sum(gone)) for gone in subsets(6)}
        assert shapley_values(orders, clear).agreement == 1.0

    def test_the_gap_shows_what_does_not_add_up(self) -> None:
        assert efficiency_gap([0.1, 0.2, 0.4], 1.0, 1.7) == pytest.approx(0, abs=1e-12)
        assert efficiency_gap([0.1, 0.2, 0.4], 1.0, 1.6) == pytest.approx(0.1)


class TestTau:
    def test_it_counts_pairs(self) -> None:
        generator = torch.Generator().manual_seed(2)
        for _ in range(20):
            a, b = (torch.randint(0, 5, (7,), generator=generator).tolist() for _ in range(2))
            pairs = list(combinations(range(7), 2))
            alike = sum((a[i] - a[j]) * (b[i] - b[j]) > 0 for i, j in pairs)
            unlike = sum((a[i] - a[j]) * (b[i] - b[j]) < 0 for i, j in pairs)
            ranked = [sum(scores[i] != scores[j] for i, j in pairs) for scores in (a, b)]
            assert kendall_tau(a, b) == pytest.approx((alike - unlike) / math.sqrt(ranked[0] * ranked[1]))

    def test_its_ends(self) -> None:
        assert kendall_tau([1, 2, 3], [10, 20, 40]) == pytest.approx(1)
        assert kendall_tau([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
        assert kendall_tau([0, 0, 5], [1, 1, 9]) == pytest.approx(1)

    @pytest.mark.parametrize(("a", "b"), [([1, 1], [1, 2]), ([1, 2], [3, 3]), ([1], [2]), ([], [])])
    def test_what_ranks_nothing_agrees_with_nothing(self, a: list[float], b: list[float]) -> None:
        assert kendall_tau(a, b) is None
