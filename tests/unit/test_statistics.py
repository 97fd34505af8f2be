"""Statistics: sums over activations against naive loops, and stopped and continued anywhere."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import torch

from sned.runtime.statistics import CutMoments, Distances, Influence, Statistic, Updates, cut_problem
from sned.score.linear_map import Moments
from sned.score.updates import Update

if TYPE_CHECKING:
    from collections.abc import Callable

D = 8
GENERATOR = torch.Generator().manual_seed(0)
STREAM = [torch.randn(5, 12, D, generator=GENERATOR) for _ in range(4)]
"""The stream at four boundaries: 5 windows of 12 tokens."""

MAKERS: dict[str, Callable[[], Statistic[Any]]] = {
    "distances": lambda: Distances([0, 1, 2, 3]),
    "distances, last token": lambda: Distances([0, 1, 2, 3], "last"),
    "cut": lambda: CutMoments(0, 1, 3, D),
    "cut, stand-alone": lambda: CutMoments(0, 1, 3, D, standalone=True),
    "influence": lambda: Influence(1, 2),
    "influence without attention": lambda: Influence(1, 2, has_attn=False),
    "updates": lambda: Updates(1, 3, D),
    "updates with moments": lambda: Updates(1, 3, D, moments=True),
}
every_statistic = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


def feed(statistic: Statistic[Any], windows: slice) -> None:
    statistic.update(*(x[windows] for x in STREAM[: len(statistic.sites)]))


def angle(a: torch.Tensor, b: torch.Tensor) -> float:
    cosine = float(a.double() @ b.double() / (a.double().norm() * b.double().norm()))
    return math.acos(max(-1.0, min(1.0, cosine))) / math.pi


def pack(result: Any) -> list[torch.Tensor]:
    """Every number of a result, as tensors."""
    if isinstance(result, Moments):
        return [result.gram, result.cross, torch.tensor([result.target_square, result.tokens])]
    if isinstance(result, Update):
        sums = [result.added, result.before, result.after, result.square, result.product]
        moments = [] if result.moments is None else pack(result.moments)
        return [*sums, torch.tensor([result.added_square, result.weight, result.tokens]), *moments]
    flat = [value for part in result.values() for value in (part.values() if isinstance(part, dict) else [part])]
    return [torch.tensor(value, dtype=torch.float64) for value in flat]


class TestSums:
    @every_statistic
    @pytest.mark.parametrize("size", [1, 2, 3])
    def test_batches_add_up(self, make: Callable[[], Statistic[Any]], size: int) -> None:
        whole, parts = make(), make()
        feed(whole, slice(None))
        for at in range(0, 5, size):
            feed(parts, slice(at, at + size))
        for got, want in zip(pack(parts.result()), pack(whole.result()), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5, equal_nan=True)

    @every_statistic
    def test_the_sums_are_the_whole_state(self, make: Callable[[], Statistic[Any]]) -> None:
        straight, first, second = make(), make(), make()
        for window in range(5):
            feed(straight, slice(window, window + 1))
        for window in range(3):
            feed(first, slice(window, window + 1))
        second.sums = {name: tensor.clone() for name, tensor in first.sums.items()}
        for window in range(3, 5):
            feed(second, slice(window, window + 1))
        for got, want in zip(pack(second.result()), pack(straight.result()), strict=True):
            assert torch.equal(got.nan_to_num(-1), want.nan_to_num(-1))

    def test_keys_tell_all_statistics_apart(self) -> None:
        makers = [
            *MAKERS.values(),
            lambda: Distances([0, 1, 3]),
            lambda: CutMoments(0, 1, 2, D),
            lambda: CutMoments(0, 2, 3, D),
            lambda: Influence(2, 3),
            lambda: Influence(1, 2, has_mlp=False),
            lambda: Updates(1, 2, D),
            lambda: Updates(2, 3, D),
        ]
        assert len({str(make().key) for make in makers}) == len(makers)

    @every_statistic
    def test_instances_share_nothing(self, make: Callable[[], Statistic[Any]]) -> None:
        used, fresh = make(), make()
        feed(used, slice(None))
        assert all(not tensor.any() for tensor in fresh.sums.values())
        tensors = list(used.sums.values())
        assert len({tensor.data_ptr() for tensor in tensors}) == len(tensors)


class TestDistances:
    @pytest.mark.parametrize("positions", ["all", "last"])
    def test_a_naive_double_loop(self, positions: Any) -> None:
        statistic = Distances([0, 1, 2, 3], positions)
        feed(statistic, slice(None))
        tokens = range(12) if positions == "all" else [11]
        for s in range(4):
            for e in range(4):
                pairs = [(STREAM[s][w, t], STREAM[e][w, t]) for w in range(5) for t in tokens]
                angles = [angle(a, b) for a, b in pairs]
                cosines = [math.cos(math.pi * x) for x in angles]
                n, got = len(pairs), statistic.result()
                assert got["angular"][s][e] == pytest.approx(sum(angles) / n, abs=2e-4)
                assert got["cosine"][s][e] == pytest.approx(1 - sum(cosines) / n, abs=1e-5)

    def test_no_token_is_lost_in_long_batches(self) -> None:
        """Pieces of the inner loop need not divide the number of tokens."""
        stream = [torch.randn(1, 1100, D, generator=GENERATOR) for _ in range(2)]
        whole, parts = Distances([0, 1]), Distances([0, 1])
        whole.update(*stream)
        for t in range(0, 1100, 100):
            parts.update(*(x[:, t : t + 100] for x in stream))
        assert whole.result()["angular"][0][1] == pytest.approx(parts.result()["angular"][0][1], rel=1e-6)
        assert float(whole.sums["tokens"]) == 1100

    def test_equal_states_are_at_distance_zero(self) -> None:
        statistic = Distances([0, 1])
        statistic.update(STREAM[0], STREAM[0].clone())
        got = statistic.result()
        assert got["angular"][0][1] == pytest.approx(0, abs=5e-4)
        assert got["cosine"][0][1] == pytest.approx(0, abs=1e-6)

    def test_positive_scaling_does_not_matter(self) -> None:
        plain, scaled = Distances([0, 1, 2, 3]), Distances([0, 1, 2, 3])
        feed(plain, slice(None))
        scaled.update(*(x * factor for x, factor in zip(STREAM, (1.0, 1e3, 1e-3, 7.0), strict=True)))
        torch.testing.assert_close(scaled.sums["cosine"], plain.sums["cosine"], rtol=1e-5, atol=1e-4)
        # an angle of nearly nothing is known to the root of a rounding error
        torch.testing.assert_close(scaled.sums["angular"] / 60, plain.sums["angular"] / 60, rtol=1e-5, atol=5e-4)

    def test_opposite_states_are_half_a_turn_apart(self) -> None:
        statistic = Distances([0, 1])
        statistic.update(STREAM[0], -STREAM[0])
        assert statistic.result()["angular"][0][1] == pytest.approx(1, abs=5e-4)
        assert statistic.result()["cosine"][0][1] == pytest.approx(2, abs=1e-6)

    def test_it_lies_within_bounds_and_is_symmetric(self) -> None:
        statistic = Distances([0, 1, 2, 3])
        feed(statistic, slice(None))
        angular = torch.tensor(statistic.result()["angular"])
        assert ((angular >= 0) & (angular <= 1)).all()
        torch.testing.assert_close(angular, angular.T)

    def test_boundaries_of_layers_that_are_gone_have_no_number(self) -> None:
        statistic = Distances([0, 2, 3])
        statistic.update(*STREAM[:3])
        angular = statistic.result()["angular"]
        assert math.isnan(angular[0][1])
        assert math.isnan(angular[1][2])
        assert angular[0][2] == pytest.approx(angle(*(x[0, 0] for x in STREAM[:2])), abs=0.5)

    def test_low_precision_states_are_measured_in_full(self) -> None:
        low, full = Distances([0, 1]), Distances([0, 1])
        states = [x.bfloat16() for x in STREAM[:2]]
        low.update(*states)
        full.update(*(x.float() for x in states))
        assert torch.equal(low.sums["angular"], full.sums["angular"])


class TestCut:
    def test_the_problem_of_a_fold(self) -> None:
        added, start, end = STREAM[:3]
        states, target = cut_problem((added, start, end), standalone=False)
        flat = [x.flatten(0, 1) for x in (added, start, end)]
        assert torch.equal(states, flat[0])
        torch.testing.assert_close(flat[1] - flat[0] + target, flat[2])

    def test_the_problem_of_a_layer_of_its_own(self) -> None:
        states, target = cut_problem((STREAM[0], STREAM[1]), standalone=True)
        assert states.shape == target.shape == (5 * 11, D)
        assert torch.equal(target[0], STREAM[1][0, 1])

    def test_moments_are_the_products(self) -> None:
        statistic = CutMoments(0, 1, 3, D)
        feed(statistic, slice(None))
        moments = statistic.result()
        states, target = (x.double() for x in cut_problem(tuple(STREAM[:3]), standalone=False))
        torch.testing.assert_close(moments.gram, states.T @ states, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(moments.cross, states.T @ target, rtol=1e-5, atol=1e-4)
        assert moments.target_square == pytest.approx(float(target.square().sum()), rel=1e-6)
        assert moments.tokens == 60
        assert moments.gram.dtype == torch.float64

    def test_few_large_sums_do_not_swallow_small_ones(self) -> None:
        statistic = CutMoments(0, 1, 3, D)
        statistic.update(*(1e4 * x for x in STREAM[:3]))
        before = statistic.result().gram.clone()
        statistic.update(*(1e-2 * x for x in STREAM[:3]))
        gained = statistic.result().gram - before
        small = (1e-2 * STREAM[0]).flatten(0, 1).double()
        torch.testing.assert_close(gained, small.T @ small, rtol=1e-3, atol=1e-6)


class TestInfluence:
    def test_a_naive_loop(self) -> None:
        before, after, attn, mlp = STREAM
        statistic = Influence(1, 2)
        statistic.update(before, after, attn, mlp)
        got = statistic.result()
        tokens = [(w, t) for w in range(5) for t in range(12)]

        def mean(measure: Callable[[torch.Tensor, torch.Tensor], float], a: torch.Tensor, b: torch.Tensor) -> float:
            return sum(measure(a[at].double(), b[at].double()) for at in tokens) / len(tokens)

        steps = {"layer": (before, after), "attn": (before, before + attn), "mlp": (after - mlp, after)}
        for part, (a, b) in steps.items():
            wanted = {
                "cosine": mean(lambda x, y: 1 - math.cos(math.pi * angle(x, y)), a, b),
                "l1": mean(lambda x, y: float((y - x).abs().sum()), a, b),
                "l2": mean(lambda x, y: float((y - x).square().sum().sqrt()), a, b),
                "relative_l1": mean(lambda x, y: float((y - x).abs().sum() / x.abs().sum()), a, b),
                "relative_l2": mean(lambda x, y: float((y - x).norm() / x.norm()), a, b),
            }
            assert got[part] == pytest.approx(wanted, rel=1e-5), part

    def test_parts_that_are_gone_are_not_asked_for(self) -> None:
        statistic = Influence(1, 2, has_attn=False, has_mlp=False)
        assert [site.kind for site in statistic.sites] == ["resid", "resid"]
        statistic.update(*STREAM[:2])
        assert statistic.result().keys() == {"layer"}


class TestUpdates:
    def test_a_naive_sum(self) -> None:
        statistic = Updates(1, 3, D, moments=True)
        feed(statistic, slice(None))
        got = statistic.result()
        x, end = (stream.flatten(0, 1).double() for stream in STREAM[:2])
        y, w = end - x, 1 / end.square().mean(-1, keepdim=True)
        assert got.tokens == len(x) == 5 * 12
        wanted = [(w * values).sum(0) for values in (y, x.abs(), end.abs(), x.square(), x * y)]
        found = [got.added, got.before, got.after, got.square, got.product]
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-4)
        assert got.added_square == pytest.approx(float((w * y.square()).sum()), rel=1e-6)
        assert got.weight == pytest.approx(float(w.sum()), rel=1e-6)
        assert got.moments is not None
        torch.testing.assert_close(got.moments.gram, x.T @ (w * x), rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(got.moments.cross, x.T @ (w * y), rtol=1e-5, atol=1e-4)

    def test_a_token_of_huge_norm_does_not_drown_the_others(self) -> None:
        """Whose update, relative to its norm, is as small as theirs."""
        before, added = STREAM[0].clone(), torch.full((5, 12, D), 0.1)
        before[:, 0] *= 1e4
        added[:, 0] *= -1e3
        statistic = Updates(1, 3, D)
        statistic.update(before, before + added)
        got = statistic.result()
        torch.testing.assert_close(got.added / got.weight, torch.full((D,), 0.1).double(), atol=1e-3, rtol=0)

    def test_products_of_all_channels_are_formed_only_where_they_are_needed(self) -> None:
        statistic = Updates(1, 3, D)
        feed(statistic, slice(None))
        assert statistic.result().moments is None
        assert all(tensor.dim() < 2 for tensor in statistic.sums.values())
