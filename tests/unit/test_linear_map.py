"""Linear maps: closed forms against brute force, iterative ones against closed forms."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import get_args

import pytest
import torch

from sned.errors import NumericalError
from sned.runtime.statistics import CutMoments
from sned.score.linear_map import AdamOptions, Moments, Structure, fit_adam, fit_closed, relative_error

D, T = 10, 400
STRUCTURES: tuple[Structure, ...] = get_args(Structure)
every_structure = pytest.mark.parametrize("structure", STRUCTURES)


def problem(seed: int = 0, *, noise: float = 0.5, rank: int = D) -> tuple[torch.Tensor, torch.Tensor]:
    """Correlated states `M`, and targets `Z` that are partly linear in them; float64."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    states = draw(T, rank) @ draw(rank, D) / rank**0.5 * torch.linspace(0.5, 2.0, D, dtype=torch.float64)
    target = states + 0.4 * states @ draw(D, D) + noise * draw(T, D)
    return states, target


def easy_problem() -> tuple[torch.Tensor, torch.Tensor]:
    """Uncorrelated states, on which Adam arrives within a test."""
    generator = torch.Generator().manual_seed(0)
    states, turn, rest = (torch.randn(*shape, generator=generator).double() for shape in ((T, D), (D, D), (T, D)))
    return states, states + 0.4 * states @ turn + 0.1 * rest


def moments_of(states: torch.Tensor, target: torch.Tensor) -> Moments:
    return Moments(states.T @ states, states.T @ target, float(target.square().sum()), len(states))


def error(states: torch.Tensor, target: torch.Tensor, matrix: torch.Tensor) -> float:
    return float((states @ matrix - target).square().sum())


def close(got: torch.Tensor, want: torch.Tensor, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(got, want, atol=tolerance, rtol=tolerance)


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

    @pytest.mark.parametrize(("hidden", "tokens", "rank"), [(64, 40, 40), (64, 2000, 40), (256, 4000, 100)])
    def test_the_rank_is_that_of_the_states_although_products_are_float32(
        self, hidden: int, tokens: int, rank: int
    ) -> None:
        """What rounding adds to the sums must not pass for a direction that was seen."""
        generator = torch.Generator().manual_seed(0)
        basis = torch.randn(rank, hidden, generator=generator)
        statistic = CutMoments(0, 1, 2, hidden)
        for _ in range(4):
            added = torch.randn(1, tokens // 4, rank, generator=generator) @ basis
            start = torch.randn(1, tokens // 4, hidden, generator=generator)
            statistic.update(added, start, start + 0.1 * torch.randn(start.shape, generator=generator))
        fit = fit_closed(statistic.result())
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


class TestAdam:
    """Iterative fits, which see the tokens themselves."""

    FAST = AdamOptions(loss="mse", lr=2e-2, epochs=100, batch_tokens=200)

    @staticmethod
    def fit(options: AdamOptions, *, seed: int = 0, offset: torch.Tensor | None = None) -> torch.Tensor:
        states, target = easy_problem()
        return fit_adam(states, target, options, generator=torch.Generator().manual_seed(seed), offset=offset)

    @pytest.mark.parametrize("structure", ["full", "diagonal", "lower"])
    def test_the_mean_square_error_leads_to_least_squares(self, structure: Structure) -> None:
        states, target = easy_problem()
        want = fit_closed(moments_of(states, target), structure=structure).matrix
        got = self.fit(replace(self.FAST, structure=structure))
        assert got.dtype == torch.float64
        assert error(states, target, got) < 1.02 * error(states, target, want)
        torch.testing.assert_close(got, want, atol=0.05, rtol=0)

    @pytest.mark.parametrize("structure", ["orthogonal", "rank1"])
    def test_it_comes_close_to_the_other_closed_forms(self, structure: Structure) -> None:
        states, target = easy_problem()
        want = fit_closed(moments_of(states, target), structure=structure).matrix
        got = self.fit(replace(self.FAST, structure=structure))
        assert error(states, target, got) < 1.1 * error(states, target, want)

    @every_structure
    def test_a_structure_is_kept_to_the_last_step(self, structure: Structure) -> None:
        got = self.fit(replace(self.FAST, structure=structure, epochs=2))
        eye = torch.eye(D, dtype=torch.float64)
        holds = {
            "full": not torch.equal(got, got.tril()),
            "diagonal": torch.equal(got, torch.diag(got.diagonal())),
            "orthogonal": torch.allclose(got @ got.T, eye, atol=1e-5),
            "lower": torch.equal(got, got.tril()),
            "rank1": int(torch.linalg.matrix_rank(got, rtol=1e-5)) == 1,
        }
        assert holds[structure]

    def test_the_cosine_improves_the_cosine(self) -> None:
        states, target = easy_problem()

        def loss(matrix: torch.Tensor) -> float:
            return 1 - float(torch.nn.functional.cosine_similarity(states @ matrix, target).mean())

        got = self.fit(replace(self.FAST, loss="cosine"))
        assert loss(got) < 0.2 * loss(torch.eye(D, dtype=torch.float64))

    @pytest.mark.parametrize("factor", [0.1, 7.0])
    def test_the_cosine_does_not_see_the_scale_but_recovers_it(self, factor: float) -> None:
        states, _ = easy_problem()
        options = replace(self.FAST, loss="cosine", epochs=1, lr=1e-3)
        got = fit_adam(states, factor * states, options, generator=torch.Generator())
        close(got, factor * torch.eye(D, dtype=torch.float64), 0.02 * factor)
        raw = fit_adam(states, factor * states, replace(options, rescale=False), generator=torch.Generator())
        close(raw, torch.eye(D, dtype=torch.float64), 0.02)

    def test_an_orthogonal_map_keeps_its_scale(self) -> None:
        states, _ = easy_problem()
        options = replace(self.FAST, loss="cosine", structure="orthogonal", epochs=1, lr=1e-3)
        got = fit_adam(states, 5 * states, options, generator=torch.Generator())
        close(got @ got.T, torch.eye(D, dtype=torch.float64), 1e-5)

    def test_an_offset_is_added_before_the_comparison(self) -> None:
        states, target = easy_problem()
        offset = 3 * torch.randn(T, D, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        options = replace(self.FAST, loss="cosine", epochs=100)
        got = fit_adam(states, target + offset, options, generator=torch.Generator(), offset=offset)
        close(got, torch.linalg.lstsq(states, target).solution, 0.1)

    def test_penalties_pull_towards_zero(self) -> None:
        plain = self.fit(self.FAST)
        sparse, small = self.fit(replace(self.FAST, l1=0.5)), self.fit(replace(self.FAST, l2=0.5))
        assert (sparse.abs() < 2e-2).sum() > 3 * (plain.abs() < 2e-2).sum()
        assert small.square().sum() < 0.8 * plain.square().sum()

    def test_the_seed_decides_everything(self) -> None:
        options = replace(self.FAST, epochs=2)
        assert torch.equal(self.fit(options, seed=3), self.fit(options, seed=3))
        assert not torch.equal(self.fit(options, seed=3), self.fit(options, seed=4))

    def test_no_epochs_leave_the_start(self) -> None:
        close(self.fit(replace(self.FAST, epochs=0)), torch.eye(D, dtype=torch.float64))

    def test_half_precision_states_will_do(self) -> None:
        states, target = easy_problem()
        got = fit_adam(states.bfloat16(), target.bfloat16(), self.FAST, generator=torch.Generator())
        close(got, torch.linalg.lstsq(states, target).solution, 0.1)

    def test_a_loss_that_is_not_finite_is_an_error(self) -> None:
        states, target = problem()
        target[5, 5] = math.nan
        with pytest.raises(NumericalError, match="not finite"):
            fit_adam(states, target, self.FAST, generator=torch.Generator())
