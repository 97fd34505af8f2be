"""Putting simple maps of the stream in the place of what goes, so that less is lost than by plain removal.

May import `score` and its neighbours in `runtime`.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Annotated

from sned.errors import UnsupportedModelError
from sned.models.folding import output_projection, refit_obstacle
from sned.plans.ops import AddBias, Op, Replace
from sned.runtime.depth import layers_of
from sned.runtime.map_maker import few_tokens
from sned.runtime.statistics import Additions, Updates
from sned.runtime.sweep import SUBLAYERS
from sned.score import updates
from sned.score.select import fuse
from sned.score.updates import Kind, Update

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    import torch

    from sned.models.family import Sublayer
    from sned.models.view import View
    from sned.runtime.context import Context
    from sned.score.select import Cut

StandInOption = Annotated[
    Kind | None,
    "what stands in the place of what goes: its mean update; for each run of whole layers also one factor per channel, "
    "or a low-rank update",
]
Branch = tuple[int, "Sublayer"]
"""The attention or the MLP of a layer."""


def runs_of(view: View, layers: Iterable[int]) -> list[Cut]:
    """Return the runs of neighbours that present layers make, each with the first boundary after it."""
    following = dict(pairwise([*view.layers, view.geometry.n_layers]))
    return fuse([(i, following[i]) for i in layers])


def stand_in_params(view: View, kind: Kind, rank: int) -> int:
    """Count the parameters of one map."""
    return view.geometry.hidden * (2 * rank if kind == "lowrank" else 1)


def stand_in(ctx: Context, layers: Iterable[int], kind: Kind, *, rank: int, sequential: bool) -> Iterator[Op]:
    """Yield the ops that put one map in the place of each run of layers; `ctx.scores["stand_ins"]` says how well.

    Args:
        ctx: The context; the layers are present.
        layers: Those to replace.
        kind: What stands in their place.
        rank: Of a low-rank update.
        sequential: Fit each map on the stream as it is behind the maps before it, not all on the model as it is now.

    Raises:
        NumericalError: an activation is not finite.
    """
    hidden, rows = ctx.view.geometry.hidden, ctx.scores.setdefault("stand_ins", [])
    wanted = [Updates(*cut, hidden, moments=kind == "lowrank") for cut in runs_of(ctx.view, layers)]
    known = [None] * len(wanted) if sequential else ctx.collect(*wanted, label="measure updates")
    for statistic, found in zip(wanted, known, strict=True):
        update = ctx.collect(statistic, label="measure an update")[0] if found is None else found
        (start, end), tensor = statistic.cut, _fit(ctx, update, kind, rank)
        left = updates.error_left(update, kind, tensor)
        rows.append({"start": start, "end": end, "kind": kind, "tokens": update.tokens, "left": left})
        span = layers_of(ctx, statistic.cut)
        yield Replace(layers=span, spec=kind, tensor=ctx.put(f"{kind}.{start}-{end}", tensor))


def emulate(ctx: Context, gone: Sequence[Branch]) -> Iterator[Op]:
    """Yield biases that add what attentions and MLPs added on average; `ctx.scores["stand_ins"]` says how well.

    A constant joins the bias of the last branch before the gap that stays, or of the one beside it where both run in
    parallel: what is between is gone, so that it meets the stream where the lost branch did.

    Args:
        ctx: The context; the branches are present.
        gone: Those that whoever calls is to remove.

    Raises:
        NumericalError: an activation is not finite.
    """
    view, gone, rows = ctx.view, sorted(gone), ctx.scores.setdefault("stand_ins", [])
    homes = [home_of(view, branch, gone) for branch in gone]
    wanted = [Additions(which, layer, view.geometry.hidden) for layer, which in gone]
    for (layer, which), home, update in zip(
        gone, homes, ctx.collect(*wanted, label="measure what branches add"), strict=True
    ):
        if home is None:
            ctx.progress.warn(f"nothing stands before the {which} of layer {layer} to add what it added")
            continue
        constant = updates.shift(update)
        left = updates.error_left(update, "shift", constant)
        row = {"start": layer, "end": layer + 1, "which": which, "kind": "shift"}
        rows.append(row | {"tokens": update.tokens, "left": left})
        tensor = ctx.put(f"shift.{which}.{layer}", constant / view.multiplier)
        yield AddBias(layer=home[0], which=home[1], tensor=tensor)


def bias_params(view: View, gone: Collection[Branch]) -> int:
    """Count the parameters of the biases that are to stand for some branches, where there are none yet."""
    homes = {home for branch in gone if (home := home_of(view, branch, gone))}
    projections = [view.layer(i).get_submodule(output_projection(view, which)) for i, which in homes]
    return sum(view.geometry.hidden for projection in projections if getattr(projection, "bias", None) is None)


def home_of(view: View, branch: Branch, gone: Collection[Branch]) -> Branch | None:
    """Return the branch whose bias can stand for what another adds on average, if there is one."""
    order: list[Branch] = [(i, which) for i in view.layers for which in SUBLAYERS if view.has_branch(i, which)]
    before = order[: order.index(branch)]
    if view.parallel:  # what the other branch of the layer adds, it adds to the same stream
        before += [other for other in order if other[0] == branch[0] and other != branch]
    return next((other for other in reversed(before) if other not in gone), None)


def require_homes(view: View) -> None:
    """Make sure that branches of this model can take up constants for others.

    Raises:
        UnsupportedModelError: something stands between what they compute and the stream.
    """
    for which in SUBLAYERS:
        if obstacle := refit_obstacle(view, which):
            raise UnsupportedModelError(
                f"no {which} here can add on average what another added: {obstacle}.", hint="leave --repair out"
            )


def _fit(ctx: Context, update: Update, kind: Kind, rank: int) -> torch.Tensor:
    if update.moments is not None:
        few_tokens(ctx, update.moments)
        return updates.low_rank(update.moments, rank)
    return updates.shift(update) if kind == "shift" else updates.scale(update)
