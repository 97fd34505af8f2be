"""The size of the weights of a unit, against a row by row computation from each layout's description."""

from __future__ import annotations

import pytest
import torch
from kit.planted import layers_of
from kit.tiny import DENSE_NAMES, family_of, make_model

from sned.models import surgery
from sned.models.geometry import is_conv1d, path
from sned.models.view import View
from sned.models.weights import LiveWeights
from sned.score.magnitude import largest_first, unit_magnitudes

KINDS = ("attn.group", "mlp.hidden")
every_axis = pytest.mark.parametrize(("name", "kind"), [(name, kind) for name in DENSE_NAMES for kind in KINDS])
LAYER = 2


def scores(view: View, kind: str) -> torch.Tensor:
    return unit_magnitudes(view.axis(f"layers.{LAYER}.{kind}"), LiveWeights(view.layer(LAYER)))


def row_norms(view: View, module: str) -> torch.Tensor:
    """The L1 norm of the weights of each output of a linear module."""
    linear = view.layer(LAYER).get_submodule(module)
    weight = linear.weight.T if is_conv1d(linear) else linear.weight
    return torch.stack([row.abs().sum() for row in weight.double()])


def heads_of(view: View, name: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The norms of all query, key and value rows: `[heads, head_dim]` and twice `[groups, head_dim]`."""
    family, geometry = family_of(name), view.geometry
    heads, groups, width = geometry.n_heads, geometry.n_kv_groups, geometry.head_dim
    if not family.qkv:
        rows = [row_norms(view, path(family.attn, role)).view(-1, width) for role in (family.q, family.k, family.v)]
        return rows[0], rows[1], rows[2]
    fused = row_norms(view, path(family.attn, family.qkv)).view(-1, width)
    if family.qkv_layout == "concat":
        return fused[:heads], fused[heads : heads + groups], fused[heads + groups :]
    per_group = fused.view(groups, -1, width)
    return per_group[:, :-2].reshape(heads, width), per_group[:, -2], per_group[:, -1]


def by_hand(view: View, name: str, kind: str) -> list[float]:
    family, geometry = family_of(name), view.geometry
    if kind == "attn.group":
        q, k, v = heads_of(view, name)
        ratio = geometry.n_heads // geometry.n_kv_groups
        return [
            sum(
                float(q[h, row] + k[group, row] + v[group, row])
                for h in range(group * ratio, (group + 1) * ratio)
                for row in range(geometry.head_dim)
            )
            / (ratio * geometry.head_dim)
            for group in range(geometry.n_kv_groups)
        ]
    if family.gate_up:
        both = row_norms(view, path(family.mlp, family.gate_up))
        return (both[: len(both) // 2] + both[len(both) // 2 :]).tolist()
    return sum(row_norms(view, path(family.mlp, role)) for role in (family.gate, family.up) if role).tolist()


@every_axis
def test_scores_are_those_of_the_definition(name: str, kind: str) -> None:
    view = View(make_model(name))
    expected = torch.tensor(by_hand(view, name, kind), dtype=torch.float64)
    torch.testing.assert_close(scores(view, kind), expected)


@every_axis
def test_what_reads_the_units_does_not_count(name: str, kind: str) -> None:
    model = make_model(name)
    view, family = View(model), family_of(name)
    before = scores(view, kind)
    reader = path(family.attn, family.o) if kind == "attn.group" else path(family.mlp, family.down)
    layers_of(model)[LAYER].get_submodule(reader).weight.data *= 100
    for param_name, param in layers_of(model)[LAYER].named_parameters():
        if param_name.endswith("bias") or param.dim() == 1:
            param.data += 7
    assert torch.equal(scores(view, kind), before)


@every_axis
def test_a_cut_leaves_the_scores_of_the_other_units(name: str, kind: str) -> None:
    view = View(make_model(name))
    axis = view.axis(f"layers.{LAYER}.{kind}")
    before, kept = scores(view, kind), range(0, axis.size, 2)
    surgery.keep(view, axis, kept)
    assert torch.equal(scores(view, kind), before[list(kept)])


@every_axis
def test_the_largest_unit_comes_first(name: str, kind: str) -> None:
    view = View(make_model(name))
    axis = view.axis(f"layers.{LAYER}.{kind}")
    for slot in axis.slots:
        weight = view.layer(LAYER).get_parameter(slot.param).data
        weight.narrow(slot.dim, slot.offset + (axis.size - 1) * slot.block, slot.block).mul_(50)
    assert largest_first(scores(view, kind))[0] == axis.size - 1


def test_ties_keep_their_order() -> None:
    assert largest_first(torch.tensor([1.0, 3.0, 1.0, 3.0, 2.0])) == [1, 3, 4, 0, 2]
    assert largest_first(torch.ones(1000)) == list(range(1000))
