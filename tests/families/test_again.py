"""A pruned model is a model: seen afresh, it has its own coordinates, and can be pruned again."""

from __future__ import annotations

import pytest
import torch
from kit.compare import TOLERANCE, assert_same_logits, logits, swept
from kit.planning import plan_on
from kit.tiny import DENSE_NAMES, FAMILY_NAMES, LAYERS, STAND_INS, family_of, make_model, stand_ins

from sned.models import surgery, trial
from sned.models.count import count
from sned.models.view import View
from sned.plans.ops import DropLayers, DropSublayer, Keep, Op, Replace
from sned.runtime.sweep import Site, Sweep

TENSORS = stand_ins(6)
CUTS: dict[str, list[Op]] = {
    "drop 1,3": [DropLayers(layers=[1, 3])],
    "no attention 0": [DropSublayer(layer=0, which="attn")],
    "no attention 2": [DropSublayer(layer=2, which="attn")],
    "one group 1": [Keep(axis="layers.1.attn.group", units=[0])],
    **{f"{spec} for 2-3": [Replace(layers=[2, 3], spec=spec, tensor=spec)] for spec in STAND_INS},
    "linear for 0": [Replace(layers=[0], tensor="linear")],
}
MLP_CUTS: dict[str, list[Op]] = {
    "no mlp 1": [DropSublayer(layer=1, which="mlp")],
    "no mlp 2, no attention 2": [DropSublayer(layer=2, which="mlp"), DropSublayer(layer=2, which="attn")],
    "trim 1": [Keep(axis="layers.1.mlp.hidden", units=range(3, 40, 2))],
    "parts of the stream": [
        Keep(axis="layers.1.attn.read", units=range(1, 30, 2)),
        Keep(axis="layers.1.mlp.read", units=range(4, 20)),
        Keep(axis="layers.2.attn.write", units=[0, 3, 5, 6, 21]),
        Keep(axis="layers.4.mlp.write", units=range(0, 30, 3)),
    ],
}
CASES = [*((n, c) for n in FAMILY_NAMES for c in CUTS), *((n, c) for n in DENSE_NAMES for c in MLP_CUTS)]
every_case = pytest.mark.parametrize(("name", "cut"), CASES)


def pruned(name: str, cut: str) -> View:
    view = View(make_model(name))
    for op in (CUTS | MLP_CUTS)[cut]:
        op.apply(view, TENSORS)
    return view


@every_case
def test_it_has_the_sizes_it_has(name: str, cut: str) -> None:
    once = pruned(name, cut)
    again = View(once.model)
    assert count(again) == count(once)
    assert again.geometry.n_layers == len(once.layers)
    present = {axis: len(units) for axis, units in once.alive.items()}
    numbers = {base: position for position, base in enumerate(once.layers)}
    expected = {
        f"layers.{numbers[axis.layer]}.{axis.kind}": present[axis.name]
        for axis in once.geometry.axes.values()
        if axis.layer in numbers and axis.name in present and not gone(once, axis.layer, axis.kind)
    }
    assert {axis.name: axis.size for axis in again.geometry.axes.values()} == expected


def gone(view: View, layer: int, kind: str) -> bool:
    """Whether the sublayer of an axis was removed."""
    if kind.startswith("attn"):
        return not view.has_branch(layer, "attn")
    return view.is_replaced(layer) or not any(True for _ in view.branch(layer, "mlp").parameters())


@every_case
def test_it_runs_layer_by_layer(name: str, cut: str) -> None:
    again = View(pruned(name, cut).model)
    assert_same_logits(swept(again), logits(again.model), exact=True)


@every_case
def test_what_is_left_of_a_layer_adds_up(name: str, cut: str) -> None:
    again = View(pruned(name, cut).model)
    sweep, end = Sweep(again), again.geometry.n_layers
    layers = [i for i in again.layers if not again.is_replaced(i)]
    groups = [(Site("resid", i), Site("attn", i), Site("mlp", i), Site("resid", i + 1)) for i in layers]
    (chunk,) = sweep.chunks(torch.arange(3, 27).view(2, 12))
    served = dict(sweep.activations(chunk, groups))
    assert len(served) == len(layers) >= end - 1
    for before, attn, mlp, after in served.values():
        torch.testing.assert_close(before + attn + mlp, after, **TOLERANCE)


@pytest.mark.parametrize("name", FAMILY_NAMES)
@pytest.mark.parametrize("cut", ["no attention 0", "one group 1", "linear for 2-3", "lowrank for 2-3"])
def test_it_can_be_planned_and_cut_again(name: str, cut: str) -> None:
    once = pruned(name, cut)
    view, twin = View(once.model), once.fork()
    plan = plan_on(view, "uidl", layers=1)
    fresh = View(twin.model)
    plan.apply(fresh)
    assert_same_logits(logits(fresh.model), logits(view.model), exact=True)


@pytest.mark.parametrize("name", [n for n in DENSE_NAMES if "attn.group" not in family_of(n).inexact])
def test_what_was_trimmed_can_be_trimmed_further(name: str) -> None:
    once = pruned(name, "trim 1")
    groups = View(make_model(name)).axis("layers.1.attn.group").size
    if groups > 2:
        Keep(axis="layers.1.attn.group", units=range(groups - 1)).apply(once, {})
    view, twin = View(once.model), View(once.fork().model)
    for kind in ("mlp.hidden", "attn.group"):
        axis = view.axis(f"layers.1.{kind}")
        mask = torch.zeros(axis.size)
        mask[: (axis.size + 1) // 2] = 1.0
        with trial.gate(twin, twin.axis(axis.name), mask):
            want = logits(twin.model)
        surgery.keep(view, axis, range((axis.size + 1) // 2))
        assert_same_logits(logits(view.model), want)
        surgery.keep(twin, twin.axis(axis.name), range((axis.size + 1) // 2))
    assert len(view.layers) == LAYERS
