"""Healing: what training moves, what it must not move, and that it is written down as ops."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from kit.compare import assert_same_logits, logits
from kit.planning import Kill, Messages, plan_on
from kit.planted import spoken_by, streamed_view
from kit.tiny import FAMILY_NAMES, LAYERS, make_model

from sned.errors import ConfigError
from sned.models.view import View
from sned.plans.ops import Keep, SetWeight
from sned.runtime import journal as journals
from sned.runtime.context import Context
from sned.runtime.journal import Journal
from sned.runtime.predictions import Predictions
from sned.runtime.sweep import Cost
from sned.training.healing import Healing, heal
from sned.training.masters import Masters, all_matrices
from sned.training.schedule import Schedule

if TYPE_CHECKING:
    from pathlib import Path

    from sned.plans.ops import Op
    from sned.plans.plan import Plan

TEXT = spoken_by(make_model("llama"), windows=48, length=16)
MUCH = spoken_by(make_model("llama"), windows=512, length=16)
"""Enough that what is learned from the text alone holds for other text."""
SCHEDULE = Schedule(batch=4, epochs=3, lr=5e-3)


def healed(
    name: str, plan: Plan, folder: Path | None = None, view: View | None = None, progress: Any = None, **given: Any
) -> tuple[View, Context, list[Op]]:
    """Apply a plan to a model of a family, then heal it."""
    view = view or View(make_model(name))
    dense = view.fork()
    plan.apply(view)
    text = given.pop("text", TEXT)
    ctx = Context(view, dense, text, journal=Journal(folder), progress=progress or Messages())
    ctx.tensors, ctx.ops = dict(plan.tensors), list(plan.ops)
    ops: list[Op] = []
    recompute = given.pop("recompute", False)
    for op in heal(ctx, Healing(**{"schedule": SCHEDULE} | given), recompute=recompute):
        op.apply(view, ctx.tensors)
        ops.append(op)
    return view, ctx, ops


def cut(name: str, method: str = "uidl", **given: Any) -> Plan:
    return plan_on(View(make_model(name)), method, tokens=TEXT, **given)


def gained(ctx: Context) -> float:
    """By which share the held-out loss fell."""
    held_out = [row[3] for row in ctx.scores["training"]["curve"]]
    return 1 - min(held_out) / held_out[0]


@pytest.mark.parametrize("name", FAMILY_NAMES)
def test_every_family_can_be_healed(name: str) -> None:
    """With the ops of its plan and of its training a fresh model is the healed one, to the bit."""
    plan = cut(name)
    view, ctx, ops = healed(name, plan, rank=4, last=2)
    assert gained(ctx) > 0
    assert {op.layer for op in ops if isinstance(op, SetWeight)} == set(list(view.layers)[-2:])
    fresh = View(make_model(name))
    plan.apply(fresh)
    for op in ops:
        op.apply(fresh, ctx.tensors)
    assert_same_logits(logits(fresh.model), logits(view.model), exact=True)


@pytest.mark.parametrize("loss", ["kl", "ce", "states"])
@pytest.mark.parametrize("train", ["lora", "full"])
def test_every_loss_falls(train: str, loss: str) -> None:
    given = {"text": MUCH, "schedule": Schedule(batch=16, lr=5e-4)} if loss == "ce" else {}
    _, ctx, _ = healed("llama", cut("llama"), train=train, loss=loss, **given)
    assert gained(ctx) > 0


def test_only_maps_are_trained_if_asked_for() -> None:
    plan = cut("llama", "replaceme")
    folded = next(op.layer for op in plan.ops if op.op == "fold")
    _, ctx, ops = healed("llama", plan, train="transform")
    assert [(op.layer, op.param) for op in ops if isinstance(op, SetWeight)] == [(folded, "mlp.down_proj.weight")]
    assert gained(ctx) > 0
    alone = cut("llama", "replaceme", standalone=True)
    _, _, ops = healed("llama", alone, train="transform", text=MUCH, schedule=Schedule(batch=16, lr=5e-4))
    assert [op.param for op in ops if isinstance(op, SetWeight)] == ["weight"]
    with pytest.raises(ConfigError, match="no linear map"):
        healed("llama", cut("llama"), train="transform")


@pytest.mark.parametrize("train", ["lora", "full"])
@pytest.mark.parametrize(("method", "given"), [("wanda", {}), ("sparsegpt", {"pattern": "2:4", "sparsity": 0.5})])
def test_zeros_stay_where_they_are(method: str, given: dict[str, Any], train: str) -> None:
    plan = cut("llama", method, **given)
    pruned = View(make_model("llama"))
    plan.apply(pruned)
    view, ctx, _ = healed("llama", plan, train=train, keep_zeros=True)
    assert gained(ctx) > 0
    for index in view.layers:
        before, after = (dict(v.layer(index).named_parameters()) for v in (pruned, view))
        for name, param in before.items():
            if param.dim() == 2:
                assert torch.equal(param == 0, after[name] == 0), name
    free, _, _ = healed("llama", plan, train=train)
    assert (free.layer(0).get_parameter("mlp.up_proj.weight") == 0).sum() < 10


def test_narrow_layers_are_healed_too() -> None:
    view = View(make_model("llama"))
    dense = view.fork()
    op = Keep(axis="layers.1.mlp.hidden", units=range(8))
    op.apply(view, {})
    ctx = Context(view, dense, MUCH)
    ctx.ops = [op]
    for made in heal(ctx, Healing(schedule=Schedule(batch=16, lr=1e-3), rank=4)):
        made.apply(view, ctx.tensors)
    assert gained(ctx) > 0


def test_the_change_may_grow_with_depth() -> None:
    plan = cut("llama")
    pruned = View(make_model("llama"))
    plan.apply(pruned)
    whole, _, _ = healed("llama", plan)
    part, _, _ = healed("llama", plan, first_share=0.25)
    first, *_, last = whole.layers
    for layer, share in ((first, 0.25), (last, 1.0)):
        for name, base in pruned.layer(layer).named_parameters():
            if base.dim() == 2:
                moved, less = (v.layer(layer).get_parameter(name) - base for v in (whole, part))
                torch.testing.assert_close(less, share * moved, rtol=1e-3, atol=1e-6)


def test_killed_and_resumed_it_ends_with_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journals, "SAVE_EVERY_SECONDS", 0.0)
    plan = cut("llama")
    straight, _, _ = healed("llama", plan)
    for after in (0, 7):
        with pytest.raises(KeyboardInterrupt):
            healed("llama", plan, tmp_path, progress=Kill(after))
    again, _, _ = healed("llama", plan, tmp_path)
    assert_same_logits(logits(again.model), logits(straight.model), exact=True)


def test_what_does_not_help_changes_nothing() -> None:
    plan = cut("llama")
    wild = Schedule(lr=30.0, warmup=0.0)
    view, ctx, ops = healed("llama", plan, train="full", schedule=wild, progress=(m := Messages()))
    assert ops == []
    assert ctx.scores["training"]["best_step"] == 0
    assert any("no better" in message for message in m.warnings)
    pruned = View(make_model("llama"))
    plan.apply(pruned)
    assert_same_logits(logits(view.model), logits(pruned.model), exact=True)


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral", "gemma2"])
@pytest.mark.parametrize(
    "given", [{"train": "lora"}, {"train": "full", "keep_zeros": True}, {"train": "full", "last": 2}]
)
def test_layers_that_run_again_or_are_read_when_needed_learn_the_same(name: str, given: dict[str, Any]) -> None:
    """To the bit: what a layer keeps for the way back, and where its weights are until then, changes no number."""
    plan, given = cut(name), {"schedule": Schedule(batch=12, lr=5e-3), **given}
    kept, ctx, _ = healed(name, plan, **given)
    assert gained(ctx) > 0
    again, _, _ = healed(name, plan, recompute=True, **given)
    assert_same_logits(logits(again.model), logits(kept.model), exact=True)
    streamed, _, _ = healed(name, plan, view=streamed_view(name), **given)
    for layer in kept.layers:
        with streamed.materialised(layer) as block:
            for param, value in kept.layer(layer).named_parameters():
                assert torch.equal(block.get_parameter(param), value), (layer, param)


@pytest.mark.parametrize("recompute", [False, True])
def test_recomputing_keeps_only_what_enters_a_layer(recompute: bool) -> None:
    """Counted as autograd saves it, on the way forward."""
    view, seen = View(make_model("llama")), dict[int, int]()

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    masters = Masters(view, all_matrices(view, view.layers), rank=2)
    model = Predictions(view, Cost(), masters, recompute=recompute)
    ids = MUCH.ids[:64]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = model.hidden(ids)
    entering = ids.numel() * view.geometry.hidden * 4
    assert (sum(seen.values()) <= LAYERS * entering) is recompute
    assert out.requires_grad
