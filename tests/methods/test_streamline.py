"""LLM-Streamline: what stands for a run of layers, how it starts, and that training makes it better."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from kit.compare import logits
from kit.planning import plan_on
from kit.planted import idle_layers, layers_of, spoken_by, streamed_view
from kit.tiny import LAYERS, make_model

from sned.checkpoint.native import propose
from sned.errors import BudgetError, ConfigError, DataError
from sned.models.view import View

if TYPE_CHECKING:
    from sned.plans.plan import Plan

TEXT = spoken_by(make_model("llama"), windows=64, length=16)
MUCH = spoken_by(make_model("llama"), windows=512, length=16)
"""Enough that what is learned from the text alone holds for other text."""
FAST: dict[str, Any] = {"tokens": TEXT, "layers": 2, "batch": 4, "lr": 2e-3, "epochs": 4}


def streamline(view: View, **given: Any) -> Plan:
    return plan_on(view, "streamline", **FAST | given)


def scores(plan: Plan) -> dict[str, Any]:
    return plan.stages[0].scores


LOSSES = ["nmse", "mse", "cosine", "kl", "ce"]
GAINS = [(kind, loss) for kind in ("layer", "mlp") for loss in LOSSES] + [("linear", "kl"), ("linear", "ce")]
"""A map that was fitted to states leaves nothing to be gained on them; on what the model says it does."""


@pytest.mark.parametrize(("replacement", "loss"), GAINS)
def test_training_makes_it_better(replacement: str, loss: str) -> None:
    given = {"tokens": MUCH, "lr": 5e-4, "batch": 16, "epochs": 1} if loss == "ce" else {}
    plan = streamline(View(make_model("llama")), replacement=replacement, loss=loss, **given)
    found = scores(plan)["training"]
    held_out = [row[3] for row in found["curve"]]
    assert found["loss"] == loss
    assert min(held_out) < held_out[0]
    assert found["best_step"] > 0


@pytest.mark.parametrize(
    ("replacement", "stock"), [("layer", True), ("linear", True), ("nothing", True), ("mlp", False)]
)
def test_layers_and_maps_make_an_ordinary_shorter_model(replacement: str, stock: bool) -> None:
    view = View(make_model("qwen2"))
    streamline(view, replacement=replacement)
    assert len(view.layers) == LAYERS - 2
    assert propose(view).stock is stock


@pytest.mark.parametrize(("inherit", "kept"), [("first", 1), ("last", 3)])
def test_a_layer_is_inherited(inherit: str, kept: int) -> None:
    """Without a step of training that changes anything, the layer is one of those that it stands for."""
    view = View(make_model("llama"))
    streamline(view, span="1:4", inherit=inherit, lr=1e-12)
    assert list(view.layers) == [0, kept, 4]
    dense = make_model("llama")
    dense.model.layers = torch.nn.ModuleList([dense.model.layers[i] for i in (0, kept, 4)])
    dense.config.num_hidden_layers = 3
    torch.testing.assert_close(logits(view.model), logits(dense), rtol=1e-4, atol=1e-4)


def test_the_mean_is_inherited() -> None:
    view = View(make_model("llama"))
    streamline(view, span="1:4", inherit="mean", lr=1e-12)
    stack = layers_of(make_model("llama"))
    for name, param in view.layer(1).named_parameters():
        wanted = torch.stack([stack[i].get_parameter(name) for i in (1, 2, 3)]).mean(0)
        torch.testing.assert_close(param, wanted, rtol=1e-4, atol=1e-5)


def test_a_fitted_start_is_never_worse_than_an_inherited_one() -> None:
    """The map is the best there is for the mean square, the identity among them."""
    starts = {}
    for inherit in ("fitted", "first"):
        plan = streamline(View(make_model("llama")), span="1:4", inherit=inherit, loss="mse", lr=1e-12)
        starts[inherit] = scores(plan)["training"]["curve"][0][3]
    assert starts["fitted"] < starts["first"]


def test_what_one_layer_can_do_is_found_at_once() -> None:
    """Two of three layers do nothing, so that the third alone is what the run was."""
    view = View(idle_layers(make_model("llama"), [2, 3]))
    plan = streamline(view, span="1:4", inherit="first")
    found = scores(plan)["training"]
    assert found["curve"][0][3] == pytest.approx(0, abs=1e-9)
    dense = idle_layers(make_model("llama"), [2, 3])
    torch.testing.assert_close(logits(view.model), logits(dense), rtol=1e-4, atol=1e-4)


def test_the_run_that_turns_the_stream_least_is_cut() -> None:
    view = View(idle_layers(make_model("llama"), [1, 2]))
    plan = streamline(view, layers=1, probe=1, max_end=LAYERS)
    assert scores(plan)["cuts"][0]["start"] == 1
    assert list(view.layers) == [0, 1, 3, 4]


@pytest.mark.parametrize("replacement", ["layer", "linear"])
def test_only_the_map_that_is_there_is_told_of(replacement: str) -> None:
    """Every run that was tried had a map of its own, the next one nearly the same."""
    plan = streamline(View(make_model("llama")), replacement=replacement)
    assert len(scores(plan)["probe"]) > 1
    folds = [op.layer for op in plan.ops if op.op == "fold"]
    assert [fit["layer"] for fit in scores(plan)["fit"]] == folds


def test_several_layers_may_stand_for_the_run() -> None:
    view = View(make_model("llama"))
    plan = streamline(view, layers=1, replacements=2, span="1:4")
    assert list(view.layers) == [0, 1, 3, 4]
    assert {op.layer for op in plan.ops if op.op == "set_weight"} == {1, 3}


def test_where_nothing_can_be_folded_a_map_stands_alone() -> None:
    view = View(make_model("gemma2"))
    plan = streamline(view, replacement="linear")
    assert [op.op for op in plan.ops] == ["replace", "set_weight"]
    layer = streamline(View(make_model("gemma2")))
    assert "fold" not in [op.op for op in layer.ops]


@pytest.mark.parametrize(
    "given", [{"replacement": "linear", "replacements": 2}, {"replacement": "nothing", "inherit": "mean"}]
)
def test_options_that_say_nothing_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="takes neither"):
        streamline(View(make_model("llama")), **given)


def test_a_span_must_hold_the_layer_that_comes_back() -> None:
    with pytest.raises(BudgetError, match="2 layers, but the budget is 3"):
        streamline(View(make_model("llama")), span="1:3")


def test_a_run_must_fit() -> None:
    """A layer that stays may be the first of the model; one that loses its attention may not."""
    view = View(make_model("llama"))
    streamline(view, layers=LAYERS - 2)
    assert list(view.layers) == [0, LAYERS - 1]
    with pytest.raises(BudgetError, match="no run of 4 layers"):
        streamline(View(make_model("llama")), layers=LAYERS - 2, replacement="mlp")


def test_one_window_is_too_few() -> None:
    with pytest.raises(DataError, match="two windows"):
        streamline(View(make_model("llama")), tokens=TEXT.take(1), probe=1)


@pytest.mark.parametrize("given", [{}, {"loss": "kl"}, {"replacement": "mlp"}, {"replacement": "linear"}])
def test_a_streamed_model_learns_the_same(given: dict[str, Any]) -> None:
    loaded, streamed = (streamline(view, **given) for view in (View(make_model("llama")), streamed_view("llama")))
    assert streamed.digest == loaded.digest
