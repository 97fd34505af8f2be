"""The random counterpart of a plan: as much removed of everything, at places drawn by chance.

May import `models` and its neighbours in `plans`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from sned.canon import format_span
from sned.errors import PlanError
from sned.plans.ops import DropLayers, DropSublayer, Keep, Merge, Op, Replace

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sned.models.family import Sublayer
    from sned.models.geometry import Geometry


def random_twin(ops: Iterable[Op], geometry: Geometry, generator: torch.Generator) -> list[Op]:
    """Return ops that leave a model of the same shape as `ops` do, with every place drawn by `generator`.

    As many whole layers, attentions and MLPs go, and as many units are kept of as many axes; so the two models
    have equally many parameters. The first and the last layer are left alone if `ops` leave them alone. Ops that
    only change values have no counterpart.

    Raises:
        PlanError: the layers differ in size, or `ops` replace layers.
    """
    _require_equal_layers(geometry)
    shape = _Shape.of(ops)
    ends = {0, geometry.n_layers - 1} - shape.touched
    free = _shuffled([layer for layer in range(geometry.n_layers) if layer not in ends], generator)
    whole, free = _take(free, len(shape.layers))
    attn, free = _take(free, len(shape.attn))
    mlp, free = _take(free, len(shape.mlp))
    gone: dict[Sublayer, list[int]] = {"attn": attn, "mlp": mlp}
    twin: list[Op] = []
    if whole:
        twin.append(DropLayers(layers=tuple(whole)))
    twin += [DropSublayer(layer=i, which=which) for which, layers in gone.items() for i in layers]
    for which, trimmed in shape.trimmed().items():
        homes = [i for i in range(geometry.n_layers) if i not in {*ends, *whole, *gone[which]}]
        for layer, sizes in zip(_shuffled(homes, generator), trimmed, strict=False):
            for kind, size in sizes.items():
                axis = geometry.axes[f"layers.{layer}.{kind}"]
                units = _shuffled(list(range(axis.size)), generator)[:size]
                twin.append(Keep(axis=axis.name, units=tuple(units)))
    return twin


@dataclass
class _Shape:
    """What ops remove, wherever they remove it."""

    layers: set[int] = field(default_factory=set)
    attn: set[int] = field(default_factory=set)
    """Layers that lose their attention and keep their MLP."""
    mlp: set[int] = field(default_factory=set)
    kept: dict[str, set[int]] = field(default_factory=dict)

    @classmethod
    def of(cls, ops: Iterable[Op]) -> _Shape:
        shape = cls()
        for op in ops:
            match op:
                case DropLayers() | Merge():  # what a base layer becomes is a change of values
                    shape.layers |= set(op.layers)
                case DropSublayer():
                    (shape.attn if op.which == "attn" else shape.mlp).add(op.layer)
                case Keep():
                    shape.kept[op.axis] = set(op.units) & shape.kept.get(op.axis, set(op.units))
                case Replace():
                    raise PlanError(f"there is no random counterpart of a fitted map: {op.describe()}")
                case _:
                    pass  # changes values, not the shape
        shape.layers |= shape.attn & shape.mlp
        shape.attn -= shape.layers
        shape.mlp -= shape.layers
        return shape

    @property
    def touched(self) -> set[int]:
        return self.layers | self.attn | self.mlp | {int(name.split(".")[1]) for name in self.kept}

    def trimmed(self) -> dict[Sublayer, list[dict[str, int]]]:
        """Return how many units are kept of the trimmed axes of each attention and each MLP that remains, by kind."""
        found: dict[Sublayer, dict[int, dict[str, int]]] = {"attn": {}, "mlp": {}}
        for name, units in self.kept.items():
            _, layer, kind = name.split(".", 2)
            which: Sublayer = "attn" if kind.startswith("attn") else "mlp"
            lost = self.attn if which == "attn" else self.mlp
            if int(layer) not in self.layers | lost:
                found[which].setdefault(int(layer), {})[kind] = len(units)
        return {which: list(sizes.values()) for which, sizes in found.items()}


def _require_equal_layers(geometry: Geometry) -> None:
    first = geometry.layer_shapes[0]
    if odd := [i for i, shapes in enumerate(geometry.layer_shapes) if shapes != first]:
        raise PlanError(f"layers {format_span(odd)} differ in size from layer 0, so no random twin is as large")


def _shuffled(items: list[int], generator: torch.Generator) -> list[int]:
    return [items[i] for i in torch.randperm(len(items), generator=generator).tolist()]


def _take(items: list[int], n: int) -> tuple[list[int], list[int]]:
    return items[:n], items[n:]
