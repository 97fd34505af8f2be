"""BlockPruner: remove attention and MLP blocks one by one, each time the one whose absence costs least."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Annotated

from sned.errors import ConfigError
from sned.plans.budget import Goal
from sned.plans.ops import Op
from sned.runtime.context import Context
from sned.runtime.greedy import BlockTypes, Criterion, block_proposals, goal_watch, greedily, require_reachable
from sned.runtime.method import method
from sned.runtime.repair import RepairOption
from sned.runtime.repair import repair as refit_linearly
from sned.runtime.search import Confidence, ObjectiveOption, Search, SearchMode


@method(
    paper="arXiv:2406.10594",
    prunes="depth",
    title="BlockPruner: Fine-grained Pruning for Large Language Models",
    budgets=("blocks", "remove"),
    calibration_tokens=16_384,
)
def blockpruner(
    ctx: Context,
    *,
    goal: Goal,
    types: BlockTypes = "mix",
    search: SearchMode = "exact",
    objective: ObjectiveOption = "perplexity",
    criterion: Criterion = "loss",
    confidence: Confidence = 0.999,
    one_shot: Annotated[bool, "rank all blocks once and remove the lowest, for comparison"] = False,
    repair: RepairOption = None,
    stock: Annotated[bool, "remove only neighbours, so that ordinary layers are left"] = False,
) -> Iterator[Op]:
    """Remove the attention or MLP block whose removal raises the perplexity least, again and again (algorithm 1).

    Departures: windows are packed and never padded, and the loss is the mean over all tokens; a layer that lost
    both its blocks goes altogether; `criterion`, `repair` and `stock` are ours.
    """
    if stock and (types != "mix" or one_shot):
        raise ConfigError("--stock removes attentions and MLPs together, step by step", hint="leave the other out")
    reached = goal_watch(ctx, goal)
    require_reachable(ctx, goal, block_proposals(ctx.view, types), at_once=2 if stock else 1)
    if one_shot:
        yield from _one_shot(ctx, types, reached)
    else:
        searching = Search(ctx, search, objective, confidence)
        yield from greedily(ctx, searching, lambda: block_proposals(ctx.view, types, stock=stock), reached, criterion)
    if repair == "linear":
        yield from refit_linearly(ctx)


def _one_shot(ctx: Context, types: str, reached: Callable[[], bool]) -> Iterator[Op]:
    cuts = block_proposals(ctx.view, types)
    losses = ctx.losses([cut.ops for cut in cuts.values()])
    ranked = sorted(zip(losses, cuts, strict=True), key=lambda row: row[0])
    ctx.scores["ranking"] = [{"cut": key, "loss": None if math.isinf(loss) else loss} for loss, key in ranked]
    for _, key in ranked:
        if reached():
            return
        yield from cuts[key].ops
