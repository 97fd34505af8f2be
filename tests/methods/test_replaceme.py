"""ReplaceMe: every estimator, structure and option, on models small enough to check by hand."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest
import torch
from kit.compare import assert_differ, assert_same_logits, logits, swept
from kit.planning import BUDGET, Kill, Messages, Steps, calibration, plan_on
from kit.planted import idle_layers, quiet_but_vital_layer, quiet_layers, spoken_by, streamed_view
from kit.tiny import DENSE_NAMES, FAMILY_NAMES, HIDDEN, LAYERS, family_of, make_model, tokens

from sned.errors import BudgetError, ConfigError
from sned.models.view import View
from sned.plans.ops import DropLayers, DropSublayer, Fold, Replace
from sned.runtime import journal as journals
from sned.runtime import sweep as sweeps
from sned.runtime.objective import token_nll
from sned.runtime.sweep import Cost, Site, Sweep

if TYPE_CHECKING:
    from pathlib import Path

    from sned.plans.plan import Plan

FOLDABLE = [name for name in DENSE_NAMES if not family_of(name).mlp_post]
STRUCTURES = ("full", "diagonal", "orthogonal", "lower", "rank1")
MANY = tokens(40, 16, seed=3)
"""Twenty tokens per feature: enough for a map without a ridge."""


def replaceme(view: View, **given: Any) -> Plan:
    return plan_on(view, "replaceme", **{"probe": 0, **given})


def the_map(plan: Plan) -> torch.Tensor:
    (tensor,) = plan.tensors.values()
    return tensor.double()


def cut_of(plan: Plan) -> list[tuple[int, int]]:
    return [(cut["start"], cut["end"]) for cut in plan.stages[0].scores["cuts"]]


def states(view: View, *sites: Site) -> list[torch.Tensor]:
    """Activations of the many tokens, `[tokens, hidden]` in float64."""
    sweep, out = Sweep(view), []
    for chunk in sweep.chunks(MANY.ids):
        out += [activations for _, activations in sweep.activations(chunk, [sites])]
    return [torch.cat([batch[i] for batch in out]).flatten(0, 1).double() for i in range(len(sites))]


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
        ((start, end),) = cut_of(plan)
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


class TestPlace:
    @pytest.mark.parametrize("name", FAMILY_NAMES)
    def test_a_map_is_folded_wherever_that_is_possible(self, name: str) -> None:
        kinds = [op.op for op in replaceme(View(make_model(name))).ops]
        assert kinds == (["fold", "drop_layers"] if name in FOLDABLE else ["replace"])

    def test_a_cut_at_the_very_start_has_nothing_to_fold_into(self) -> None:
        plan = replaceme(view := View(make_model("llama")), min_start=0, span="0:2")
        assert [op.op for op in plan.ops] == ["replace"]
        assert list(view.layers) == [0, 2, 3, 4]

    def test_a_layer_without_mlp_takes_no_fold(self) -> None:
        view = View(make_model("llama"))
        DropSublayer(layer=1, which="mlp").apply(view, {})
        assert [op.op for op in replaceme(view, span="2:4").ops] == ["replace"]

    @pytest.mark.parametrize("maps", [1, 2])
    def test_touching_cuts_share_one_map(self, maps: int) -> None:
        model = idle_layers(make_model("llama"), [1, 2])
        plan = replaceme(View(model), maps=maps)
        assert cut_of(plan) == [(1, 3)]
        assert [op.op for op in plan.ops] == ["fold", "drop_layers"]

    @pytest.mark.parametrize("estimator", ["lstsq", "cosine"])
    def test_cuts_apart_have_a_map_each_fitted_on_what_the_first_left(self, estimator: str) -> None:
        model = idle_layers(make_model("llama"), [1, 3])
        dense = logits(model)
        view = View(model)
        plan = replaceme(view, tokens=MANY, maps=2, estimator=estimator, epochs=1)
        assert cut_of(plan) == [(1, 2), (3, 4)]
        assert [op.layer for op in plan.ops if isinstance(op, Fold)] == [0, 2]
        assert len(plan.stages[0].scores["fit"]) == 2
        if estimator == "lstsq":
            assert_same_logits(logits(view.model), dense)

    def test_each_map_is_fitted_on_what_the_one_before_left(self) -> None:
        model = quiet_layers(make_model("llama"), [1, 3])
        first_only, both = View(copy.deepcopy(model)), View(model)
        plan = replaceme(both, tokens=MANY, maps=2, ridge=0.0)
        assert cut_of(plan) == [(1, 2), (3, 4)]
        replaceme(first_only, tokens=MANY, ridge=0.0, layers=1, span="1:2")
        added, first, last = states(first_only, Site("mlp", 2), Site("resid", 3), Site("resid", 4))
        want = torch.linalg.lstsq(added, last - (first - added)).solution
        torch.testing.assert_close(list(plan.tensors.values())[1].double(), want, atol=1e-3, rtol=1e-3)

    def test_a_span_overrides_the_choice(self) -> None:
        plan = replaceme(view := View(make_model("llama")), span="2:4")
        assert cut_of(plan) == [(2, 4)]
        assert list(view.layers) == [0, 1, 4]

    @pytest.mark.parametrize(
        ("given", "kind", "message"),
        [
            ({"span": "1:4"}, BudgetError, "--span 1:4 is 3 layers, but the budget is 2"),
            ({"span": "1-3"}, ConfigError, "span '1-3' is not a cut"),
            ({"span": "4:6"}, ConfigError, "span '4:6' is not a cut of 5 layers"),
            ({"span": "3:1"}, ConfigError, "span '3:1' is not a cut"),
            ({"l1": 0.1}, ConfigError, "l1 and l2 need the cosine or mse estimator"),
            ({"maps": 3}, ConfigError, "maps"),
            ({"maps": 0}, ConfigError, "maps"),
            ({"min_start": 3, "max_end": 2}, BudgetError, "at most 0 of 5 layers"),
            ({"max_end": 9}, ConfigError, "max_end=9 is not a range of the 5 layers"),
            ({"ridge": -1.0}, ConfigError, "ridge"),
            ({"epochs": 0, "estimator": "cosine"}, ConfigError, "epochs"),
            ({"lr": 0.0, "estimator": "mse"}, ConfigError, "lr"),
            ({"l2": -0.1, "estimator": "mse"}, ConfigError, "l2"),
            ({"estimator": "magic"}, ConfigError, "estimator='magic'"),
            ({"bogus": 1}, ConfigError, "no option 'bogus'"),
        ],
    )
    def test_what_cannot_be_done_is_said(self, given: dict[str, Any], kind: type[Exception], message: str) -> None:
        view = View(make_model("llama"))
        with pytest.raises(kind, match=message):
            replaceme(view, **given)
        assert list(view.layers) == list(range(LAYERS))

    @pytest.mark.parametrize("bounds", [(1, 3), (2, 4), (0, 2), (3, 5)])
    def test_cuts_stay_within_bounds(self, bounds: tuple[int, int]) -> None:
        first, last = bounds
        plan = replaceme(View(make_model("llama")), min_start=first, max_end=last)
        assert cut_of(plan) == [bounds]
        assert first <= last - BUDGET

    def test_positions_and_windows_are_the_callers_choice(self) -> None:
        last = replaceme(View(make_model("llama")), positions="last").stages[0].scores["distance"]
        every = replaceme(View(make_model("llama")), positions="all").stages[0].scores["distance"]
        assert last != every


class TestProbe:
    def test_the_cut_with_the_least_loss_wins(self) -> None:
        seed = 2
        plan = replaceme(View(make_model("llama", seed)), tokens=MANY, probe=3)
        rows = plan.stages[0].scores["probe"]
        assert sorted((row["start"], row["end"]) for row in rows) == [(1, 3), (2, 4)]
        best = min(rows, key=lambda row: row["nll"])
        assert cut_of(plan) == [(best["start"], best["end"])]

    def test_a_probed_loss_is_the_loss_of_the_model_planned_for_that_cut(self) -> None:
        rows = replaceme(View(make_model("llama")), tokens=MANY, probe=3).stages[0].scores["probe"]
        windows = MANY.take(8).ids
        for row in rows:
            view = View(make_model("llama"))
            replaceme(view, tokens=MANY, span=f"{row['start']}:{row['end']}")
            assert row["nll"] == pytest.approx(float(token_nll(logits(view.model, windows), windows).mean()), rel=1e-4)

    @pytest.mark.parametrize("layer", [1, 2, 3])
    def test_it_avoids_a_cut_that_distance_alone_would_choose(self, layer: int) -> None:
        def cut_with(probe: int) -> tuple[int, int]:
            model = quiet_but_vital_layer(make_model("llama"), layer)
            plan = replaceme(View(model), tokens=spoken_by(model), layers=1, probe=probe)
            return cut_of(plan)[0]

        assert cut_with(probe=0) == (layer, layer + 1)
        assert cut_with(probe=3) != (layer, layer + 1)

    @pytest.mark.parametrize("probe", [0, 1])
    def test_it_can_be_turned_off(self, probe: int) -> None:
        steps = Steps()
        plan = replaceme(View(make_model("llama")), probe=probe, progress=steps)
        assert "probe" not in plan.stages[0].scores
        assert set(steps.tasks) == {"scout for cuts", "calibrate"}


class TestCost:
    def test_the_calibration_set_is_run_once_besides_the_scout(self) -> None:
        calib, cost = tokens(16, 16, seed=3), Cost()
        replaceme(View(make_model("llama")), tokens=calib, cost=cost)
        assert cost.forward_layer_tokens == LAYERS * (calib.n_tokens + calib.n_tokens // 8)

    def test_a_chosen_span_is_run_up_to_its_end(self) -> None:
        calib, cost = tokens(16, 16, seed=3), Cost()
        replaceme(View(make_model("llama")), tokens=calib, cost=cost, span="1:3")
        assert cost.forward_layer_tokens <= LAYERS * calib.n_tokens

    def test_probing_costs_a_few_windows_per_cut(self) -> None:
        calib, plain, probed = tokens(16, 16, seed=3), Cost(), Cost()
        replaceme(View(make_model("llama")), tokens=calib, cost=plain)
        replaceme(View(make_model("llama")), tokens=calib, cost=probed, probe=2)
        extra = probed.forward_layer_tokens - plain.forward_layer_tokens
        assert extra == 2 * (LAYERS - BUDGET) * 8 * calib.length


ITERATIVE = {"estimator": "cosine", "maps": 2, "lr": 1e-2, "epochs": 2, "probe": 3}


class TestResume:
    @pytest.mark.parametrize("name", ["llama", "gemma2", "mixtral", "gpt2"])
    @pytest.mark.parametrize("given", [ITERATIVE, {"maps": 2, "probe": 2}, {"standalone": True, "probe": 3}])
    def test_options_do_not_change_what_resuming_gives(
        self, name: str, given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sweeps, "BATCH_TOKENS", 32)
        monkeypatch.setattr(journals, "SAVE_EVERY_SECONDS", 0.0)
        steps = Steps()
        straight = replaceme(View(make_model(name)), progress=steps, **given)
        for after in range(1, steps.total, 4):
            folder = tmp_path / str(after)
            with pytest.raises(KeyboardInterrupt):
                replaceme(View(make_model(name)), folder=folder, progress=Kill(after), **given)
            assert replaceme(View(make_model(name)), folder=folder, **given).digest == straight.digest

    @pytest.mark.parametrize("name", FAMILY_NAMES)
    @pytest.mark.parametrize("given", [ITERATIVE, {"maps": 2, "standalone": True}])
    def test_streaming_gives_the_same_maps(self, name: str, given: dict[str, Any]) -> None:
        loaded, streamed = View(make_model(name)), streamed_view(name)
        assert replaceme(loaded, **given).digest == replaceme(streamed, **given).digest
        assert_same_logits(swept(streamed), logits(loaded.model), exact=True)

    def test_options_are_part_of_the_plan(self) -> None:
        plans = [
            replaceme(View(make_model("llama")), span="1:3", **g) for g in ({}, {"ridge": 0.5}, {"standalone": True})
        ]
        assert len({plan.digest for plan in plans}) == 3
        assert calibration().digest == plans[0].provenance["calibration"]["digest"]


def test_a_map_repairs_more_than_plain_removal() -> None:
    """On the tokens of the fit, and in the stream where it was fitted."""
    with_map, without = View(make_model("llama")), View(make_model("llama"))
    plan = replaceme(with_map, tokens=MANY)
    ((start, end),) = cut_of(plan)
    DropLayers(layers=range(start, end)).apply(without, {})
    (dense,) = states(View(make_model("llama")), Site("resid", end))

    def error(view: View) -> float:
        (got,) = states(view, Site("resid", end))
        return float((got - dense).norm())

    assert error(with_map) < 0.9 * error(without)
    assert_differ(logits(with_map.model), logits(without.model))
