"""Sizes: what counting says before and after is what was removed, with and without the weights."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch
from kit.planted import streamed_view
from kit.tiny import DENSE_NAMES, FAMILY_NAMES, HIDDEN, IDS, LAYERS, STAND_INS, family_of, make_model, stand_ins
from torch.utils.flop_counter import FlopCounterMode

from sned.models.count import branch_counts, count, head_flops, units_counts
from sned.models.view import View
from sned.plans.budget import Budget, layers_to_remove
from sned.plans.ops import DropLayers, DropSublayer, Keep, Op, Replace

if TYPE_CHECKING:
    from sned.models.family import Family, Sublayer

every_family = pytest.mark.parametrize("name", FAMILY_NAMES)
TENSORS = stand_ins(2)
FLOAT32 = 4
CUTS: dict[str, Op] = {
    "drop 0": DropLayers(layers=[0]),
    "drop 1,3": DropLayers(layers=[1, 3]),
    "no attention 2": DropSublayer(layer=2, which="attn"),
    "one group 2": Keep(axis="layers.2.attn.group", units=[0]),
    **{f"{spec} for 1-2": Replace(layers=[1, 2], spec=spec, tensor=spec) for spec in STAND_INS},
}
MLP_CUTS: dict[str, Op] = {
    "no mlp 4": DropSublayer(layer=4, which="mlp"),
    "trim 2": Keep(axis="layers.2.mlp.hidden", units=range(10)),
}
CASES = [*((n, c) for n in FAMILY_NAMES for c in CUTS), *((n, c) for n in DENSE_NAMES for c in MLP_CUTS)]


def sublayer_modules(family: Family, which: Sublayer) -> list[str]:
    """The modules that a sublayer consists of, whether or not a variant has them all."""
    if which == "attn":
        return [family.attn, *family.attn_norms]
    return [*([family.mlp] if family.mlp else [family.up, family.down]), *family.mlp_norms]


def removed_by(op: Op, view: View) -> int:
    """The parameters that an op removes, by the names and shapes of the base model."""
    shapes, family = view.geometry.layer_shapes, view.family
    sizes = [{name: math.prod(shape) for name, shape in layer.items()} for layer in shapes]
    match op:
        case DropLayers():
            return sum(sum(sizes[i].values()) for i in op.layers)
        case Replace():
            return sum(sum(sizes[i].values()) for i in op.layers) - math.prod(STAND_INS[op.spec])
        case DropSublayer():
            parts = sublayer_modules(family, op.which)
            return sum(n for name, n in sizes[op.layer].items() if name.startswith(tuple(f"{p}." for p in parts)))
        case Keep():
            axis = view.axis(op.axis)
            per_unit = sum(
                slot.block * sizes[axis.layer][slot.param] // shapes[axis.layer][slot.param][slot.dim]
                for slot in axis.slots
            )
            return (axis.size - len(op.units)) * per_unit
        case _:
            raise AssertionError(op)


@pytest.mark.parametrize(("name", "cut"), CASES)
def test_the_difference_is_what_was_removed(name: str, cut: str) -> None:
    view, hollow, op = View(make_model(name)), streamed_view(name), (CUTS | MLP_CUTS)[cut]
    dense, expected = count(view), removed_by(op, view)
    assert count(hollow) == dense
    for each in (view, hollow):
        op.apply(each, TENSORS)
    saved = dense - count(view)
    assert (saved.params, saved.body_params) == (expected, expected)
    assert count(hollow) == count(view)
    assert sum(p.numel() for p in view.model.parameters()) == dense.params - expected


@pytest.mark.parametrize("name", DENSE_NAMES)
def test_the_two_sublayers_are_the_layer(name: str) -> None:
    """Nothing of a layer is left over, but for a norm that serves, or may serve, both sublayers."""
    view = View(make_model(name))
    attn, mlp = (branch_counts(view, 1, which).params for which in ("attn", "mlp"))
    shared = 2 * HIDDEN if name in ("phi", "falcon/multi_query", "falcon/serial") else 0
    assert view.geometry.layer_params(1) == attn + mlp + shared


@pytest.mark.parametrize(("name", "which"), [*((n, "attn") for n in FAMILY_NAMES), *((n, "mlp") for n in DENSE_NAMES)])
def test_a_sublayer_counts_what_it_frees(name: str, which: Sublayer) -> None:
    """All but the two numbers that a layer without attention still leaves in the cache, to count positions by."""
    view = View(make_model(name))
    dense, expected = count(view), branch_counts(view, 1, which)
    DropSublayer(layer=1, which=which).apply(view, TENSORS)
    place_holder = 2 * FLOAT32 if which == "attn" else 0
    assert dense - count(view) == replace(expected, kv_bytes_per_token=expected.kv_bytes_per_token - place_holder)


def cuttable() -> list[tuple[str, str]]:
    """One axis of each kind that has more than one unit, in every family."""
    views = {name: View(make_model(name)) for name in FAMILY_NAMES}
    return [(n, a.name) for n, v in views.items() for a in v.geometry.axes.values() if a.layer == 1 and a.size > 1]


@pytest.mark.parametrize(("name", "axis"), cuttable())
def test_units_count_what_they_free(name: str, axis: str) -> None:
    """From the whole axis, and once more from what is left of it; with the weights and without."""
    for view in (View(make_model(name)), streamed_view(name)):
        for gone in (1, 2):
            if len(alive := view.alive[axis]) > gone:
                before, expected = count(view), units_counts(view, view.axis(axis), gone)
                Keep(axis=axis, units=alive[gone:]).apply(view, TENSORS)
                assert before - count(view) == expected


@every_family
def test_parameters_are_those_of_the_model(name: str) -> None:
    model = make_model(name)
    view = View(model)
    assert count(view).params == model.num_parameters() == view.geometry.n_params
    assert count(view).body_params == view.geometry.body_params


COUNTED = ["drop 1,3", "no mlp 4", "one group 2", *(f"{spec} for 1-2" for spec in STAND_INS)]


@pytest.mark.parametrize(("name", "cut"), [(n, c) for n in DENSE_NAMES for c in COUNTED])
def test_operations_are_those_of_the_matrix_products(name: str, cut: str) -> None:
    view = View(make_model(name))
    for op in (None, (CUTS | MLP_CUTS)[cut]):
        if op is not None:
            op.apply(view, TENSORS)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            view.model(IDS, use_cache=False)
        products = {str(op): n for op, n in counter.get_flop_counts()["Global"].items()}
        linear = sum(n for op, n in products.items() if op in ("aten.mm", "aten.addmm"))
        assert count(view).flops_per_token == linear // IDS.numel()


@pytest.mark.parametrize("name", sorted(set(FAMILY_NAMES) - set(DENSE_NAMES)))
def test_a_token_meets_only_its_experts(name: str) -> None:
    view = View(make_model(name))
    assert view.geometry.active_expert_ratio == pytest.approx(0.5)
    spared = sum(
        math.prod(shape) for layer in view.geometry.layer_shapes for shape in layer.values() if len(shape) == 3
    )
    matrices = sum(p.numel() for layer in view.layers.values() for p in layer.parameters() if p.dim() > 1)
    assert count(view).flops_per_token == 2 * (matrices - spared // 2 + head_flops(view) // 2)


@pytest.mark.parametrize(("name", "cut"), [(n, c) for n in FAMILY_NAMES for c in CUTS])
def test_cache_bytes_are_those_of_a_real_cache(name: str, cut: str) -> None:
    view, ids = View(make_model(name)), IDS[:, :3]
    for op in (None, CUTS[cut]):
        if op is not None:
            op.apply(view, TENSORS)
        with torch.no_grad():
            cache = view.model(ids, use_cache=True).past_key_values
        # Falcon's modelling code stores a shared head once per query head; a cache need not
        values = sum(held.unique(dim=1).numel() for layer in cache.layers for held in (layer.keys, layer.values))
        assert count(view).kv_bytes_per_token == values * FLOAT32 // ids.numel()


@every_family
@pytest.mark.parametrize("share", [0.05, 0.3, 0.5])
def test_a_share_is_reached_by_as_few_layers_as_can_be(name: str, share: float) -> None:
    view = View(make_model(name))
    smallest = sorted(range(LAYERS), key=view.geometry.layer_params)
    n = layers_to_remove(Budget(remove=share, remove_of="body"), view.geometry, range(LAYERS))
    total = view.geometry.body_params
    assert sum(view.geometry.layer_params(i) for i in smallest[:n]) >= share * total
    assert sum(view.geometry.layer_params(i) for i in smallest[: n - 1]) < share * total


def test_counts_add_and_subtract() -> None:
    one = count(View(make_model("llama")))
    assert one - one == -one + one
    assert (one + one).params == 2 * one.params
    assert family_of("llama").experts is False
