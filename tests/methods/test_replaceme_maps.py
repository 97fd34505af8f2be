"""ReplaceMe's maps: what they solve, what they promise, and what they make up for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kit.compare import assert_differ, assert_same_logits, logits
from kit.planning import Messages
from kit.problems import STRUCTURES
from kit.replacing import FOLDABLE, MANY, cuts_of, replaceme, states, the_map
from kit.tiny import FAMILY_NAMES, HIDDEN, make_model

from sned.models.view import View
from sned.plans.ops import DropLayers, DropSublayer, Fold, Replace
from sned.runtime.sweep import Site


class TestMaps:
    @pytest.mark.parametrize("structure", STRUCTURES)
    @pytest.mark.parametrize("estimator", ["lstsq", "cosine", "mse"])
    def test_every_estimator_finds_every_structure(self, estimator: str, structure: str) -> None:
        view = View(make_model("llama"))
        plan = replaceme(view, tokens=MANY, estimator=estimator, structure=structure, lr=1e-2, epochs=3)
        matrix = the_map(plan)
        eye = torch.eye(HIDDEN, dtype=torch.float64)
        shape = {
            "full": lambda: matrix.count_nonzero() == HIDDEN**2,
            "diagonal": lambda: torch.equal(matrix, torch.diag(matrix.diagonal())),
            "orthogonal": lambda: torch.allclose(matrix @ matrix.T, eye, atol=1e-5),
            "lower": lambda: torch.equal(matrix, matrix.tril()),
            "rank1": lambda: int(torch.linalg.matrix_rank(matrix, rtol=1e-5)) == 1,
        }[structure]
        assert shape()
        (fit,) = plan.stages[0].scores["fit"]
        assert fit["relative_error"] > 0
        assert fit["rank"] == HIDDEN
        assert torch.isfinite(logits(view.model)).all()

    @pytest.mark.parametrize("estimator", ["cosine", "mse"])
    def test_penalties_shrink_the_map(self, estimator: str) -> None:
        def norm(**given: Any) -> float:
            plan = replaceme(View(make_model("llama")), tokens=MANY, estimator=estimator, lr=1e-2, epochs=5, **given)
            return float(the_map(plan).abs().sum())

        assert norm(l1=0.1) < norm()
        assert norm(l2=0.1) < norm()

    def test_accurate_compares_the_whole_stream(self) -> None:
        given = {"tokens": MANY, "estimator": "cosine", "lr": 1e-2, "epochs": 3}
        plain, accurate = (replaceme(View(make_model("llama")), accurate=flag, **given) for flag in (False, True))
        assert not torch.allclose(the_map(plain), the_map(accurate), atol=1e-2)

    @pytest.mark.parametrize("name", FOLDABLE)
    def test_a_fold_makes_the_stream_it_promises(self, name: str) -> None:
        """After the layer before the cut, the stream is `x - M + M T`: biases, multipliers and layouts included."""
        plan = replaceme(view := View(make_model(name)), tokens=MANY, ridge=0.01)
        fold, drop = plan.ops
        assert isinstance(fold, Fold)
        assert isinstance(drop, DropLayers)
        start = drop.layers[0]
        assert fold.layer == start - 1
        added, stream = states(View(make_model(name)), Site("mlp", fold.layer), Site("resid", start))
        want = stream - added + added @ the_map(plan)
        (got,) = states(view, Site("resid", drop.layers[-1] + 1))
        torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)

    @pytest.mark.parametrize("name", FOLDABLE)
    def test_least_squares_leaves_nothing_that_is_linear_in_what_it_saw(self, name: str) -> None:
        plan = replaceme(View(make_model(name)), tokens=MANY, ridge=0.0)
        ((start, end),) = cuts_of(plan)
        added, first, last = states(
            View(make_model(name)), Site("mlp", start - 1), Site("resid", start), Site("resid", end)
        )
        target = last - (first - added)
        residue = added.T @ (added @ the_map(plan) - target)
        assert residue.norm() < 1e-5 * (added.T @ target).norm()
        (fit,) = plan.stages[0].scores["fit"]
        error = float((added @ the_map(plan) - target).norm() / target.norm())
        assert fit["relative_error"] == pytest.approx(error, rel=1e-4)
        assert fit["tokens"] == MANY.n_tokens

    @pytest.mark.parametrize("name", FAMILY_NAMES)
    def test_a_linear_layer_of_its_own_fits_the_whole_stream(self, name: str) -> None:
        plan = replaceme(View(make_model(name)), tokens=MANY, ridge=0.0, standalone=True)
        (op,) = plan.ops
        assert isinstance(op, Replace)
        first, last = (
            x.view(len(MANY), MANY.length, HIDDEN)[:, 1:].flatten(0, 1)
            for x in states(View(make_model(name)), Site("resid", op.layers[0]), Site("resid", op.layers[-1] + 1))
        )
        want = torch.linalg.lstsq(first, last).solution
        torch.testing.assert_close(the_map(plan), want, atol=1e-3, rtol=1e-3)

    @pytest.mark.parametrize("name", FOLDABLE)
    def test_a_strong_ridge_towards_the_identity_is_plain_removal(self, name: str) -> None:
        view, plain = View(make_model(name)), View(make_model(name))
        plan = replaceme(view, ridge=1e9, span="2:4")
        DropLayers(layers=[2, 3]).apply(plain, {})
        torch.testing.assert_close(the_map(plan), torch.eye(HIDDEN, dtype=torch.float64), atol=1e-6, rtol=0)
        assert_same_logits(logits(view.model), logits(plain.model))

    @pytest.mark.parametrize("name", FOLDABLE)
    def test_a_strong_ridge_towards_zero_silences_the_mlp(self, name: str) -> None:
        view, plain = View(make_model(name)), View(make_model(name))
        replaceme(view, ridge=1e9, ridge_target="zero", span="2:4")
        DropSublayer(layer=1, which="mlp").apply(plain, {})
        DropLayers(layers=[2, 3]).apply(plain, {})
        assert_same_logits(logits(view.model), logits(plain.model))

    def test_few_tokens_bring_a_warning_and_a_ridge(self) -> None:
        few, many = Messages(), Messages()
        plan = replaceme(View(make_model("llama")), progress=few)
        assert "96 calibration tokens are few for a map of 32 features: 320 or more" in few.warnings[0]
        assert plan.stages[0].scores["fit"][0]["ridge"] > 0
        plan = replaceme(View(make_model("llama")), tokens=MANY, progress=many)
        assert many.warnings == []
        assert plan.stages[0].scores["fit"][0]["ridge"] == 0


def test_a_map_repairs_more_than_plain_removal() -> None:
    """On the tokens of the fit, and in the stream where it was fitted."""
    with_map, without = View(make_model("llama")), View(make_model("llama"))
    plan = replaceme(with_map, tokens=MANY)
    ((start, end),) = cuts_of(plan)
    DropLayers(layers=range(start, end)).apply(without, {})
    (dense,) = states(View(make_model("llama")), Site("resid", end))

    def error(view: View) -> float:
        (got,) = states(view, Site("resid", end))
        return float((got - dense).norm())

    assert error(with_map) < 0.9 * error(without)
    assert_differ(logits(with_map.model), logits(without.model))
