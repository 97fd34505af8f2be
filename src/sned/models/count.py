"""Counting what a model costs: parameters, floating-point operations, cache bytes. May import its neighbours."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from sned.models.family import Sublayer
    from sned.models.geometry import Axis
    from sned.models.view import View


@dataclass(frozen=True, slots=True)
class Counts:
    """Sizes of a model; also used for differences between two."""

    params: int
    """All parameters, tied ones once."""
    body_params: int
    """Parameters of the decoder layers."""
    flops_per_token: int
    """Two per weight of every matrix a token is multiplied with, the output head included.

    Scores between tokens depend on the context length, and are left out.
    """
    kv_bytes_per_token: int
    """Bytes that one token takes in the cache of keys and values."""

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.params + other.params,
            self.body_params + other.body_params,
            self.flops_per_token + other.flops_per_token,
            self.kv_bytes_per_token + other.kv_bytes_per_token,
        )

    def __neg__(self) -> Counts:
        return Counts(-self.params, -self.body_params, -self.flops_per_token, -self.kv_bytes_per_token)

    def __sub__(self, other: Counts) -> Counts:
        return self + -other


def count(view: View) -> Counts:
    """Count a model as it is now, whether its weights are present or on meta."""
    geometry = view.geometry
    body = sum(p.numel() for layer in view.layers.values() for p in layer.parameters())
    flops = sum(layer_flops(layer, geometry.active_expert_ratio) for layer in view.layers.values())
    bytes_per_value = view.dtype.itemsize
    return Counts(
        params=sum(p.numel() for p in view.model.parameters()),
        body_params=body,
        flops_per_token=flops + head_flops(view),
        kv_bytes_per_token=sum(layer_kv_values(view, i) for i in view.layers) * bytes_per_value,
    )


def head_flops(view: View) -> int:
    """Count two operations per weight of the output head; its bias is added, not multiplied."""
    head = view.model.get_output_embeddings()
    return 0 if head is None else 2 * head.weight.numel()


def layer_flops(layer: nn.Module, active_expert_ratio: float) -> int:
    """Count two operations per matrix weight that a token meets in one layer."""
    flops = 0.0
    for param in layer.parameters():
        if param.dim() == 2:
            flops += 2 * param.numel()
        elif param.dim() == 3:
            # stacked experts, of which a token meets a few
            flops += 2 * param.numel() * active_expert_ratio
    return round(flops)


def layer_kv_values(view: View, index: int) -> int:
    """Count the numbers that one token leaves in the cache of one layer."""
    if not view.has_branch(index, "attn"):
        return 2
    groups = len(view.alive[f"layers.{index}.attn.group"])
    return 2 * groups * view.geometry.head_dim


def layer_params(view: View, index: int, kept: Mapping[str, Any]) -> Any:
    """Count the parameters of a layer if only so many units of some axes, by name, were kept of those that are there.

    Numbers may be tensors, in which the count is then differentiable.
    """
    gone: dict[tuple[str, int], Any] = {}
    for axis in [a for a in view.geometry.axes.values() if a.layer == index and a.name in kept]:
        lost = len(view.alive[axis.name]) - kept[axis.name]
        for slot in axis.slots:
            place = slot.param, slot.dim
            gone[place] = gone.get(place, 0) + lost * slot.block
    sizes = [
        math.prod(length - gone.get((name, dim), 0) for dim, length in enumerate(param.shape))
        for name, param in view.layer(index).named_parameters()
    ]
    return sum(sizes)


def branch_counts(view: View, layer: int, which: Sublayer) -> Counts:
    """Count what a sublayer takes, with the norms that serve it alone."""
    inside = tuple(f"{name}." for name in view.parts(layer, which))
    params = [p for n, p in view.layer(layer).named_parameters() if n.startswith(inside)]
    total = sum(p.numel() for p in params)
    kv = layer_kv_values(view, layer) * view.dtype.itemsize if which == "attn" else 0
    return Counts(total, total, sum(2 * p.numel() for p in params if p.dim() == 2), kv)


def units_counts(view: View, axis: Axis, n: int) -> Counts:
    """Count what `n` units of an axis take."""
    alive = len(view.alive[axis.name])
    params = flops = 0
    for slot in axis.slots:
        param = view.layer(axis.layer).get_parameter(slot.param)
        across = param.numel() // param.shape[slot.dim]
        params += n * slot.block * across
        flops += 2 * n * slot.block * across if param.dim() == 2 else 0
    kv = layer_kv_values(view, axis.layer) * view.dtype.itemsize * n // alive if axis.kind == "attn.group" else 0
    return Counts(params, params, flops, kv)
