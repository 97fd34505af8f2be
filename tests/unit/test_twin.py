"""The random counterpart of a plan is as large as the plan's model, and stands elsewhere."""

from __future__ import annotations

import pytest
import torch
from kit.tiny import DENSE_NAMES, LAYERS, make_model

from sned.errors import PlanError
from sned.models.count import Counts, count
from sned.models.view import View
from sned.plans.ops import DropLayers, DropSublayer, Fold, Keep, Merge, Op, Replace
from sned.plans.twin import random_twin

SEEDS = range(6)
CUTS: dict[str, list[Op]] = {
    "layers": [DropLayers(layers=(1, 3))],
    "merges": [Merge(into=2, layers=(3,), mode="mean"), Merge(into=0, layers=(1,), mode="keep_last")],
    "blocks": [DropSublayer(layer=1, which="attn"), DropSublayer(layer=3, which="mlp")],
    "a layer in two": [DropSublayer(layer=2, which="mlp"), DropSublayer(layer=2, which="attn")],
    "widths": [
        Keep(axis="layers.0.mlp.hidden", units=tuple(range(20))),
        Keep(axis="layers.2.mlp.hidden", units=tuple(range(7, 40))),
        Keep(axis="layers.4.attn.group", units=(0,)),
    ],
    "streams": [
        Keep(axis="layers.1.mlp.hidden", units=tuple(range(20))),
        Keep(axis="layers.1.mlp.read", units=tuple(range(9))),
        Keep(axis="layers.3.mlp.read", units=(3,)),
        Keep(axis="layers.3.mlp.write", units=tuple(range(4, 30))),
        Keep(axis="layers.2.attn.read", units=tuple(range(12))),
        Keep(axis="layers.4.attn.write", units=(0, 7)),
    ],
    "twice": [
        Keep(axis="layers.2.mlp.hidden", units=tuple(range(40))),
        Keep(axis="layers.2.mlp.hidden", units=tuple(range(10, 48))),
        Keep(axis="layers.3.mlp.hidden", units=(5,)),
        DropSublayer(layer=3, which="mlp"),
    ],
    "everything": [
        DropLayers(layers=(2,)),
        DropSublayer(layer=0, which="attn"),
        DropSublayer(layer=4, which="mlp"),
        Keep(axis="layers.1.mlp.hidden", units=tuple(range(12))),
        Keep(axis="layers.3.attn.group", units=(0,)),
    ],
}


def twin_of(view: View, ops: list[Op], seed: int) -> list[Op]:
    return random_twin(ops, view.geometry, torch.Generator().manual_seed(seed))


def size(name: str, ops: list[Op]) -> Counts:
    view = View(make_model(name))
    for op in ops:
        op.apply(view, {})
    return count(view)


@pytest.mark.parametrize("name", DENSE_NAMES)
@pytest.mark.parametrize("cut", CUTS)
def test_a_twin_is_as_large(name: str, cut: str) -> None:
    view = View(make_model(name))
    ops = [op for op in CUTS[cut] if not isinstance(op, Keep) or len(op.units) <= view.axis(op.axis).size]
    want = size(name, ops)
    for seed in SEEDS[:2]:
        assert size(name, twin_of(view, ops, seed)) == want


@pytest.mark.parametrize("cut", CUTS)
def test_the_seed_decides(cut: str) -> None:
    view = View(make_model("llama"))
    twins = [twin_of(view, CUTS[cut], seed) for seed in SEEDS]
    assert twins == [twin_of(view, CUTS[cut], seed) for seed in SEEDS]
    assert any(twin != twins[0] for twin in twins)


def test_ends_stay_as_they_were_left() -> None:
    view = View(make_model("llama"))
    middle: list[Op] = [DropLayers(layers=(1,)), Keep(axis="layers.2.mlp.hidden", units=(0, 1))]
    first: list[Op] = [DropSublayer(layer=0, which="attn"), Keep(axis="layers.2.mlp.hidden", units=(0, 1))]
    touched = {layer for seed in range(20) for op in twin_of(view, middle, seed) for layer in op.touched}
    assert touched == {1, 2, 3}
    touched = {layer for seed in range(40) for op in twin_of(view, first, seed) for layer in op.touched}
    assert touched == set(range(LAYERS - 1))


def test_units_are_drawn_not_counted_off() -> None:
    view = View(make_model("llama"))
    ops: list[Op] = [Keep(axis="layers.2.mlp.hidden", units=tuple(range(10)))]
    drawn = [op.units for seed in SEEDS for op in twin_of(view, ops, seed) if isinstance(op, Keep)]
    assert all(len(units) == 10 for units in drawn)
    assert len(set(drawn)) == len(SEEDS)


def test_changes_of_value_have_no_counterpart() -> None:
    view = View(make_model("llama"))
    ops: list[Op] = [DropLayers(layers=(2,)), Fold(layer=1, tensor="map")]
    assert [type(op) for op in twin_of(view, ops, 0)] == [DropLayers]


def test_what_has_no_twin_is_refused() -> None:
    with pytest.raises(PlanError, match="fitted map"):
        twin_of(View(make_model("llama")), [Replace(layers=(1, 2), tensor="map")], 0)
    with pytest.raises(PlanError, match=r"layers 1,3 differ in size from layer 0"):
        twin_of(View(make_model("qwen3_moe")), [DropLayers(layers=(1,))], 0)


def test_whole_layers_of_experts_have_a_twin() -> None:
    view = View(make_model("mixtral"))
    assert size("mixtral", twin_of(view, CUTS["layers"], 1)) == size("mixtral", CUTS["layers"])
