"""Choosing layers and cuts from scores, and measuring how alike two states are."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from sned.score.select import fuse, lowest, ranked_cuts, split_evenly
from sned.score.similarity import angular, cosine_rows, cosine_triangle


def line(*scores: float) -> list[list[float]]:
    """A triangle in which the distance of a cut is the sum over its layers."""
    marks = [0.0, *itertools.accumulate(scores)]
    return [[b - a for b in marks] for a in marks]


class TestLowest:
    def test_keys_come_back_in_order(self) -> None:
        assert lowest({1: 0.3, 2: 0.1, 3: 0.2, 4: 0.05}, 3) == [2, 3, 4]

    def test_ties_go_to_the_first(self) -> None:
        assert lowest({3: 0.1, 1: 0.1, 2: 0.1}, 2) == [1, 2]

    def test_none_and_all(self) -> None:
        assert lowest({1: 0.3, 2: 0.1}, 0) == []
        assert lowest({1: 0.3, 2: 0.1}, 2) == [1, 2]


class TestRankedCuts:
    def test_the_nearest_ends_come_first(self) -> None:
        assert ranked_cuts(line(5, 3, 1, 1, 4), 2, range(1, 6)) == [(2, 4), (1, 3), (3, 5)]

    def test_cuts_stay_within_bounds(self) -> None:
        assert ranked_cuts(line(1, 1, 1, 1, 1), 2, range(1, 5)) == [(1, 3), (2, 4)]
        assert ranked_cuts(line(1, 1, 1), 3, range(4)) == [(0, 3)]

    def test_there_may_be_none(self) -> None:
        assert ranked_cuts(line(1, 1, 1), 3, range(1, 4)) == []

    def test_ties_go_to_the_first(self) -> None:
        triangle = [[0.0] * 6 for _ in range(6)]
        assert ranked_cuts(triangle, 1, range(1, 6)) == [(1, 2), (2, 3), (3, 4), (4, 5)]

    def test_what_is_taken_is_avoided_but_may_be_touched(self) -> None:
        got = ranked_cuts(line(9, 1, 2, 3, 4, 5, 9), 2, range(1, 7), taken=[(2, 4)])
        assert got == [(4, 6)]

    @pytest.mark.parametrize("n", [1, 2, 3])
    def test_the_first_is_the_best_of_all(self, n: int) -> None:
        triangle = torch.rand(9, 9, generator=torch.Generator().manual_seed(n)).tolist()
        best = min(((s, s + n) for s in range(1, 8 - n + 1)), key=lambda cut: triangle[cut[0]][cut[1]])
        assert ranked_cuts(triangle, n, range(1, 9))[0] == best


class TestFuse:
    @pytest.mark.parametrize(
        ("cuts", "fused"),
        [
            ([], []),
            ([(3, 5)], [(3, 5)]),
            ([(3, 5), (1, 2)], [(1, 2), (3, 5)]),
            ([(3, 5), (5, 6)], [(3, 6)]),
            ([(5, 6), (1, 3), (3, 5)], [(1, 6)]),
            ([(1, 4), (2, 3)], [(1, 4)]),
        ],
    )
    def test_touching_cuts_become_one(self, cuts: list[tuple[int, int]], fused: list[tuple[int, int]]) -> None:
        assert fuse(cuts) == fused

    def test_no_layer_is_lost_or_gained(self) -> None:
        for cuts in itertools.combinations([(1, 2), (2, 4), (5, 6), (6, 9), (10, 11)], 3):
            layers = {i for s, e in cuts for i in range(s, e)}
            fused = fuse(cuts)
            assert {i for s, e in fused for i in range(s, e)} == layers
            assert all(a[1] < b[0] for a, b in itertools.pairwise(fused))


@pytest.mark.parametrize(("total", "parts"), [(6, 1), (6, 2), (7, 3), (8, 5), (3, 3)])
def test_an_even_split_adds_up_and_differs_by_one_at_most(total: int, parts: int) -> None:
    sizes = split_evenly(total, parts)
    assert (sum(sizes), len(sizes)) == (total, parts)
    assert max(sizes) - min(sizes) <= 1
    assert sizes == sorted(sizes, reverse=True)


class TestSimilarity:
    def test_the_triangle_is_every_pair(self) -> None:
        states = torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(0))
        triangle = cosine_triangle(states)
        assert triangle.shape == (6, 4, 4)
        for t, a, b in itertools.product(range(6), range(4), range(4)):
            want = float(states[a, t] @ states[b, t] / states[a, t].norm() / states[b, t].norm())
            assert float(triangle[t, a, b]) == pytest.approx(want, abs=1e-6)
        assert torch.allclose(cosine_rows(states[0], states[3]), triangle[:, 0, 3], atol=1e-6)

    def test_angles_are_shares_of_half_a_turn(self) -> None:
        cosines = torch.tensor([1.0, math.sqrt(0.5), 0.0, -1.0])
        assert angular(cosines).tolist() == pytest.approx([0, 0.25, 0.5, 1], abs=1e-6)

    def test_length_does_not_matter(self) -> None:
        states = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0))
        scale = torch.tensor([1e-3, 1.0, 1e4])[:, None, None]
        assert torch.allclose(cosine_triangle(states * scale), cosine_triangle(states), atol=1e-6)

    def test_low_precision_states_lose_nothing_more(self) -> None:
        """Two states that bfloat16 tells apart by one step are not at distance zero, as bfloat16 cosines would say."""
        a = torch.ones(1, 64).bfloat16()
        b = a.clone()
        b[0, 0] = 1.0078125
        got = float(angular(cosine_rows(a, b)))
        want = math.acos(float((a.double() @ b.double().T) / a.double().norm() / b.double().norm())) / math.pi
        assert got == pytest.approx(want, rel=0.2)

    def test_zero_states_are_not_nan(self) -> None:
        zeros = torch.zeros(2, 3, 8)
        assert torch.isfinite(angular(cosine_triangle(zeros))).all()
        assert torch.isfinite(cosine_rows(zeros[0], zeros[1])).all()
