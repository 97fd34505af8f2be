"""ReplaceMe: where it cuts, what it refuses, what it costs, and that it resumes."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest
import torch
from kit.compare import assert_same_logits, logits, swept
from kit.planning import BUDGET, Kill, Steps, calibration
from kit.planted import idle_layers, quiet_but_vital_layer, quiet_layers, spoken_by, streamed_view
from kit.replacing import FOLDABLE, MANY, cuts_of, replaceme, states
from kit.tiny import FAMILY_NAMES, LAYERS, make_model, tokens

from sned.errors import BudgetError, ConfigError
from sned.models.view import View
from sned.plans.ops import DropSublayer, Fold
from sned.runtime import journal as journals
from sned.runtime import sweep as sweeps
from sned.runtime.objective import token_nll
from sned.runtime.sweep import Cost, Site

if TYPE_CHECKING:
    from pathlib import Path


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
        assert cuts_of(plan) == [(1, 3)]
        assert [op.op for op in plan.ops] == ["fold", "drop_layers"]

    @pytest.mark.parametrize("estimator", ["lstsq", "cosine"])
    def test_cuts_apart_have_a_map_each_fitted_on_what_the_first_left(self, estimator: str) -> None:
        model = idle_layers(make_model("llama"), [1, 3])
        dense = logits(model)
        view = View(model)
        plan = replaceme(view, tokens=MANY, maps=2, estimator=estimator, epochs=1)
        assert cuts_of(plan) == [(1, 2), (3, 4)]
        assert [op.layer for op in plan.ops if isinstance(op, Fold)] == [0, 2]
        assert len(plan.stages[0].scores["fit"]) == 2
        if estimator == "lstsq":
            assert_same_logits(logits(view.model), dense)

    def test_each_map_is_fitted_on_what_the_one_before_left(self) -> None:
        model = quiet_layers(make_model("llama"), [1, 3])
        first_only, both = View(copy.deepcopy(model)), View(model)
        plan = replaceme(both, tokens=MANY, maps=2, ridge=0.0)
        assert cuts_of(plan) == [(1, 2), (3, 4)]
        replaceme(first_only, tokens=MANY, ridge=0.0, layers=1, span="1:2")
        added, first, last = states(first_only, Site("mlp", 2), Site("resid", 3), Site("resid", 4))
        want = torch.linalg.lstsq(added, last - (first - added)).solution
        torch.testing.assert_close(list(plan.tensors.values())[1].double(), want, atol=1e-3, rtol=1e-3)

    def test_a_span_overrides_the_choice(self) -> None:
        plan = replaceme(view := View(make_model("llama")), span="2:4")
        assert cuts_of(plan) == [(2, 4)]
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
        assert cuts_of(plan) == [bounds]
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
        assert cuts_of(plan) == [(best["start"], best["end"])]

    def test_a_probed_loss_is_the_loss_of_the_model_planned_for_that_cut(self) -> None:
        rows = replaceme(View(make_model("llama")), tokens=MANY, probe=3).stages[0].scores["probe"]
        windows = MANY.take(8).ids
        for row in rows:
            view = View(make_model("llama"))
            replaceme(view, tokens=MANY, span=f"{row['start']}:{row['end']}")
            assert row["nll"] == pytest.approx(float(token_nll(logits(view.model, windows), windows).mean()), rel=1e-4)

    @pytest.mark.parametrize("layer", [1, 2])
    def test_it_avoids_a_cut_that_distance_alone_would_choose(self, layer: int) -> None:
        def cut_with(probe: int) -> tuple[int, int]:
            model = quiet_but_vital_layer(make_model("llama"), layer)
            plan = replaceme(View(model), tokens=spoken_by(model), layers=1, probe=probe)
            return cuts_of(plan)[0]

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
        # with a journal, since what it answers is no step
        straight = replaceme(View(make_model(name)), folder=tmp_path / "straight", progress=steps, **given)
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
