"""Removing part after part, each time the one that costs least: the loop of every greedy search method.

May import its neighbours in `runtime`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Literal

from sned.errors import BudgetError, ConfigError
from sned.models.count import Counts, branch_counts, count
from sned.plans.ops import DropSublayer, Op

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sned.models.family import Sublayer
    from sned.models.view import View
    from sned.plans.budget import Goal
    from sned.runtime.context import Context
    from sned.runtime.search import Search

Criterion = Annotated[
    Literal["loss", "per-parameter", "per-flop", "per-kv-byte"],
    "take the least loss, as published, or the least loss per parameter, operation or cache byte saved",
]
BlockTypes = Annotated[Literal["mix", "mha", "mlp"], "which blocks may go: all, attentions only, or MLPs only"]
_SAVED = {
    "per-parameter": lambda counts: counts.params,
    "per-flop": lambda counts: counts.flops_per_token,
    "per-kv-byte": lambda counts: counts.kv_bytes_per_token,
}


@dataclass(frozen=True, slots=True)
class Cut:
    """One thing that could be removed next: its ops, and what that saves."""

    ops: tuple[Op, ...]
    saves: Counts


Proposals = dict[str, Cut]


def greedily(
    ctx: Context, search: Search, propose: Callable[[], Proposals], reached: Callable[[], bool], criterion: str = "loss"
) -> Iterator[Op]:
    """Yield the ops of the best cut again and again, until the goal is reached; `ctx.scores["trace"]` keeps all steps.

    Raises:
        BudgetError: nothing more may be removed.
        NumericalError: no cut leaves a model with a finite loss.
    """
    trace = ctx.scores.setdefault("trace", [])
    while not reached():
        cuts = propose()
        savings = _savings(cuts, criterion)
        if not savings:
            raise BudgetError(f"nothing is left to remove after {len(trace)} cuts", hint=closest(ctx))
        choice = search.best({k: cuts[k].ops for k in savings}, savings if criterion != "loss" else None)
        yield from cuts[choice.key].ops
        # summed up from paired increases, since a race may judge each step on other windows
        before = trace[-1]["loss"] if trace else choice.loss - choice.increase
        row = {"cut": choice.key, "loss": before + choice.increase, "increase": choice.increase}
        row |= {"tokens": choice.tokens, "measured": choice.measured, "candidates": len(savings)}
        trace.append(row | {"params": count(ctx.view).params})
        ctx.progress.info(
            f"cut {len(trace)}: {choice.key}, {choice.increase:+.4f} nats a token, {removed_ratio(ctx):.1%} removed"
        )


def block_proposals(view: View, types: str = "mix", *, stock: bool = False) -> Proposals:
    """Return every block that could go next, attentions before MLPs, each in the order of layers.

    With `stock`, pairs of neighbours whose removal leaves attentions and MLPs alternating, so that the rest can be
    paired up into ordinary layers: an MLP and the attention before or after it.
    """
    sequence = present_blocks(view)
    if stock:
        pairs = [(a, b) for a, b in pairwise(sequence) if a[0] != b[0] and (a[1] == b[1] or not view.parallel)]
        joined = {_name(a) + "+" + _name(b): [a, b] for a, b in pairs if len(sequence) > 2}
    else:
        wanted = {"mix": ("attn", "mlp"), "mha": ("attn",), "mlp": ("mlp",)}[types]
        ordered = sorted(sequence, key=lambda block: (block[0], block[1]))
        joined = {_name(b): [b] for b in ordered if b[0] in wanted and len(sequence) > 1}
    return {
        key: Cut(
            tuple(DropSublayer(layer=layer, which=which) for which, layer in blocks),
            sum((branch_counts(view, layer, which) for which, layer in blocks), Counts(0, 0, 0, 0)),
        )
        for key, blocks in joined.items()
    }


def present_blocks(view: View) -> list[tuple[Sublayer, int]]:
    """Return the attentions and MLPs that can still be removed, in the order in which the stream meets them."""
    kinds: Sequence[Sublayer] = ("attn",) if view.family.experts else ("attn", "mlp")
    return [(which, i) for i in view.layers for which in kinds if view.has_branch(i, which)]


def removed_params(ctx: Context) -> int:
    """Return how many parameters are gone since the method began."""
    return count(ctx.dense).params - count(ctx.view).params


def removed_ratio(ctx: Context) -> float:
    """Return the share of all parameters that is gone since the method began."""
    return removed_params(ctx) / count(ctx.dense).params


def goal_watch(ctx: Context, goal: Goal) -> Callable[[], bool]:
    """Return what tells whether a goal is reached."""
    n = len(present_blocks(ctx.view))
    return lambda: goal.reached(n - len(present_blocks(ctx.view)), removed_params(ctx))


def closest(ctx: Context) -> str:
    """Say what was reached, for whoever asked for more."""
    return (
        f"the closest reachable: {removed_ratio(ctx):.1%} of the parameters (--remove {_floored(removed_ratio(ctx))})"
    )


def require_reachable(ctx: Context, goal: Goal, cuts: Proposals, *, at_once: int = 1) -> None:
    """Make sure that removing all cuts would reach a goal; one of all blocks has to stay.

    Args:
        ctx: The context.
        goal: What is asked for.
        cuts: What could go, each on its own.
        at_once: How many blocks one cut removes.

    Raises:
        BudgetError: it would not; the closest reachable budget is named.
        ConfigError: the goal is a number of blocks that such cuts cannot make.
    """
    if goal.blocks is not None and goal.blocks % at_once:
        raise ConfigError(f"--blocks {goal.blocks} cannot be met {at_once} at a time", hint="give an even number")
    sizes = sorted((cut.saves.params for cut in cuts.values()), reverse=True)
    may_go = sizes[:-1] if len(sizes) == len(present_blocks(ctx.view)) else sizes
    if goal.blocks is not None and goal.blocks > len(may_go):
        raise BudgetError(
            f"--blocks {goal.blocks} is too many: only {len(may_go)} may go", hint=f"give 1 to {len(may_go)}"
        )
    if goal.params is not None and goal.params > sum(may_go):
        raise out_of_reach(ctx, goal.params, sum(may_go))


def out_of_reach(ctx: Context, goal: int, most: int) -> BudgetError:
    """Return the error for a goal of parameters of which so many at most may go; it names the closest reachable."""
    total = count(ctx.dense).params
    return BudgetError(
        f"{goal / total:.1%} of the parameters cannot be removed by such cuts",
        hint=f"the closest reachable is --remove {_floored(most / total)} of all parameters",
    )


def _floored(share: float) -> str:
    """Write a share so that what is written can be reached."""
    return f"{math.floor(share * 10_000) / 10_000:.4f}"


def _savings(cuts: Proposals, criterion: str) -> dict[str, float]:
    """Return what each cut saves, relative to the one that saves most; those that save nothing are left out."""
    if criterion == "loss":
        return dict.fromkeys(cuts, 1.0)
    saved = {key: _SAVED[criterion](cut.saves) for key, cut in cuts.items()}
    most = max(saved.values(), default=0)
    return {key: value / most for key, value in saved.items() if value > 0}


def _name(block: tuple[str, int]) -> str:
    return f"{block[0]}.{block[1]}"
