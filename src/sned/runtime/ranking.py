"""How many of the units that are worth least have to go until a budget is met, what stands for them counted in.

May import its neighbours in `runtime`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sned.errors import BudgetError
from sned.models.count import branch_counts, count
from sned.runtime.greedy import Cut, out_of_reach, require_reachable
from sned.runtime.stand_ins import Branch, bias_params, runs_of, stand_in_params

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sned.plans.budget import Goal
    from sned.runtime.context import Context
    from sned.runtime.valuation import Unit
    from sned.score.updates import Kind


def layers_to_go(ctx: Context, goal: Goal, ranked: Sequence[Unit], repair: Kind | None, rank: int) -> int:
    """Return how many of the ranked layers reach a goal, what stands in their place counted in.

    Raises:
        BudgetError: not so many may go, or all together are not enough.
    """
    most = len(ranked) - (repair is None and len(ranked) == len(ctx.view.layers))  # one layer stays, or a map
    if goal.blocks is not None and goal.blocks % 2:
        raise BudgetError(f"--blocks {goal.blocks} is no number of whole layers", hint="a layer is two blocks")
    wanted = goal.layers if goal.blocks is None else goal.blocks // 2
    if wanted is not None:
        if wanted > most:
            raise BudgetError(f"{wanted} layers are too many: only {most} may go here", hint=f"give 1 to {most}")
        return wanted
    layers = [unit.layer for unit in ranked[:most]]
    sizes = [sum(p.numel() for p in ctx.view.layer(i).parameters()) for i in layers]
    added = 0 if repair is None else stand_in_params(ctx.view, repair, rank)
    saved = [sum(sizes[:n]) - added * len(runs_of(ctx.view, layers[:n])) for n in range(most + 1)]
    enough = (n for n in range(1, most + 1) if saved[n] >= (goal.params or 0))
    if (fewest := next(enough, None)) is None:
        total = count(ctx.dense).params
        raise BudgetError(
            f"{(goal.params or 0) / total:.1%} of the parameters cannot be removed by whole layers here",
            hint=f"all {most} that may go are {saved[most] / total:.1%}",
        )
    return fewest


def require_blocks(ctx: Context, goal: Goal, units: Sequence[Unit]) -> None:
    """Make sure that a goal can be reached by parts of layers.

    Raises:
        BudgetError: it cannot, or it is a number of whole layers.
    """
    if goal.layers is not None:
        raise BudgetError("--layers counts whole layers, and parts of them are to go", hint="use --blocks N")
    sizes = {u.name: branch_counts(ctx.view, u.layer, u.which) for u in units if u.which != "layer"}
    require_reachable(ctx, goal, {unit.name: Cut((unit.op,), sizes[unit.name]) for unit in units})


def parts_to_go(ctx: Context, goal: Goal, ranked: Sequence[Unit], repaired: bool) -> list[Unit]:
    """Return the parts that reach a goal, the first of those ranked, with the biases counted in that stand for them.

    Raises:
        BudgetError: all together are not enough.
    """
    trial, removed = ctx.view.fork(), 0
    gone: list[Unit] = []
    for unit in ranked:
        if goal.reached(len(gone), removed):
            break
        gone.append(unit)
        unit.op.apply(trial, {})
        added = bias_params(ctx.view, branches_of(gone)) if repaired else 0
        removed = count(ctx.dense).params - count(trial).params - added
    if not goal.reached(len(gone), removed):
        raise out_of_reach(ctx, goal.params or 0, removed)
    return gone


def branches_of(units: Sequence[Unit]) -> list[Branch]:
    """Return the attentions and MLPs among some units."""
    return [(unit.layer, unit.which) for unit in units if unit.which != "layer"]
