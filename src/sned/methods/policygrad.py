"""Policy gradient: learn how likely each part should stay from the losses of random masks, without back-propagation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import Field

from sned.plans.budget import Goal
from sned.plans.ops import Op
from sned.runtime.context import Context
from sned.runtime.method import method
from sned.runtime.parts import MlpGroup, PartKind, cuts, find_parts, keep_highest, standardised
from sned.runtime.policy import BaselineOption, Lesson, Masks, Rate, learn
from sned.runtime.repair import RepairOption
from sned.runtime.repair import repair as refit_linearly
from sned.runtime.search import ObjectiveOption
from sned.runtime.widths import Kinds, require_exact_gates
from sned.score.bernoulli import chances_of, project
from sned.training.options import Batch, Epochs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sned.runtime.parts import Part


@method(
    paper="arXiv:2406.10576",
    prunes="width",
    title="Bypass Back-propagation: Optimization-based Structural Pruning for LLMs via Policy Gradient",
    budgets=("remove",),
    passes=lambda options: 1 + options["epochs"] * options["masks"],
)
def policygrad(
    ctx: Context,
    *,
    goal: Goal,
    units: Annotated[PartKind, "what stays or goes: channels and KV groups, attentions and MLPs, or layers"] = "widths",
    kinds: Kinds = "both",
    mlp_group: MlpGroup = None,
    epochs: Epochs = 6,
    masks: Masks = 4,
    batch: Batch = 1,
    rate: Rate = 0.4,
    baseline: BaselineOption = "others",
    budgets: Annotated[
        Literal["joint", "separate"], "one budget for all, or the same share of attention as of MLPs"
    ] = "joint",
    start: Annotated[Literal["wanda", "even"], "first chances: by Wanda-sp within each axis, or all alike"] = "wanda",
    sharpness: Annotated[
        float, Field(gt=0), "start wanda: log-odds of the first chances that a standard deviation of score is worth"
    ] = 4.0,
    objective: ObjectiveOption = "perplexity",
    repair: RepairOption = None,
) -> Iterator[Op]:
    """Learn from the losses of random masks how likely each part should be kept, and keep the likeliest (eq. 5 to 8).

    Only forward passes are made. After each step the chances are projected onto the budget: the expected parameters
    of all parts together or, with `budgets=separate` as published, of heads and of channels each.

    Departures: a loss counts against those of the step's other masks, which leaves the gradient unbiased;
    `baseline=moving` is the released one, which contains the losses it is compared with. Chances stay within 1% of
    certainty, for what is never drawn could not come back. Channels stay or go in groups of like Wanda-sp score, so
    that a few hundred steps tell them apart where the paper takes 15,000; `mlp_group=1` makes them single. First
    chances are sharp, so that masks differ in what is in doubt, and their losses tell of that: from soft ones
    (`sharpness=1`) hundreds of parts move by chance, and what is learned can be worse than the start. Budgets count
    parameters, every axis keeps something, and ties go to the first. Layers and blocks, which the paper claims and its
    code lacks, work alike.
    """
    if units == "widths":
        require_exact_gates(ctx.view, kinds)
    params, parts = goal.params or 0, find_parts(ctx, units, kinds, mlp_group)
    sizes = torch.tensor([part.params for part in parts], dtype=torch.float64)
    groups = groups_of(parts, budgets)
    keep_within(ctx, parts, groups, sizes, params)  # if the budget cannot be met, say so before anything is tried
    stays = 1 - params / float(sizes.sum())
    sizes /= sizes.mean()
    merits = sharpness * standardised(parts) if start == "wanda" else torch.zeros_like(sizes)
    chances = torch.empty_like(sizes)
    for own in groups:
        chances[own] = chances_of(merits[own], sizes[own], stays * float(sizes[own].sum()))

    def within(free: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(free)
        for own in groups:
            out[own] = project(free[own], sizes[own], stays * float(sizes[own].sum()))
        return out

    chances = learn(ctx, parts, chances, within, Lesson(epochs, masks, batch, rate, baseline, objective))
    ctx.scores["chances"] = {part.name: chance for part, chance in zip(parts, chances.tolist(), strict=True)}
    yield from cuts(parts, keep_within(ctx, parts, groups, chances, params))
    if repair == "linear":
        yield from refit_linearly(ctx)


def groups_of(parts: Sequence[Part], budgets: str) -> list[list[int]]:
    """Return the places of the parts that share a budget: all of them, or those of attention and of MLPs."""
    found: dict[str, list[int]] = {}
    for place, part in enumerate(parts):
        found.setdefault(part.name.partition(".")[0] if budgets == "separate" else "", []).append(place)
    return list(found.values())


def keep_within(
    ctx: Context, parts: Sequence[Part], groups: Sequence[Sequence[int]], ranks: torch.Tensor, goal: int
) -> torch.Tensor:
    """Return which parts stay, `[parts]`: in each group those that rank lowest go, until its share of the goal is gone.

    Raises:
        BudgetError: all that may go of a group is not enough.
    """
    kept, left, total = torch.ones(len(parts), dtype=torch.bool), goal, sum(part.params for part in parts)
    for own in groups:
        members = [parts[i] for i in own]
        share = left if own is groups[-1] else round(goal * sum(part.params for part in members) / total)
        kept[own] = keep_highest(ctx, members, ranks[own], max(0, share))
        left -= sum(part.params for part, stays in zip(members, kept[own].tolist(), strict=True) if not stays)
    return kept
