"""MultiPruner: remove blocks, then groups of MLP channels, then heads, each time what costs least."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Literal

from sned.errors import BudgetError, ConfigError
from sned.models.count import count
from sned.plans.budget import Goal
from sned.plans.ops import Op
from sned.runtime.context import Context
from sned.runtime.greedy import Criterion, Proposals, block_proposals, greedily, removed_params
from sned.runtime.method import method
from sned.runtime.parts import UnitOrder, unit_orders
from sned.runtime.repair import RepairOption
from sned.runtime.repair import repair as refit_linearly
from sned.runtime.search import Confidence, ObjectiveOption, Search, SearchMode
from sned.runtime.widths import (
    HEADS,
    MLP,
    ChannelGroup,
    Generations,
    HeadGroup,
    Population,
    Widths,
    evolve_widths,
    group_sizes,
    head_obstacle,
    present_axes,
    require_channels,
    warn_of_inexact_heads,
)

if TYPE_CHECKING:
    from sned.models.view import View


@method(
    paper="arXiv:2501.09949",
    prunes="width",
    title="MultiPruner: Balanced Structure Removal in Foundation Models",
    budgets=("remove",),
    calibration_tokens=16_384,
)
def multipruner(
    ctx: Context,
    *,
    goal: Goal,
    split: Annotated[
        str | None, "parts of the budget for blocks, MLP channels and heads; default: 44:52:4, or 30:70:0 with GQA"
    ] = None,
    mlp_group: ChannelGroup = None,
    attn_group: HeadGroup = 1,
    order: UnitOrder = "magnitude",
    widths: Annotated[
        Literal["greedy", "nsga2"], "how widths are chosen: step by step, or evolved all at once"
    ] = "greedy",
    population: Population = 16,
    generations: Generations = 10,
    search: SearchMode = "exact",
    objective: ObjectiveOption = "perplexity",
    criterion: Criterion = "loss",
    confidence: Confidence = 0.95,
    repair: RepairOption = None,
) -> Iterator[Op]:
    """Remove whole blocks, then MLP channels, then heads, each stage up to its share of the budget (algorithm 1).

    A stage tries every candidate and commits the one that raises the perplexity least. Channels and KV groups leave
    in groups of fixed size, those with the smallest L1 norm of input weights first; every axis keeps at least one.

    Departures: all stages look at the same calibration tokens; a layer that lost both its blocks goes altogether,
    and a removed block takes its norm with it. Heads stay where cutting them is not possible: ALiBi gives each its
    own bias. `criterion`, `repair` and the orders of wandasp and flap are ours. `widths=nsga2` is the paper's
    evolutionary variant: blocks take half of the budget, then all widths are evolved at once.
    """
    view = ctx.view
    require_channels(view)
    parts = _parse_split(split or _default_split(view), view)
    if parts[2]:
        warn_of_inexact_heads(ctx)
    orders = unit_orders(ctx, present_axes(view, (MLP, HEADS)), order)
    narrow = Widths(view, orders, group_sizes(view, mlp_group, attn_group))
    searching = Search(ctx, search, objective, confidence)
    target = goal.params or 0
    if widths == "nsga2":
        stops: tuple[float, ...] = (target / 2, target)
        kinds = [kind for kind, part in zip((MLP, HEADS), parts[1:], strict=True) if part]
    else:
        stops, kinds = thresholds(target, parts), []
    ctx.scores["thresholds"] = list(stops)
    _require_reachable(ctx, target, parts, stops[0], narrow)
    stages: list[Callable[[], Proposals]] = [
        lambda: block_proposals(view),
        lambda: narrow.proposals(MLP),
        lambda: narrow.proposals(HEADS),
    ]
    for part, stop, propose in list(zip(parts, stops, stages, strict=False))[: 1 if kinds else 3]:
        if part:
            yield from greedily(ctx, searching, propose, lambda stop=stop: removed_params(ctx) >= stop, criterion)
    if kinds:
        yield from evolve_widths(ctx, narrow, kinds, target, objective, population, generations)
    if repair == "linear":
        yield from refit_linearly(ctx)


def thresholds(total: float, parts: tuple[float, ...]) -> tuple[float, ...]:
    """Return how much is to be gone after each stage; the last number is `total` itself."""
    return tuple(total * (sum(parts[: i + 1]) / sum(parts)) for i in range(len(parts)))


def _parse_split(text: str, view: View) -> tuple[float, ...]:
    try:
        parts = tuple(float(part) for part in text.split(":"))
    except ValueError:
        parts = ()
    if len(parts) != 3 or not all(0 <= part < float("inf") for part in parts) or not sum(parts):
        raise ConfigError(f"split={text!r} is not three shares", hint="44:52:4 is for blocks, MLP channels and heads")
    if parts[2] and (obstacle := head_obstacle(view)):
        raise ConfigError(f"split={text!r} gives a share to heads, but {obstacle}", hint="make its last part 0")
    return parts


def _default_split(view: View) -> str:
    grouped = view.geometry.n_kv_groups < view.geometry.n_heads
    return "30:70:0" if grouped or head_obstacle(view) else "44:52:4"


def _require_reachable(ctx: Context, target: int, parts: tuple[float, ...], first_stop: float, narrow: Widths) -> None:
    """Refuse at once what no choice of the search could reach.

    Raises:
        BudgetError: the first stage up to its share and all that the others may cut are less than asked for.
    """
    total = count(ctx.dense).params
    blocks = [cut.saves.params for cut in block_proposals(ctx.view).values()] if parts[0] else []
    most = min(first_stop + max(blocks, default=0), sum(blocks))
    most += sum(narrow.cuttable_params(kind) for kind, part in zip((MLP, HEADS), parts[1:], strict=True) if part)
    if most < target:
        raise BudgetError(
            f"{target / total:.1%} of the parameters cannot be removed with this split and these group sizes",
            hint=f"they allow less than {most / total:.1%}; give blocks a larger part, or make groups smaller",
        )
