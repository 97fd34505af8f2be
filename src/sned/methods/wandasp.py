"""Wanda-sp: cut the channels and heads of which their readers receive least."""

from __future__ import annotations

from collections.abc import Iterator

from sned.plans.budget import Goal
from sned.plans.ops import Op
from sned.runtime.context import Context
from sned.runtime.method import method
from sned.runtime.parts import Across, MlpGroup, cuts, find_parts, keep_highest, ranked
from sned.runtime.repair import RepairOption
from sned.runtime.repair import repair as refit_linearly
from sned.runtime.widths import Kinds


@method(
    paper="arXiv:2312.11983",
    prunes="width",
    title="Wanda-sp, the structured Wanda of FLAP's comparison",
    budgets=("remove",),
    calibration_tokens=16_384,
)
def wandasp(
    ctx: Context,
    *,
    goal: Goal,
    kinds: Kinds = "both",
    mlp_group: MlpGroup = 1,
    across: Across = "uniform",
    repair: RepairOption = None,
) -> Iterator[Op]:
    """Cut the units with the lowest mean of |W| times input norm over their readers' weights.

    Departures: inputs are those of the dense model in all layers; a head is a KV group with all its queries, and its
    worth is the mean of its channels; parameters are counted, so that the budget is met to within one unit.
    """
    parts = find_parts(ctx, "widths", kinds, mlp_group)
    yield from cuts(parts, keep_highest(ctx, parts, ranked(parts, across), goal.params or 0))
    if repair == "linear":
        yield from refit_linearly(ctx)
