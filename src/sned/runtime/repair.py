"""Linear repair: after cuts, refit the output projections that can make up for what is missing.

Every branch that was trimmed, or that is the last before a gap, gets new output weights by least squares, from the
first layer to the last, each on what the repaired layers before it compute. May import `score` and its neighbours.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import torch

from sned.canon import format_span
from sned.errors import DataError
from sned.models.folding import output_projection, refit_obstacle
from sned.models.geometry import is_conv1d
from sned.plans.ops import SetWeight
from sned.runtime.lockstep import Stream
from sned.runtime.sweep import SUBLAYERS
from sned.score.refit import joined, moments_of, refit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sned.models.family import Sublayer
    from sned.models.view import View
    from sned.plans.ops import Op
    from sned.runtime.context import Context
    from sned.score.linear_map import Moments

RepairOption = Annotated[
    Literal["linear"] | None, "linear: afterwards refit output projections by least squares, so that less is lost"
]
HOLD_OUT = 4
"""One window of so many checks the fit instead of taking part in it."""


@dataclass(frozen=True, slots=True)
class Spot:
    """A branch to refit, and the place in the dense stream that the stream after it should be like."""

    layer: int
    which: Sublayer
    place: int
    """`2 * layer` enters a layer, `2 * layer + 1` has its attention added."""


def repair(ctx: Context) -> Iterator[Op]:
    """Yield the ops that refit what the method has cut so far; to be called when all cuts are made.

    A branch that cannot be refitted, or whose refit would not help on windows held out, stays as it is.

    Raises:
        DataError: there are fewer than two windows of calibration text.
        NumericalError: an activation is not finite.
    """
    spots = _possible(ctx, find_spots(ctx.dense, ctx.view))
    if not spots:
        return
    tokens = ctx.calibration
    if len(tokens) < 2:
        raise DataError("a repair needs two windows of calibration text, of which one checks it", hint="give more")
    rows = ctx.scores.setdefault("repair", [])
    with ctx.progress.task("repair", len(spots) * tokens.n_tokens) as advance:
        refitter = _Refitter(ctx, advance)
        for spot in spots:
            key = [*ctx.state(tokens), list(astuple(spot))]
            values = ctx.journal.load_tensors("refit", key)
            if values is None:
                values = refitter.new_values(spot)
                ctx.journal.save_tensors("refit", key, values)
            else:
                advance(tokens.n_tokens)
            ridge, left = values.pop("found").tolist()
            rows.append({"layer": spot.layer, "which": spot.which, "ridge": ridge if values else None, "left": left})
            for param in sorted(values):  # a file gives them back in this order too
                yield SetWeight(layer=spot.layer, param=param, tensor=ctx.put(f"{param}.{spot.layer}", values[param]))


def find_spots(dense: View, view: View) -> list[Spot]:
    """Return the branches of a cut view that were trimmed, or that must make up for others, in order."""
    trimmed = {
        (axis.layer, axis.kind.partition(".")[0])
        for axis in view.geometry.axes.values()
        if axis.name in view.alive and len(view.alive[axis.name]) < len(dense.alive[axis.name])
    }
    places = [_place(*branch) for branch in _branches(dense)]
    spots: list[Spot] = []
    branches, done = list(_branches(view)), 0
    for (layer, which), following in zip(branches, [*branches[1:], None], strict=True):
        place = 2 * view.geometry.n_layers if following is None else _read(view, *following)
        if following == (layer, "mlp") and view.parallel:
            place += 1  # both read the same stream, so the first answers for itself alone
        answers_for = sum(done <= p < place for p in places)
        if which is not None and (answers_for > 1 or (layer, which) in trimmed):
            spots.append(Spot(layer, which, place))
        done = place
    return spots


def _branches(view: View) -> Iterator[tuple[int, Sublayer | None]]:
    """Yield the branches that a view still has, in the order of the stream; None for a map in a layer's place."""
    for layer in view.layers:
        if view.is_replaced(layer):
            yield layer, None
        for which in SUBLAYERS:
            if view.has_branch(layer, which):
                yield layer, which


def _place(layer: int, which: Sublayer | None) -> int:
    """Return the place in the stream to which a branch adds."""
    return 2 * layer + (which == "mlp")


def _read(view: View, layer: int, which: Sublayer | None) -> int:
    """Return the place in the stream that a branch reads."""
    return 2 * layer if view.parallel else _place(layer, which)


def _possible(ctx: Context, spots: list[Spot]) -> list[Spot]:
    """Return the spots whose projection writes to the stream directly, and warn of the others."""
    obstacles = {which: refit_obstacle(ctx.view, which) for which in SUBLAYERS}
    for which, obstacle in obstacles.items():
        if obstacle and (layers := [spot.layer for spot in spots if spot.which == which]):
            ctx.progress.warn(f"no repair of the {which} of layers {format_span(layers)}: {obstacle}")
    return [spot for spot in spots if not obstacles[spot.which]]


class _Refitter:
    """Walks through both models side by side, as far as the spots ask for, and fits."""

    def __init__(self, ctx: Context, advance: Callable[[int], None]) -> None:
        self._view, self._advance = ctx.view, advance
        ids = ctx.calibration.ids
        self._dense, self._pruned = Stream(ctx.dense, ids, ctx.cost), Stream(ctx.view, ids, ctx.cost)
        self._held = torch.arange(len(ids)).flip(0) % HOLD_OUT == 0

    def new_values(self, spot: Spot) -> dict[str, torch.Tensor]:
        """Return new float32 values by parameter, none if none help; `found` is the ridge and the share of error left.

        Resumed runs read what this returns from the journal.
        """
        name = output_projection(self._view, spot.which)
        with self._view.materialised(spot.layer) as layer:
            projection = layer.get_submodule(name)
            old = {leaf: p.detach().cpu().double() for leaf, p in projection.named_parameters()}
        bias = "bias" in old
        found = refit(*self._moments(spot, bias=bias), bias=bias)
        if found is None:
            return {"found": torch.tensor([0.0, 1.0], dtype=torch.float64)}
        weight = found.change[:-1] if bias else found.change
        new = {"weight": old["weight"] + (weight if is_conv1d(projection) else weight.T)}
        if bias:
            new["bias"] = old["bias"] + found.change[-1]
        values = {f"{name}.{leaf}": value.float() for leaf, value in new.items()}
        return values | {"found": torch.tensor([found.ridge, found.left], dtype=torch.float64)}

    def _moments(self, spot: Spot, *, bias: bool) -> tuple[Moments, Moments]:
        """Return the moments of the windows that a spot is fitted to, and of those held out."""
        targets, window = self._dense.at(spot.place), 0
        sums: dict[bool, Moments] = {}
        for target, (received, after) in zip(targets, self._pruned.around(spot.layer, spot.which), strict=True):
            held = self._held[window : window + len(target)]
            window += len(target)
            wanted = target.float()
            missing = (wanted - after.float()) / self._view.multiplier
            # what reads the stream divides by its norm, and a few huge states would drown all others
            importance = 1 / wanted.square().mean(-1).clamp_min(1e-12)
            inputs = received.reshape(*wanted.shape[:2], -1)
            for part in held.unique().tolist():
                chosen = (held == part).to(wanted.device)
                picked = (x[chosen].flatten(0, 1) for x in (inputs, missing, importance))
                sums[part] = joined(sums.get(part), moments_of(*picked, bias=bias))
            self._advance(target.shape[0] * target.shape[1])
        return sums[False], sums[True]
