"""ShortGPT: drop the layers that turn the residual stream least, wherever they are."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Annotated

from sned.plans.ops import DropLayers, Op
from sned.runtime.context import Context
from sned.runtime.depth import boundaries, explain, measure_distances
from sned.runtime.method import method
from sned.score.select import lowest


@method(
    paper="arXiv:2403.03853",
    prunes="depth",
    title="ShortGPT: Layers in Large Language Models are More Redundant Than You Expect",
)
def shortgpt(
    ctx: Context,
    *,
    layers: int,
    min_start: Annotated[int, "first layer that may go"] = 1,
    max_end: Annotated[int | None, "end (excluded) of the layers that may go; default: all but the last"] = None,
) -> Iterator[Op]:
    """Drop the layers with the lowest block influence, one minus the mean cosine of their input and output.

    One shot, not necessarily consecutive (eq. 1 of the paper).

    Departure: the first and the last layer are protected by default.
    """
    triangles = measure_distances(ctx, "all")
    explain(ctx, triangles)
    cosine = triangles["cosine"]
    steps = pairwise(boundaries(ctx, min_start, max_end))
    yield DropLayers(layers=tuple(lowest({i: cosine[i][following] for i, following in steps}, layers)))
