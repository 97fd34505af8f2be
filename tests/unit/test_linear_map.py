"""Linear maps in closed form, against brute force."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from kit.problems import STRUCTURES, D, T, close, error, moments_of, problem

from sned.errors import NumericalError
from sned.runtime.statistics import CutMoments
from sned.score.linear_map import Moments, Structure, fit_closed, relative_error

every_structure = pytest.mark.parametrize("structure", STRUCTURES)


class TestClosedForms:
    def test_full_is_least_squares(self) -> None:
        states, target = problem()
        close(fit_closed(moments_of(states, target)).matrix, torch.linalg.lstsq(states, target).solution)

    def test_diagonal_is_least_squares_feature_by_feature(self) -> None:
        states, target = problem()
        columns = [torch.linalg.lstsq(states[:, [j]], target[:, [j]]).solution[0, 0] for j in range(D)]
        close(fit_closed(moments_of(states, target), structure="diagonal").matrix, torch.diag(torch.stack(columns)))

    def test_lower_is_least_squares_on_the_features_from_the_diagonal_on(self) -> None:
        states, target = problem()
        want = torch.zeros(D, D, dtype=torch.float64)
        for j in range(D):
            want[j:, j] = torch.linalg.lstsq(states[:, j:], target[:, [j]]).solution[:, 0]
        close(fit_closed(moments_of(states, target), structure="lower").matrix, want)

    def test_no_orthogonal_map_does_better(self) -> None:
        states, target = problem()
        best = fit_closed(moments_of(states, target), structure="orthogonal").matrix
        close(best @ best.T, torch.eye(D, dtype=torch.float64))
        generator = torch.Generator().manual_seed(1)
        for size in (1e-3, 1e-2, 0.1, 1.0):
            for _ in range(25):
                skew = size * torch.randn(D, D, generator=generator, dtype=torch.float64)
                other = best @ torch.linalg.matrix_exp(skew - skew.T)
                assert error(states, target, best) <= error(states, target, other)
        flipped = best * torch.tensor([-1.0, *[1.0] * (D - 1)], dtype=torch.float64)
        assert error(states, target, best) < error(states, target, flipped)

    @pytest.mark.parametrize("rank", [D, D - 3])
    def test_no_map_of_rank_one_does_better(self, rank: int) -> None:
        """Alternating least squares from many starts does not get below the closed form."""
        states, target = problem(rank=rank)
        best = fit_closed(moments_of(states, target), structure="rank1").matrix
        assert int(torch.linalg.matrix_rank(best)) == 1
        reached = []
        for seed in range(6):
            v = torch.randn(D, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
            for _ in range(200):
                u = torch.linalg.pinv(states) @ target @ v / v.square().sum()
                seen = states @ u
                v = (target.T @ seen) / seen.square().sum()
            reached.append(error(states, target, u @ v.T))
        assert error(states, target, best) == pytest.approx(min(reached), rel=1e-8)

    @pytest.mark.parametrize("seed", range(5))
    def test_freedom_never_hurts(self, seed: int) -> None:
        states, target = problem(seed)
        errors = {
            s: error(states, target, fit_closed(moments_of(states, target), structure=s).matrix) for s in STRUCTURES
        }
        errors["identity"] = error(states, target, torch.eye(D, dtype=torch.float64))
        assert min(errors, key=errors.__getitem__) == "full"
        assert errors["lower"] <= errors["diagonal"] <= errors["identity"]
        assert errors["orthogonal"] <= errors["identity"]

    @every_structure
    def test_the_error_is_that_of_the_tokens(self, structure: Structure) -> None:
        states, target = problem()
        moments = moments_of(states, target)
        fit = fit_closed(moments, structure=structure)
        direct = math.sqrt(error(states, target, fit.matrix) / float(target.square().sum()))
        assert fit.relative_error == pytest.approx(direct, rel=1e-9)
        assert relative_error(moments, fit.matrix) == fit.relative_error

    @every_structure
    def test_the_solution_does_not_depend_on_units(self, structure: Structure) -> None:
        """Scaling states and targets alike leaves the map alone, with and without a ridge."""
        states, target = problem()
        for ridge in (0.0, 0.3):
            one = fit_closed(moments_of(states, target), structure=structure, ridge=ridge).matrix
            other = fit_closed(moments_of(1e3 * states, 1e3 * target), structure=structure, ridge=ridge).matrix
            close(one, other, 1e-7)

    def test_nothing_to_reach_is_no_error(self) -> None:
        states, _ = problem()
        fit = fit_closed(moments_of(states, torch.zeros_like(states)))
        close(fit.matrix, torch.zeros(D, D, dtype=torch.float64))
        assert fit.relative_error == 0

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_states_that_are_not_finite_are_refused(self, bad: float) -> None:
        moments = moments_of(*problem())
        for field in ("gram", "cross"):
            broken = getattr(moments, field).clone()
            broken[1, 2] = bad
            with pytest.raises(NumericalError, match="NaN or infinity"):
                fit_closed(replace(moments, **{field: broken}))


class TestRidge:
    def test_it_is_least_squares_with_extra_tokens(self) -> None:
        """Each feature gets one more token, which asks for the identity, or for zero."""
        states, target = problem()
        strength = math.sqrt(0.3 * float((states.T @ states).diagonal().mean()))
        eye = strength * torch.eye(D, dtype=torch.float64)
        for towards_identity, wish in ((True, eye), (False, 0 * eye)):
            want = torch.linalg.lstsq(torch.cat([states, eye]), torch.cat([target, wish])).solution
            got = fit_closed(moments_of(states, target), ridge=0.3, towards_identity=towards_identity).matrix
            close(got, want)

    @pytest.mark.parametrize("structure", ["full", "diagonal", "lower", "orthogonal"])
    def test_a_strong_one_tends_to_the_identity(self, structure: Structure) -> None:
        fit = fit_closed(moments_of(*problem()), structure=structure, ridge=1e9)
        close(fit.matrix, torch.eye(D, dtype=torch.float64), 1e-6)

    @pytest.mark.parametrize("structure", ["full", "diagonal", "lower", "rank1"])
    def test_a_strong_one_towards_zero_tends_to_zero(self, structure: Structure) -> None:
        fit = fit_closed(moments_of(*problem()), structure=structure, ridge=1e9, towards_identity=False)
        close(fit.matrix, torch.zeros(D, D, dtype=torch.float64), 1e-6)

    def test_it_lowers_the_condition(self) -> None:
        moments = moments_of(*problem())
        conditions = [fit_closed(moments, ridge=ridge).condition for ridge in (0.0, 0.1, 1.0)]
        assert conditions == sorted(conditions, reverse=True)
        assert conditions[-1] < 10


class TestDeficientStates:
    @pytest.mark.parametrize("rank", [1, 4, D - 1])
    def test_the_smallest_solution_is_taken(self, rank: int) -> None:
        states, target = problem(rank=rank)
        fit = fit_closed(moments_of(states, target))
        close(fit.matrix, torch.linalg.pinv(states) @ target, 1e-6)
        assert fit.rank == rank
        assert fit.condition > 1e10

    @pytest.mark.parametrize("rank", [1, 4, D - 1])
    @every_structure
    def test_every_structure_stays_finite_and_fits(self, structure: Structure, rank: int) -> None:
        states, target = problem(rank=rank)
        moments = moments_of(states, target)
        fit = fit_closed(moments, structure=structure)
        assert torch.isfinite(fit.matrix).all()
        assert math.isfinite(fit.relative_error)
        assert fit.relative_error >= fit_closed(moments).relative_error - 1e-6

    @every_structure
    def test_a_feature_that_is_always_zero_is_harmless(self, structure: Structure) -> None:
        states, target = problem()
        states[:, 3] = 0
        fit = fit_closed(moments_of(states, target), structure=structure)
        assert torch.isfinite(fit.matrix).all()
        assert fit.matrix.abs().max() < 100

    @every_structure
    def test_no_states_at_all_are_harmless(self, structure: Structure) -> None:
        zeros = torch.zeros(T, D, dtype=torch.float64)
        fit = fit_closed(moments_of(zeros, problem()[1]), structure=structure)
        assert torch.isfinite(fit.matrix).all()
        assert math.isfinite(fit.condition)

    @every_structure
    @pytest.mark.parametrize(("hidden", "tokens", "rank"), [(64, 40, 40), (64, 2000, 40), (256, 4000, 100)])
    def test_rounding_does_not_pass_for_a_direction_that_was_seen(
        self, hidden: int, tokens: int, rank: int, structure: Structure
    ) -> None:
        """The products behind the sums are formed in float32."""
        generator = torch.Generator().manual_seed(0)
        basis = torch.randn(rank, hidden, generator=generator)
        statistic = CutMoments(0, 1, 2, hidden)
        for _ in range(4):
            added = torch.randn(1, tokens // 4, rank, generator=generator) @ basis
            start = torch.randn(1, tokens // 4, hidden, generator=generator)
            statistic.update(added, start, start + 0.1 * torch.randn(start.shape, generator=generator))
        fit = fit_closed(statistic.result(), structure=structure)
        assert fit.rank == rank
        assert fit.matrix.abs().max() < 10

    def test_the_rank_and_the_condition_of_sound_states_are_reported(self) -> None:
        states, target = problem()
        fit = fit_closed(moments_of(states, target))
        assert fit.rank == D
        true = float(torch.linalg.cond(states.T @ states))
        assert 0.5 * true < fit.condition <= 1.001 * true


class TestMoments:
    """The sums behind a map do not depend on how the tokens come."""

    @staticmethod
    def collect(added: torch.Tensor, start: torch.Tensor, end: torch.Tensor, order: list[int], size: int) -> Moments:
        statistic = CutMoments(0, 1, 2, D)
        for at in range(0, len(order), size):
            rows = order[at : at + size]
            statistic.update(added[rows], start[rows], end[rows])
        return statistic.result()

    @pytest.mark.parametrize("size", [1, 3, 7, 40])
    def test_neither_order_nor_batch_size_matters(self, size: int) -> None:
        generator = torch.Generator().manual_seed(0)
        added, start, end = (torch.randn(40, 10, D, generator=generator) for _ in range(3))
        whole = fit_closed(self.collect(added, start, end, list(range(40)), 40)).matrix
        for order in (list(range(40)), list(range(39, -1, -1)), torch.randperm(40, generator=generator).tolist()):
            fit = fit_closed(self.collect(added, start, end, order, size)).matrix
            assert (fit - whole).norm() < 1e-5 * whole.norm()  # products are formed in float32, batch by batch

    def test_the_order_of_batches_is_lost_in_float64(self) -> None:
        generator = torch.Generator().manual_seed(0)
        batches = [tuple(torch.randn(5, 10, D, generator=generator) for _ in range(3)) for _ in range(8)]

        def fit(order: list[int]) -> torch.Tensor:
            statistic = CutMoments(0, 1, 2, D)
            for i in order:
                statistic.update(*batches[i])
            return fit_closed(statistic.result()).matrix

        want = fit(list(range(8)))
        assert (fit([5, 2, 7, 0, 1, 6, 4, 3]) - want).norm() <= 1e-10 * want.norm()

    def test_exact_sums_give_exactly_the_same_map(self) -> None:
        """Whole numbers leave no rounding: what remains is how the system is solved."""
        generator = torch.Generator().manual_seed(0)
        added, start, end = (torch.randint(-4, 5, (40, 10, D), generator=generator).float() for _ in range(3))
        whole = fit_closed(self.collect(added, start, end, list(range(40)), 40)).matrix
        other = fit_closed(self.collect(added, start, end, list(range(39, -1, -1)), 3)).matrix
        assert (other - whole).norm() <= 1e-10 * whole.norm()

    def test_streamed_sums_are_those_of_stacked_tokens(self) -> None:
        generator = torch.Generator().manual_seed(0)
        added, start, end = (torch.randn(40, 10, D, generator=generator) for _ in range(3))
        moments = self.collect(added, start, end, list(range(40)), 7)
        states = added.flatten(0, 1).double()
        target = end.flatten(0, 1).double() - (start.flatten(0, 1).double() - states)
        assert moments.tokens == 400
        close(moments.gram, states.T @ states, 1e-3)
        close(fit_closed(moments).matrix, torch.linalg.lstsq(states, target).solution, 1e-5)

    def test_stand_alone_maps_leave_out_the_first_token(self) -> None:
        generator = torch.Generator().manual_seed(0)
        start, end = (torch.randn(4, 10, D, generator=generator) for _ in range(2))
        statistic = CutMoments(0, 1, 2, D, standalone=True)
        spiked = start.clone()
        spiked[:, 0] = 1e6
        statistic.update(spiked, end)
        assert statistic.result().tokens == 36
        rest = start[:, 1:].flatten(0, 1).double()
        close(statistic.result().gram, rest.T @ rest, 1e-4)
