"""What a structure is chosen among: groups of channels, KV groups, blocks or layers, each of them kept or not.

May import `score` and its neighbours in `runtime`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import Field

from sned.errors import BudgetError
from sned.models.count import branch_counts, units_counts
from sned.models.matrices import matrix_of
from sned.plans.ops import DropLayers, DropSublayer, Keep, Op
from sned.runtime.greedy import out_of_reach, present_blocks
from sned.runtime.statistics import Fluctuation, Received
from sned.runtime.widths import EVEN, MLP, axes_to_cut
from sned.score.importance import unit_fluctuations, unit_norms
from sned.score.magnitude import largest_first, units_by_magnitude

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sned.models.geometry import Axis
    from sned.models.view import View
    from sned.runtime.context import Context

PartKind = Literal["widths", "blocks", "layers"]
MlpGroup = Annotated[int | None, Field(ge=1), "channels that stay or go together, ranked alike; default: 64, or fewer"]
Across = Annotated[
    Literal["uniform", "global", "standard"],
    "the same share of every axis, or the least anywhere: per parameter, or in standard deviations of its axis",
]
UnitOrder = Annotated[
    Literal["magnitude", "wandasp", "flap", "stored"],
    "which units of an axis go first: the smallest by their weights, those that wandasp or flap would cut first, or the"
    " last ones as they are stored",
]
_FEW = 16
"""An MLP has at least so many groups, if its channels allow it."""


@dataclass(frozen=True, slots=True)
class Part:
    """Something that can be kept or not: units of an axis, or what one op removes.

    Attributes:
        name: How scores name it, such as ``mlp.3:0``, ``attn.3`` or ``layer.3``.
        params: How many parameters go with it.
        axis: The axis of its units; empty for a part that an op removes.
        units: Base numbers of the units.
        op: What removes it, if it is no units.
        worth: Of one unit on average, against others of its axis; higher is better.
    """

    name: str
    params: int
    axis: str = ""
    units: tuple[int, ...] = ()
    op: Op | None = None
    worth: float = 0.0


def received_by(view: View, axis: Axis) -> tuple[int, Literal["heads", "channels"], int]:
    """Return what a statistic of what the reader of an axis receives must know: layer, kind of site, and channels."""
    return axis.layer, "channels" if axis.kind == MLP else "heads", len(view.alive[axis.name]) * axis.tap_block


def reader_weight(view: View, axis: Axis) -> torch.Tensor:
    """Return the matrix `[out, in]` that reads the units of an axis.

    Raises:
        NumericalError: it holds NaN or infinity.
    """
    with view.materialised(axis.layer) as block:
        return matrix_of(view, axis.layer, axis.taps[0]).of(block)


def unit_worths(ctx: Context, axes: Sequence[Axis]) -> dict[str, torch.Tensor]:
    """Return what the present units of each axis are worth, `[units]`, on what the dense layers receive (Wanda-sp).

    Raises:
        NumericalError: an activation is not finite.
    """
    view, worths = ctx.view, dict[str, torch.Tensor]()
    received = [Received(*received_by(view, axis)) for axis in axes]
    for axis, norm in zip(axes, ctx.collect(*received), strict=True):
        worths[axis.name] = unit_norms(reader_weight(view, axis), norm, len(view.alive[axis.name]))
    return worths


def fluctuations(ctx: Context, axes: Sequence[Axis]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Return what the present units of each axis are worth, `[units]` (FLAP), and the mean that their readers receive.

    Raises:
        NumericalError: an activation is not finite.
    """
    view, found = ctx.view, dict[str, tuple[torch.Tensor, torch.Tensor]]()
    received = [Fluctuation(*received_by(view, axis)) for axis in axes]
    for axis, (mean, variance) in zip(axes, ctx.collect(*received), strict=True):
        found[axis.name] = unit_fluctuations(reader_weight(view, axis), variance, len(view.alive[axis.name])), mean
    return found


def unit_orders(ctx: Context, axes: Sequence[Axis], order: str) -> dict[str, list[int]]:
    """Return the present units of each axis in a `UnitOrder`, those that go last first.

    Raises:
        NumericalError: an activation is not finite.
    """
    alive = {axis.name: ctx.view.alive[axis.name] for axis in axes}
    if order == "magnitude":
        return units_by_magnitude(ctx.view, alive)
    if order == "stored":
        return {name: list(units) for name, units in alive.items()}
    if order == "wandasp":
        worths = unit_worths(ctx, axes)
    else:
        worths = {name: worth for name, (worth, _) in fluctuations(ctx, axes).items()}
    return {name: [alive[name][i] for i in largest_first(worth)] for name, worth in worths.items()}


def find_parts(
    ctx: Context,
    kind: PartKind,
    cut: str = "both",
    mlp_group: int | None = None,
    worths_of: Callable[[Context, Sequence[Axis]], dict[str, torch.Tensor]] = unit_worths,
) -> list[Part]:
    """Return all parts of a kind, in the order of layers.

    Units of an axis are ranked by what they are worth, and go together with those of like rank.

    Args:
        ctx: The context.
        kind: What a part is.
        cut: The kinds of axes: mlp, heads or both.
        mlp_group: Channels in a part.
        worths_of: Says what the present units of some axes are worth, `[units]` by axis; by default Wanda-sp.

    Raises:
        UnsupportedModelError: channels are to be cut, and the MLPs are mixtures of experts; or heads are, and they
            carry positions.
        BudgetError: nothing of that kind may go.
    """
    view = ctx.view
    if kind == "layers":
        sizes = {i: sum(p.numel() for p in view.layer(i).parameters()) for i in view.layers}
        parts = [Part(f"layer.{i}", n, op=DropLayers(layers=(i,))) for i, n in sizes.items()]
    elif kind == "blocks":
        parts = [
            Part(f"{which}.{i}", branch_counts(view, i, which).params, op=DropSublayer(layer=i, which=which))
            for which, i in present_blocks(view)
        ]
    else:
        parts = list(_width_parts(ctx, cut, mlp_group, worths_of))
    if len(parts) < 2:
        raise BudgetError(f"there are no {kind} to choose among")
    return parts


def cuts(parts: Sequence[Part], kept: torch.Tensor) -> list[Op]:
    """Return the ops that leave of all parts those that are kept, `[parts]`."""
    units: dict[str, list[int]] = {}
    trimmed, ops = set[str](), list[Op]()
    for part, stays in zip(parts, kept.tolist(), strict=True):
        if part.op is not None:
            ops += [] if stays else [part.op]
        elif stays:
            units.setdefault(part.axis, []).extend(part.units)
        else:
            trimmed.add(part.axis)
    return ops + [Keep(axis=name, units=tuple(own)) for name, own in units.items() if name in trimmed]


def require_floors(parts: Sequence[Part], masks: torch.Tensor, ranks: torch.Tensor) -> torch.Tensor:
    """Return masks `[masks, parts]` in which every axis keeps something: where nothing is, what ranks highest."""
    masks = masks.clone()
    for places in _axes(parts):
        masks[~masks[:, places].any(1), places[int(ranks[places].argmax())]] = True
    return masks


def keep_highest(ctx: Context, parts: Sequence[Part], ranks: torch.Tensor, goal: int) -> torch.Tensor:
    """Return which parts stay, `[parts]`: those that rank lowest go, until `goal` parameters are gone.

    Ties go to the first; the last part of an axis stays, and so does the last block or layer.

    Raises:
        BudgetError: all that may go is not enough.
    """
    kept, gone = torch.ones(len(parts), dtype=torch.bool), 0
    left = Counter(part.axis for part in parts)
    for i in ranks.argsort(stable=True).tolist():
        if gone >= goal:
            break
        if left[parts[i].axis] > 1:
            left[parts[i].axis] -= 1
            kept[i] = False
            gone += parts[i].params
    if gone < goal:
        raise out_of_reach(ctx, goal, gone)
    return kept


def ranked(parts: Sequence[Part], across: str) -> torch.Tensor:
    """Return by what parts are compared, the lowest going first, `[parts]`, float64."""
    if across == "uniform":
        return percentiles(parts)
    if across == "standard":
        return standardised(parts)
    return torch.tensor([part.worth * len(part.units) / part.params for part in parts], dtype=torch.float64)


def standardised(parts: Sequence[Part]) -> torch.Tensor:
    """Return the worth of each part in standard deviations from the mean of its axis, `[parts]`, float64."""
    worths = torch.tensor([part.worth for part in parts], dtype=torch.float64)
    for places in _axes(parts):
        own = worths[places]
        worths[places] = (own - own.mean()) / own.std(correction=0).clamp_min(1e-12)
    return worths


def relative(parts: Sequence[Part]) -> torch.Tensor:
    """Return the worth of each part as a multiple of the mean of its axis, `[parts]`, float64."""
    worths = torch.tensor([part.worth for part in parts], dtype=torch.float64)
    for places in _axes(parts):
        worths[places] = worths[places] / worths[places].mean().clamp_min(1e-300)
    return worths


def percentiles(parts: Sequence[Part]) -> torch.Tensor:
    """Return the share of its axis that ranks below the middle of each part, `[parts]`: by it, all lose as much."""
    worths = torch.tensor([part.worth for part in parts], dtype=torch.float64)
    for places in _axes(parts):
        order = torch.tensor(places)[worths[places].argsort(stable=True)]
        worths[order] = (torch.arange(len(places), dtype=torch.float64) + 0.5) / len(places)
    return worths


def _axes(parts: Sequence[Part]) -> list[list[int]]:
    """Return the places of the parts of each axis; those that ops remove are one, too."""
    found: dict[str, list[int]] = {}
    for i, part in enumerate(parts):
        found.setdefault(part.axis, []).append(i)
    return list(found.values())


def _width_parts(
    ctx: Context,
    cut: str,
    mlp_group: int | None,
    worths_of: Callable[[Context, Sequence[Axis]], dict[str, torch.Tensor]],
) -> Iterator[Part]:
    axes = axes_to_cut(ctx, cut)
    worths = worths_of(ctx, axes)
    for axis in axes:
        yield from _parts_of(ctx.view, axis, worths[axis.name], mlp_group)


def _parts_of(view: View, axis: Axis, worths: torch.Tensor, mlp_group: int | None) -> Iterator[Part]:
    alive = view.alive[axis.name]
    size = 1
    if axis.kind == MLP:
        size = mlp_group or min(EVEN, max(1, len(alive) // _FEW))
    order = largest_first(worths)
    which = axis.kind.partition(".")[0]
    for number, start in enumerate(range(0, len(alive), size)):
        places = order[start : start + size]
        params = units_counts(view, axis, len(places)).params
        units = tuple(sorted(alive[i] for i in places))
        yield Part(f"{which}.{axis.layer}:{number}", params, axis.name, units, worth=float(worths[places].mean()))
