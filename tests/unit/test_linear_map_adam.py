"""Linear maps found by Adam, which sees the tokens themselves, against the closed forms."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from kit.problems import STRUCTURES, D, T, close, easy_problem, error, moments_of

from sned.errors import NumericalError
from sned.score.linear_map import AdamOptions, Structure, fit_adam, fit_closed

every_structure = pytest.mark.parametrize("structure", STRUCTURES)


class TestAdam:
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
        states, target = easy_problem()
        target[5, 5] = math.nan
        with pytest.raises(NumericalError, match="not finite"):
            fit_adam(states, target, self.FAST, generator=torch.Generator())
