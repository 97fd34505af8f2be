"""UIDL: drop the run of consecutive layers whose input and output are most alike."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from sned.plans.ops import DropLayers, Op
from sned.runtime.context import Context
from sned.runtime.depth import boundaries, check_span, explain, layers_of, measure_distances
from sned.runtime.method import method
from sned.runtime.statistics import Positions
from sned.score.select import ranked_cuts


@method(paper="arXiv:2403.17887", prunes="depth", title="The Unreasonable Ineffectiveness of the Deeper Layers")
def uidl(
    ctx: Context,
    *,
    layers: int,
    positions: Annotated[Positions, "tokens that count: all, or the last of each window as published"] = "all",
    span: Annotated[str | None, "cut these layers instead of choosing, such as 13:19 for 13 to 18"] = None,
    min_start: Annotated[int, "first layer that may go"] = 1,
    max_end: Annotated[int | None, "end (excluded) of the layers that may go; default: all but the last"] = None,
) -> Iterator[Op]:
    """Drop the run of layers with the least angular distance between its input and its output.

    Distances are averaged over calibration tokens (eq. 6 of the paper, without healing).

    Departures: all tokens of packed windows count by default, not only the last; the last layer is protected.
    """
    triangles = measure_distances(ctx, positions)
    explain(ctx, triangles)
    if span is None:
        start, end = ranked_cuts(triangles["angular"], layers, boundaries(ctx, min_start, max_end))[0]
    else:
        start, end = check_span(ctx, span, layers)
    ctx.scores["cuts"] = [{"start": start, "end": end, "distance": triangles["angular"][start][end]}]
    yield DropLayers(layers=layers_of(ctx, (start, end)))
