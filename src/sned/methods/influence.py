"""Influence: value every layer or every part of one, remove what is worth least, and emulate it where asked."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from sned.errors import ConfigError
from sned.plans.budget import Goal
from sned.plans.ops import DropLayers, Op
from sned.runtime.context import Context
from sned.runtime.depth import layer_range
from sned.runtime.method import method
from sned.runtime.ranking import branches_of, layers_to_go, parts_to_go, require_blocks
from sned.runtime.search import ObjectiveOption
from sned.runtime.stand_ins import StandInOption, emulate, require_homes, stand_in
from sned.runtime.valuation import (
    Bounded,
    Permutations,
    Unit,
    UnitKind,
    UnitOption,
    Valuation,
    Windows,
    Worth,
    WorthOption,
    find_units,
    value_units,
)

if TYPE_CHECKING:
    from sned.score.updates import Kind


@method(
    paper="arXiv:2407.16286",
    prunes="depth",
    title="A Deeper Look at Depth Pruning of LLMs",
    budgets=("layers", "blocks", "remove"),
    calibration_tokens=16_384,
)
def influence(
    ctx: Context,
    *,
    goal: Goal,
    units: UnitOption = "layers",
    metric: WorthOption = "loo",
    permutations: Permutations = 16,
    bounded: Bounded = True,
    windows: Windows = None,
    objective: ObjectiveOption = "perplexity",
    repair: StandInOption = None,
    rank: Annotated[int, Field(ge=1), "repair lowrank: rank of the update"] = 32,
    sequential: Annotated[bool, "repair: fit each map behind those before it, not all on the dense model"] = False,
    min_start: Annotated[int, "first layer that may go, or lose a part"] = 1,
    max_end: Annotated[int | None, "end (excluded) of those layers; default: all but the last"] = None,
) -> Iterator[Op]:
    """Remove the layers, attentions or MLPs that are worth least, all at once, by a static or an adaptive metric.

    Static ones need one pass: how far a unit turns the stream, or the norm of what it adds. Adaptive ones try
    removals: `loo` each unit alone, `shapley` all units one after the other, in many orders, which tells what units
    are worth together, not what the first few cost. `repair` puts a simple map in the place of each run of removed
    layers: the mean update that the paper emulates, or a low-rank one. That of an attention or an MLP becomes a bias of
    the branch before it.

    Departures: `shapley` samples true Shapley values over antithetic orders; what the released code calls so is an
    affine function of leave-one-out losses, and ranks as `loo` does. Beyond a uniform guess nothing counts, since the
    many orders in which the model breaks early would drown what the others tell (arXiv:1904.02868 cuts orders off so).
    The units that may go are valued while the others stay; the first and the last layer do by default. The low-rank map
    is fitted in closed form, where the paper trains one; `scale` is another paper's. Tokens weigh as the inverse square
    of their norm in whatever stands for layers.
    """
    _check(ctx, units, repair, rank, sequential)
    found = find_units(ctx.view, units, *layer_range(ctx, min_start, max_end))
    whole = units == "layers"
    if whole:
        layers_to_go(ctx, goal, found, repair, rank)  # if it cannot be met, say so before anything is measured
    else:
        require_blocks(ctx, goal, found)
    valued = value_units(
        ctx, found, metric, permutations=permutations, windows=windows, objective=objective, bounded=bounded
    )
    ranked = [found[i] for i in sorted(range(len(found)), key=lambda i: (valued.values[i], i))]
    gone: list[Unit] = []
    if whole:
        gone += ranked[: layers_to_go(ctx, goal, ranked, repair, rank)]
        layers = tuple(unit.layer for unit in gone)
        plain: list[Op] = [DropLayers(layers=layers)]
        yield from stand_in(ctx, layers, repair, rank=rank, sequential=sequential) if repair else plain
    else:
        gone += parts_to_go(ctx, goal, ranked, repair is not None)
        added = list(emulate(ctx, branches_of(gone))) if repair else []  # measured while all is there
        yield from (unit.op for unit in gone)
        yield from added
    _explain(ctx, metric, found, ranked, gone, valued)


def _check(ctx: Context, units: UnitKind, repair: Kind | None, rank: int, sequential: bool) -> None:
    """Refuse options that do not go together.

    Raises:
        ConfigError: a repair that parts of layers do not have, or a rank beyond that of any map.
        UnsupportedModelError: parts of layers are to be made up for, and no bias can do that here.
    """
    if units != "layers" and repair not in (None, "shift"):
        raise ConfigError(
            f"--repair {repair} makes up for whole layers, but --units {units} removes parts of them",
            hint="use --repair shift, or --units layers",
        )
    if units != "layers" and sequential:
        raise ConfigError("--sequential is for whole layers, not for parts of them")
    if units != "layers" and repair is not None:
        require_homes(ctx.view)
    if repair == "lowrank" and rank > ctx.view.geometry.hidden:
        raise ConfigError(f"--rank {rank} is more than the {ctx.view.geometry.hidden} channels of the stream")


def _explain(
    ctx: Context, metric: Worth, units: Sequence[Unit], ranked: Sequence[Unit], gone: Sequence[Unit], valued: Valuation
) -> None:
    """Keep in the scores what every unit is worth, lowest first, and what the values rest on."""
    errors = valued.errors or [None] * len(units)
    known = {unit: pair for unit, *pair in zip(units, valued.values, errors, strict=True)}
    rows = [
        {"unit": unit.name, "removed": unit in gone, "value": known[unit][0], "error": known[unit][1]}
        for unit in ranked
    ]
    ctx.scores["valuation"] = {"metric": metric, **valued.facts}
    ctx.scores["values"] = [row | {"value": None} if math.isinf(row["value"]) else row for row in rows]
