"""Width: what a gate pretends is what a cut does, on every axis of every family."""

from __future__ import annotations

from contextlib import ExitStack
from functools import cache

import pytest
import torch
from kit.compare import assert_differ, assert_same_logits, logits
from kit.planted import dead_units
from kit.tiny import DENSE_NAMES, FAMILY_NAMES, HIDDEN, IDS, LAYERS, family_of, make_model

from sned.errors import PlanError, UnsupportedModelError
from sned.models import folding, merging, surgery, trial
from sned.models.view import View
from sned.plans.ops import Keep

KINDS = ("attn.group", "mlp.hidden", "attn.read", "attn.write", "mlp.read", "mlp.write")


@cache
def axes_of(name: str) -> dict[str, int]:
    return {kind: axis.size for kind in KINDS if (axis := View(make_model(name)).geometry.axes.get(f"layers.0.{kind}"))}


ALL = [(name, kind) for name in FAMILY_NAMES for kind in axes_of(name)]
CUTTABLE = [(name, kind) for name in FAMILY_NAMES for kind, size in axes_of(name).items() if size > 1]
EXACT = [(name, kind) for name, kind in CUTTABLE if kind not in family_of(name).inexact]
every_axis = pytest.mark.parametrize(("name", "kind"), ALL)
every_cuttable_axis = pytest.mark.parametrize(("name", "kind"), CUTTABLE)
every_exact_axis = pytest.mark.parametrize(("name", "kind"), EXACT)


def half(size: int) -> list[int]:
    """Every other unit, the first excluded, so that offsets matter."""
    return list(range(1, size, 2))


def gated(name: str, axis: str, units: list[int]) -> torch.Tensor:
    model = make_model(name)
    view = View(model)
    found = view.axis(axis)
    mask = torch.zeros(found.size)
    mask[units] = 1.0
    with trial.gate(view, found, mask):
        return logits(model)


def cut(name: str, axis: str, *rounds: list[int]) -> torch.Tensor:
    model = make_model(name)
    view = View(model)
    for units in rounds:
        surgery.keep(view, view.axis(axis), units)
    return logits(model)


@every_exact_axis
@pytest.mark.parametrize("layer", [0, LAYERS - 1])
def test_a_gate_equals_a_cut(name: str, kind: str, layer: int) -> None:
    axis = f"layers.{layer}.{kind}"
    units = half(axes_of(name)[kind])
    want = gated(name, axis, units)
    assert_same_logits(cut(name, axis, units), want)
    assert_differ(want, logits(make_model(name)))


@pytest.mark.parametrize(("name", "kind"), [pair for pair in CUTTABLE if pair not in EXACT])
def test_an_axis_declared_inexact_is(name: str, kind: str) -> None:
    units = half(axes_of(name)[kind])
    assert_differ(cut(name, f"layers.1.{kind}", units), gated(name, f"layers.1.{kind}", units))


@every_cuttable_axis
def test_cuts_compose_in_base_units(name: str, kind: str) -> None:
    size = axes_of(name)[kind]
    at_once = list(range(1, size - 1)) if size > 2 else [1]
    step_by_step = cut(name, f"layers.2.{kind}", list(range(size)), list(range(1, size)), at_once)
    assert_same_logits(step_by_step, cut(name, f"layers.2.{kind}", at_once), exact=True)


@every_axis
def test_keeping_all_units_changes_nothing(name: str, kind: str) -> None:
    everything = list(range(axes_of(name)[kind]))
    assert_same_logits(cut(name, f"layers.2.{kind}", everything), logits(make_model(name)), exact=True)


@every_cuttable_axis
def test_units_already_gone_are_kept_in_vain(name: str, kind: str) -> None:
    size = axes_of(name)[kind]
    model = make_model(name)
    view = View(model)
    axis = view.axis(f"layers.2.{kind}")
    surgery.keep(view, axis, range(size // 2, size))
    with pytest.raises(PlanError, match="every unit"):
        surgery.keep(view, axis, range(size // 2))
    surgery.keep(view, axis, [0, size - 1])
    assert view.alive[axis.name] == (size - 1,)


@every_exact_axis
def test_dead_units_can_go_unnoticed(name: str, kind: str) -> None:
    size, axis = axes_of(name)[kind], f"layers.3.{kind}"
    dead = half(size)
    model = dead_units(make_model(name), axis, dead)
    want = logits(model)
    view = View(model)
    surgery.keep(view, view.axis(axis), [u for u in range(size) if u not in dead])
    assert_same_logits(logits(model), want)


@every_axis
def test_the_parameters_of_an_axis_are_counted_by_its_slots(name: str, kind: str) -> None:
    """Every slot fits its parameter, and all units of an axis together own whole dimensions."""
    view = View(make_model(name))
    axis = view.axis(f"layers.1.{kind}")
    owned: dict[tuple[str, int], int] = {}
    for slot in axis.slots:
        length = view.layer(1).get_parameter(slot.param).shape[slot.dim]
        assert slot.offset + axis.size * slot.block <= length
        owned[slot.param, slot.dim] = owned.get((slot.param, slot.dim), 0) + axis.size * slot.block
    for (param, dim), length in owned.items():
        assert length == view.layer(1).get_parameter(param).shape[dim], f"units of {axis.name} miss part of {param}"


@every_axis
def test_gates_are_differentiable(name: str, kind: str) -> None:
    model = make_model(name)
    view = View(model)
    axis = view.axis(f"layers.0.{kind}")
    mask = torch.ones(axis.size, requires_grad=True)
    with trial.gate(view, axis, mask):
        model(IDS, labels=IDS, use_cache=False).loss.backward()
    assert mask.grad is not None
    assert (mask.grad != 0).all()


@pytest.mark.parametrize("name", DENSE_NAMES)
def test_cuts_of_several_layers_add_up(name: str) -> None:
    cuts = {"layers.1.mlp.hidden": range(0, 40, 3), "layers.3.mlp.hidden": range(5, 30)}
    model, twin = make_model(name), make_model(name)
    view, gates = View(model), View(twin)
    with ExitStack() as stack:
        for axis, units in cuts.items():
            surgery.keep(view, view.axis(axis), units)
            stack.enter_context(Keep(axis=axis, units=units).trial(gates, {}))
        want = logits(twin)
    assert_same_logits(logits(model), want)


@every_exact_axis
def test_a_gate_speaks_base_units_after_a_cut(name: str, kind: str) -> None:
    size = axes_of(name)[kind]
    model = make_model(name)
    view = View(model)
    axis = view.axis(f"layers.1.{kind}")
    surgery.keep(view, axis, range(size // 2, size))
    mask = torch.zeros(size)
    mask[size - 1] = 1.0
    with trial.gate(view, axis, mask):
        got = logits(model)
    assert_same_logits(got, cut(name, axis.name, [size - 1]))


def test_what_does_not_exist_is_named() -> None:
    view = View(make_model("llama"))
    with pytest.raises(PlanError, match=r"no axis 'layers.9.mlp.hidden'"):
        view.axis("layers.9.mlp.hidden")
    with pytest.raises(PlanError, match="has units 0-47, not 48"):
        surgery.keep(view, view.axis("layers.0.mlp.hidden"), [1, 48])
    with pytest.raises(PlanError, match="drop the sublayer instead"):
        surgery.keep(view, view.axis("layers.0.mlp.hidden"), [])


@pytest.mark.parametrize("name", [name for name in FAMILY_NAMES if family_of(name).experts])
def test_experts_have_no_width_to_cut(name: str) -> None:
    view = View(make_model(name))
    assert not [axis for axis in view.geometry.axes if axis.endswith("mlp.hidden")]
    with pytest.raises(UnsupportedModelError, match="mixture of experts"):
        surgery.drop_sublayer(view, 1, "mlp")


@pytest.mark.parametrize("name", ["llama", "opt"])
def test_what_sees_part_of_the_stream_absorbs_no_map_and_no_layer(name: str) -> None:
    for kind in ("attn.read", "mlp.write"):
        view = View(make_model(name))
        surgery.keep(view, view.axis(f"layers.2.{kind}"), range(5))
        assert [i for i in view.layers if view.routes(i)] == [2]
        with pytest.raises(PlanError, match="layer 2 reads or writes only some features"):
            merging.merge(view, 1, [2], "mean")
        if kind == "mlp.write":
            with pytest.raises(UnsupportedModelError, match="writes only to some features"):
                folding.fold(view, 2, torch.eye(HIDDEN))
