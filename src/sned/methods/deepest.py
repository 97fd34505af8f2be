"""A baseline that looks at nothing: drop the deepest layers but the last."""

from __future__ import annotations

from collections.abc import Iterator

from sned.plans.ops import DropLayers, Op
from sned.runtime.context import Context
from sned.runtime.depth import boundaries
from sned.runtime.method import method


@method(
    paper="arXiv:2403.17887",
    prunes="depth",
    title="The Unreasonable Ineffectiveness of the Deeper Layers (the simple heuristic)",
    needs_tokens=False,
)
def deepest(ctx: Context, *, layers: int) -> Iterator[Op]:
    """Drop the deepest layers except the last one; the paper heals afterwards, and must."""
    *candidates, _ = boundaries(ctx, 1, None)
    yield DropLayers(layers=tuple(candidates[-layers:]))
