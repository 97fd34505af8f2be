"""The frozen shape of a base model: its layers, and the axes along which units can be cut.

Built once from a live or meta model, then never changed: plans speak these coordinates. May import `family`.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from sned.canon import digest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn
    from transformers import PretrainedConfig

    from sned.models.family import Family, Sublayer


@dataclass(frozen=True, slots=True)
class Slot:
    """Where the units of an axis live in one parameter.

    Unit `u` owns the elements `offset + u * block` up to `offset + (u + 1) * block` of dimension `dim`.
    `param` is named relative to the decoder layer.
    """

    param: str
    dim: int
    offset: int
    block: int


@dataclass(frozen=True, slots=True)
class Axis:
    """A set of units that must be kept or cut together.

    Multiplying the input of each module in `taps`, or its output where `tap_output` says so, by 0 or 1 per unit (each
    unit owns `tap_block` consecutive features) is equivalent to the cut.
    """

    name: str
    layer: int
    size: int
    slots: tuple[Slot, ...]
    taps: tuple[str, ...]
    tap_block: int
    tap_output: bool = False

    @property
    def kind(self) -> str:
        """The axis name without its layer, such as `mlp.hidden`."""
        return self.name.split(".", 2)[2]

    @property
    def which(self) -> Sublayer:
        """The sublayer whose units they are."""
        return "attn" if self.kind.startswith("attn") else "mlp"


@dataclass(frozen=True)
class Geometry:
    """Sizes and axes of a base model, enough for budget arithmetic without its weights."""

    model_type: str
    n_layers: int
    hidden: int
    n_heads: int
    n_kv_groups: int
    head_dim: int
    vocab: int
    n_params: int
    """All parameters, tied ones counted once."""
    layer_shapes: tuple[Mapping[str, tuple[int, ...]], ...] = field(repr=False)
    """Shape of every parameter of every layer, by layer-relative name."""
    active_expert_ratio: float = 1.0
    """Share of the experts that one token runs through."""
    axes: Mapping[str, Axis] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def digest(self) -> str:
        """Identify the geometry; equal for two checkpoints of the same architecture and size."""
        facts: dict[str, Any] = {k: v for k, v in asdict(self).items() if k != "axes"}
        facts["layer_shapes"] = [{k: list(v) for k, v in layer.items()} for layer in self.layer_shapes]
        return digest(facts)

    def layer_params(self, layer: int) -> int:
        """Count the parameters of one base layer."""
        return sum(math.prod(shape) for shape in self.layer_shapes[layer].values())

    @property
    def body_params(self) -> int:
        """Count the parameters of all base layers."""
        return sum(self.layer_params(i) for i in range(self.n_layers))


def n_kv_groups(config: PretrainedConfig) -> int:
    """Return how many key-value heads a config describes; every family spells it differently."""
    if getattr(config, "multi_query", False) and not getattr(config, "new_decoder_architecture", False):
        return 1
    for name in ("num_key_value_heads", "num_kv_heads"):
        if value := getattr(config, name, None):
            return int(value)
    return int(config.num_attention_heads)


def build_axes(layer: nn.Module, index: int, family: Family, ratio: int, head_dim: int) -> list[Axis]:
    """Return the axes of one layer: KV groups, MLP channels, and the features of the stream that both branches use.

    A group has `ratio` query heads. A mixture of experts has no MLP axes; what was removed or replaced has none at all.
    """
    weights = {name for name, _ in layer.named_parameters()}
    axes: list[Axis] = []
    if f"{path(family.attn, family.o)}.weight" in weights:
        axes.append(_group_axis(layer, index, family, ratio, head_dim))
        axes += _stream_axes(layer, index, family, "attn")
    if not family.experts and f"{path(family.mlp, family.down)}.weight" in weights:
        axes.append(_mlp_axis(layer, index, family))
        axes += _stream_axes(layer, index, family, "mlp")
    return axes


def readers(family: Family, which: Sublayer) -> tuple[str, ...]:
    """Return the linear modules of a sublayer that read what enters it, relative to the layer."""
    if which == "attn":
        names = [family.qkv] if family.qkv else [family.q, family.k, family.v]
        return tuple(path(family.attn, name) for name in names)
    names = [family.gate_up] if family.gate_up else [name for name in (family.gate, family.up) if name]
    return tuple(path(family.mlp, name) for name in names)


def way_in(family: Family, which: Sublayer) -> str:
    """Return the module whose input is what a sublayer reads: its own, or its first where it has none."""
    return family.attn if which == "attn" else family.mlp or family.up


def way_out(family: Family, which: Sublayer) -> str:
    """Return the module whose output is what a sublayer computes: its own, or its last where it has none."""
    return family.attn if which == "attn" else family.mlp or family.down


def writer(family: Family, which: Sublayer) -> str:
    """Return the linear module whose output a sublayer adds to the stream, relative to the layer."""
    return path(family.attn, family.o) if which == "attn" else path(family.mlp, family.down)


def path(*parts: str | None) -> str:
    """Join the parts of a module path that exist."""
    return ".".join(part for part in parts if part)


def is_conv1d(module: nn.Module) -> bool:
    """Tell whether a module stores its weight as `[in, out]`, as GPT-2's Conv1D does."""
    return type(module).__name__ == "Conv1D"


def _linear_slots(layer: nn.Module, name: str, *, output: bool, parts: list[tuple[int, int]]) -> list[Slot]:
    """Return the slots of `(offset, block)` parts along the output or input features of a linear module."""
    module = layer.get_submodule(name)
    dim = int(output == is_conv1d(module))
    slots = [Slot(f"{name}.weight", dim, offset, block) for offset, block in parts]
    if output and getattr(module, "bias", None) is not None:
        slots += [Slot(f"{name}.bias", 0, offset, block) for offset, block in parts]
    return slots


def _in_features(layer: nn.Module, name: str) -> int:
    """Return how many features a linear module reads."""
    return layer.get_parameter(f"{name}.weight").shape[0 if is_conv1d(layer.get_submodule(name)) else 1]


def _stream_axes(layer: nn.Module, index: int, family: Family, which: Sublayer) -> list[Axis]:
    """Return the axes whose units are the features of the stream that a sublayer reads, and those that it writes."""
    taps, end = readers(family, which), writer(family, which)
    read = [slot for tap in taps for slot in _linear_slots(layer, tap, output=False, parts=[(0, 1)])]
    write = _linear_slots(layer, end, output=True, parts=[(0, 1)])
    weight = layer.get_parameter(f"{end}.weight")
    n_written = weight.shape[1 if is_conv1d(layer.get_submodule(end)) else 0]
    name = f"layers.{index}.{which}"
    return [
        Axis(f"{name}.read", index, _in_features(layer, taps[0]), tuple(read), taps, 1),
        Axis(f"{name}.write", index, n_written, tuple(write), (end,), 1, tap_output=True),
    ]


def _mlp_axis(layer: nn.Module, index: int, family: Family) -> Axis:
    down = path(family.mlp, family.down)
    size = _in_features(layer, down)
    slots = _linear_slots(layer, down, output=False, parts=[(0, 1)])
    if family.gate_up:
        slots += _linear_slots(layer, path(family.mlp, family.gate_up), output=True, parts=[(0, 1), (size, 1)])
    else:
        for role in filter(None, (family.gate, family.up)):
            slots += _linear_slots(layer, path(family.mlp, role), output=True, parts=[(0, 1)])
    return Axis(f"layers.{index}.mlp.hidden", index, size, tuple(slots), (down,), 1)


def _group_axis(layer: nn.Module, index: int, family: Family, ratio: int, width: int) -> Axis:
    """Return the axis whose unit is one KV group: its key-value head and the `ratio` query heads it serves."""
    out = path(family.attn, family.o)
    groups = _in_features(layer, out) // (ratio * width)
    slots = _linear_slots(layer, out, output=False, parts=[(0, ratio * width)])
    if family.qkv:
        parts = {
            "concat": [
                (0, ratio * width),
                (groups * ratio * width, width),
                (groups * (ratio + 1) * width, width),
            ],
            "head": [(0, 3 * width)],
            "group": [(0, (ratio + 2) * width)],
        }[family.qkv_layout]
        slots += _linear_slots(layer, path(family.attn, family.qkv), output=True, parts=parts)
    else:
        slots += _linear_slots(layer, path(family.attn, family.q), output=True, parts=[(0, ratio * width)])
        for role in (family.k, family.v):
            slots += _linear_slots(layer, path(family.attn, role), output=True, parts=[(0, width)])
    if family.full_qk_norm:
        slots.append(Slot(path(family.attn, "q_norm.weight"), 0, 0, ratio * width))
        slots.append(Slot(path(family.attn, "k_norm.weight"), 0, 0, width))
    return Axis(f"layers.{index}.attn.group", index, groups, tuple(slots), (out,), ratio * width)
