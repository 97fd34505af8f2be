"""The result files of BlockPruner and MultiPruner, read into ops and written from plans.

MultiPruner keeps prefixes of units that its search has sorted by magnitude, and does not say so in the file; ops
name the units themselves. May import `models`, `score` and its neighbours in `plans`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from sned.canon import format_span
from sned.errors import PlanError
from sned.plans.ops import DropLayers, DropSublayer, Keep, Op
from sned.score.magnitude import units_by_magnitude

if TYPE_CHECKING:
    from pathlib import Path

    from sned.models.family import Sublayer
    from sned.models.geometry import Axis, Geometry
    from sned.models.view import View
    from sned.plans.plan import Plan, Stage

AXES: dict[Sublayer, str] = {"attn": "attn.group", "mlp": "mlp.hidden"}
_NAMES: dict[Literal["mha", "mlp"], Sublayer] = {"mha": "attn", "mlp": "mlp"}
"""What BlockPruner calls a sublayer."""
_SORTING = {"multipruner": {"order": "magnitude"}, "imported": {"reorder": True}}
"""The option with which a stage's method keeps the units of greatest magnitude."""


class _MultiPruner(BaseModel):
    """The `pruning_config.json` of MultiPruner; widths are rows of the query and up projections, by layer."""

    model_config = ConfigDict(strict=True, extra="forbid")

    pruned_attn_idx: list[int] = []
    pruned_mlp_idx: list[int] = []
    pruned_attn_width: dict[int, int] = {}
    pruned_mlp_width: dict[int, int] = {}
    weight_reorder: bool | None = None
    """Whether widths count units by magnitude; their files leave it out, sned's do not."""

    def of(self, which: Sublayer) -> tuple[list[int], dict[int, int]]:
        """Return the layers that lose a sublayer, in order, and the width of each layer's."""
        if which == "attn":
            return self.pruned_attn_idx, self.pruned_attn_width
        return self.pruned_mlp_idx, self.pruned_mlp_width


_BLOCKPRUNER = TypeAdapter(dict[int, list[tuple[Literal["mha", "mlp"], int]]])


def read_published(path: Path, view: View, *, reorder: bool = True, blocks: int | None = None) -> list[Op]:
    """Return the ops of a BlockPruner or MultiPruner result file, whichever it is.

    Args:
        path: The file.
        view: The whole model that the result is for.
        reorder: Whether a MultiPruner file counts units by magnitude (`--weight_reorder`).
        blocks: How many removals of a BlockPruner file to take; all by default.

    Raises:
        PlanError: it is neither, or does not fit the model.
    """
    whose, document = open_published(path)
    try:
        if whose == "blockpruner":
            return ops_from_blockpruner(document, view, blocks)
        if blocks is not None:
            raise PlanError("only a BlockPruner result can be taken in part")
        return ops_from_multipruner(document, view, reorder=reorder)
    except PlanError as error:
        raise PlanError(f"{path}: {error.args[0]}", hint=error.hint) from error


def open_published(path: Path) -> tuple[Literal["blockpruner", "multipruner"], dict[str, Any]]:
    """Return whose result a file holds, and what it says.

    Raises:
        PlanError: it is neither's.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise PlanError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(document, dict) or not document:
        raise PlanError(f"{path} is neither a BlockPruner nor a MultiPruner result")
    return "blockpruner" if all(name.isdecimal() for name in document) else "multipruner", document


def ops_from_blockpruner(document: Mapping[str, Any], view: View, n: int | None = None) -> list[Op]:
    """Return the first `n` removals of a BlockPruner result (all by default), in the order they were made.

    The file lists after each step what is gone, sorted by layer; a step's removal is what the one before lacks.

    Raises:
        PlanError: the file is malformed, has fewer steps, or does not fit the model.
    """
    steps = _parse(_BLOCKPRUNER, document, "BlockPruner")
    if sorted(steps) != list(range(1, len(steps) + 1)):
        raise PlanError(f"the steps should be numbered from 1 without gaps, not {format_span(steps)}")
    if n is not None and not 1 <= n <= len(steps):
        raise PlanError(f"the file holds 1 to {len(steps)} removals, not {n}")
    _check_whole(view)
    ops: list[Op] = []
    before: set[tuple[Literal["mha", "mlp"], int]] = set()
    for step in range(1, (n or len(steps)) + 1):
        now = set(steps[step])
        if not before < now or len(now) != step or len(steps[step]) != step:
            raise PlanError(f"step {step} should list the removals of step {step - 1} and one more")
        ((name, layer),) = now - before
        _check_layers([layer], view, f"step {step}")
        ops.append(DropSublayer(layer=layer, which=_NAMES[name]))
        before = now
    return ops


def ops_from_multipruner(document: Mapping[str, Any], view: View, *, reorder: bool) -> list[Op]:
    """Return the ops of a MultiPruner `pruning_config.json`: sublayers removed, then units kept.

    Args:
        document: What the file holds.
        view: The whole model; its weights are read if widths count units by magnitude.
        reorder: Whether they do; a file that says so itself is believed.

    Raises:
        PlanError: the file is malformed, or does not fit the model.
    """
    parsed = _parse(TypeAdapter(_MultiPruner), document, "MultiPruner")
    by_magnitude = reorder if parsed.weight_reorder is None else parsed.weight_reorder
    _check_whole(view)
    ops: list[Op] = []
    kept: dict[str, int] = {}
    for which, kind in AXES.items():
        gone, listed = parsed.of(which)
        _check_layers(gone, view, f"pruned_{which}_idx")
        if len(set(gone)) != len(gone):
            raise PlanError(f"pruned_{which}_idx lists a layer twice")
        ops += [DropSublayer(layer=layer, which=which) for layer in gone]
        _check_layers(listed, view, f"pruned_{which}_width", complete=True)
        for layer in sorted(listed.keys() - set(gone)):
            axis = view.axis(f"layers.{layer}.{kind}")
            if (units := _units(listed[layer], axis, which)) < axis.size:
                kept[axis.name] = units
    orders = units_by_magnitude(view, kept) if by_magnitude else {name: range(n) for name, n in kept.items()}
    return ops + [Keep(axis=name, units=tuple(orders[name][:n])) for name, n in kept.items()]


def to_blockpruner(plan: Plan) -> dict[str, list[list[str | int]]]:
    """Return a plan as a BlockPruner result: what is gone after each removal, sorted by layer.

    A whole layer counts as two removals, its attention first.

    Raises:
        PlanError: the plan does more than remove layers and sublayers.
    """
    names = {which: name for name, which in _NAMES.items()}
    remains = _Remains.of(plan)
    if remains.kept:
        raise PlanError(f"BlockPruner removes whole blocks; the plan trims {min(remains.kept)}")
    steps: dict[str, list[list[str | int]]] = {}
    for n in range(1, len(remains.removed) + 1):
        done = sorted(remains.removed[:n], key=lambda removal: removal[0])
        steps[str(n)] = [[names[which], layer] for layer, which in done]
    return steps


def to_multipruner(plan: Plan, geometry: Geometry) -> dict[str, Any]:
    """Return a plan as a MultiPruner `pruning_config.json`, with `weight_reorder` added to say how units count.

    Args:
        plan: What to write. A file holds numbers of units only, so the plan must keep the first ones of each axis,
            or come from the method `multipruner` (or from such a file), which keeps the largest.
        geometry: That of the base model.

    Raises:
        PlanError: the file cannot say what the plan does, or the plan is for another model.
    """
    if plan.base.geometry != geometry.digest:
        raise PlanError("the plan is for another model than the one given")
    remains = _Remains.of(plan)
    scattered = [name for name, units in remains.kept.items() if units != set(range(len(units)))]
    by_magnitude = bool(scattered)
    trims = [stage for stage in plan.stages if any(isinstance(op, Keep) for op in stage.ops)]
    if by_magnitude and not all(_sorts(stage) for stage in trims):
        raise PlanError(
            f"MultiPruner's format holds how many units are kept, not which; the plan keeps some of {scattered[0]} "
            "that are neither the first nor known to be the largest"
        )
    document: dict[str, Any] = {}
    for which in AXES:
        document[f"pruned_{which}_idx"] = [layer for layer, what in remains.removed if what == which]
    for which, kind in AXES.items():
        axes = [axis for axis in geometry.axes.values() if axis.kind == kind]
        document[f"pruned_{which}_width"] = {
            str(axis.layer): len(remains.kept.get(axis.name, range(axis.size))) * axis.tap_block for axis in axes
        }
    return document | {"weight_reorder": by_magnitude}


@dataclass
class _Remains:
    """What a plan removes, in order, and which units it keeps of the axes that it trims."""

    removed: list[tuple[int, Sublayer]] = field(default_factory=list)
    kept: dict[str, set[int]] = field(default_factory=dict)

    @classmethod
    def of(cls, plan: Plan) -> _Remains:
        """Follow the ops of a plan.

        Raises:
            PlanError: an op is neither a removal nor a trim.
        """
        remains = cls()
        for op in plan.ops:
            match op:
                case DropLayers():
                    for layer in op.layers:
                        remains._remove(layer, "attn", "mlp")
                case DropSublayer():
                    remains._remove(op.layer, op.which)
                case Keep() if op.axis.split(".", 2)[2] in AXES.values():
                    remains.kept[op.axis] = set(op.units) & remains.kept.get(op.axis, set(op.units))
                case _:
                    raise PlanError(f"the published formats cannot say this: {op.describe()}")
        return remains

    def _remove(self, layer: int, *sublayers: Sublayer) -> None:
        for which in sublayers:
            self.kept.pop(f"layers.{layer}.{AXES[which]}", None)
            if (layer, which) not in self.removed:
                self.removed.append((layer, which))


def _parse(schema: TypeAdapter[Any], document: Mapping[str, Any], whose: str) -> Any:
    try:
        # as JSON, where the keys of an object are texts
        return schema.validate_json(json.dumps(document), strict=True)
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:8]]
        raise PlanError(f"not a {whose} result:" + "".join(f"\n    {line}" for line in lines)) from error


def _check_whole(view: View) -> None:
    """Refuse a model that was cut already: the files count the units and layers of a whole one."""
    geometry = view.geometry
    whole = len(view.layers) == geometry.n_layers and all(
        len(view.alive.get(name, ())) == axis.size for name, axis in geometry.axes.items()
    )
    if not whole:
        raise PlanError("a published result is for a whole model; this one was cut already")


def _check_layers(listed: Mapping[int, Any] | list[int], view: View, where: str, *, complete: bool = False) -> None:
    depth = view.geometry.n_layers
    if beyond := [layer for layer in listed if not 0 <= layer < depth]:
        raise PlanError(
            f"{where} names layers {format_span(beyond)}; the model has 0-{depth - 1}",
            hint="the file is for another model, or its layers are numbered wrongly (one published file adds 32)",
        )
    if complete and listed and len(listed) != depth:
        raise PlanError(f"{where} lists {len(listed)} layers, the model has {depth}", hint="is it for another model?")


def _units(width: int, axis: Axis, which: Sublayer) -> int:
    """Return how many units a width is."""
    full, where = axis.size * axis.tap_block, f"pruned_{which}_width keeps {width} in layer {axis.layer}"
    if width > full:
        raise PlanError(f"{where}, the model has {full}", hint="is the file for another model?")
    if width < 1:
        raise PlanError(where, hint=f"list the layer in pruned_{which}_idx instead")
    if width % axis.tap_block:
        raise PlanError(f"{where}, which is no whole number of KV groups of {axis.tap_block}")
    return width // axis.tap_block


def _sorts(stage: Stage) -> bool:
    return stage.method in _SORTING and _SORTING[stage.method].items() <= stage.options.items()
