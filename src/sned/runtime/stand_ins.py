"""Putting simple maps of the stream in the place of whole layers, so that less is lost than by plain removal.

May import `score` and its neighbours in `runtime`.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Annotated

from sned.plans.ops import Op, Replace
from sned.runtime.depth import layers_of
from sned.runtime.map_maker import few_tokens
from sned.runtime.statistics import Updates
from sned.score import updates
from sned.score.select import fuse
from sned.score.updates import Kind, Update

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import torch

    from sned.models.view import View
    from sned.runtime.context import Context
    from sned.score.select import Cut

StandInOption = Annotated[
    Kind | None,
    "for whole layers, what stands in the place of each run of them: their mean update, one factor per channel, or "
    "a low-rank update",
]


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


def _fit(ctx: Context, update: Update, kind: Kind, rank: int) -> torch.Tensor:
    if update.moments is not None:
        few_tokens(ctx, update.moments)
        return updates.low_rank(update.moments, rank)
    return updates.shift(update) if kind == "shift" else updates.scale(update)
