"""A baseline that any method must beat: drop layers chosen by chance."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from sned.plans.ops import DropLayers, Op
from sned.runtime.context import Context
from sned.runtime.depth import boundaries
from sned.runtime.method import method


@method(paper="", prunes="depth", title="Random layers (baseline)", needs_tokens=False)
def random(ctx: Context, *, layers: int) -> Iterator[Op]:
    """Drop layers drawn uniformly by the seed; the first and the last stay."""
    *candidates, _ = boundaries(ctx, 1, None)
    drawn = torch.randperm(len(candidates), generator=ctx.generator)[:layers]
    yield DropLayers(layers=tuple(candidates[int(i)] for i in drawn))
