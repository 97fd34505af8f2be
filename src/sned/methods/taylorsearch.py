"""Taylor search: gradients of gates propose what to cut next, losses decide among the few that look cheapest."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from sned.plans.budget import Goal
from sned.plans.ops import DropSublayer, Keep, Op
from sned.runtime.context import Context
from sned.runtime.greedy import (
    Criterion,
    Cut,
    Proposals,
    block_proposals,
    greedily,
    out_of_reach,
    removed_params,
    require_reachable,
)
from sned.runtime.method import method
from sned.runtime.repair import RepairOption
from sned.runtime.repair import repair as refit_linearly
from sned.runtime.search import Confidence, ObjectiveOption, Search, SearchMode
from sned.runtime.sensitivity import gate_sensitivities
from sned.runtime.widths import (
    HEADS,
    MLP,
    ChannelGroup,
    HeadGroup,
    Kinds,
    Widths,
    axes_to_cut,
    group_sizes,
    present_axes,
    require_exact_gates,
)
from sned.training.memory import require_memory_for_gates

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from sned.models.view import View

_AXIS = {"attn": HEADS, "mlp": MLP}
Slopes = dict[str, dict[int, float]]
"""What each unit of each axis costs to first order, in nats."""


@method(
    paper="",
    prunes="width",
    title="Gradients propose, losses decide",
    budgets=("remove",),
    calibration_tokens=16_384,
    goes_back=lambda _options: True,
)
def taylorsearch(
    ctx: Context,
    *,
    goal: Goal,
    kinds: Kinds = "both",
    mlp_group: ChannelGroup = None,
    attn_group: HeadGroup = 1,
    whole_blocks: Annotated[bool, "whole attentions and MLPs may go, too"] = True,
    proposals: Annotated[
        int, Field(ge=1), "cuts of each kind (channels, KV groups, attentions, MLPs) that are tried in a step"
    ] = 2,
    refresh: Annotated[int, Field(ge=1), "cuts after which gradients are taken anew"] = 8,
    search: SearchMode = "exact",
    objective: ObjectiveOption = "perplexity",
    criterion: Criterion = "per-parameter",
    confidence: Confidence = 0.95,
    repair: RepairOption = None,
) -> Iterator[Op]:
    """Cut again and again what raises the loss least, tried on the few cuts that seem cheapest to first order.

    The units of each axis leave in groups, those with the least |dL/dgate| first; a cut promises to cost the sum of
    that over its units. The cheapest promises per parameter of each kind are tried, and the best cut is kept: channels,
    KV groups, attentions and MLPs compete by their losses alone, with no split of the budget between them, since to
    first order heads seem far cheaper than they are.

    Sources: the criterion is that of LLM-Pruner (arXiv:2305.11627), the loop that of MultiPruner (arXiv:2501.09949).
    """
    require_exact_gates(ctx.view, kinds)
    axes = axes_to_cut(ctx, kinds)
    groups = group_sizes(ctx.view, mlp_group, attn_group)
    require_memory_for_gates(ctx.view, 0, ctx.calibration.length, ctx.free_memory)
    present = tuple(dict.fromkeys(axis.kind for axis in axes))
    _require_reachable(ctx, goal, present, groups, whole_blocks)
    proposer = _Proposer(ctx, present, groups, whole_blocks, proposals, refresh)
    searching = Search(ctx, search, objective, confidence)
    yield from greedily(ctx, searching, proposer.next, lambda: removed_params(ctx) >= (goal.params or 0), criterion)
    if repair == "linear":
        yield from refit_linearly(ctx)


@dataclass
class _Proposer:
    """Says what to try next, from gradients that are taken anew every few steps."""

    ctx: Context
    kinds: tuple[str, ...]
    groups: Mapping[str, int]
    whole_blocks: bool
    most: int
    refresh: int
    steps: int = 0
    slopes: Slopes = field(default_factory=dict)

    def next(self) -> Proposals:
        """Return the cuts that promise to cost least per parameter, a few of each kind, the cheapest first."""
        if self.steps % self.refresh == 0:
            self.slopes = self._measured()
        self.steps += 1
        few = dict(pair for cuts in self._all() for pair in self._ranked(cuts)[: self.most])
        return dict(self._ranked(few))

    def _ranked(self, cuts: Proposals) -> list[tuple[str, Cut]]:
        alive = self.ctx.view.alive
        return sorted(cuts.items(), key=lambda one: promise(one[1], self.slopes, alive) / one[1].saves.params)

    def _measured(self) -> Slopes:
        alive = self.ctx.view.alive
        found = gate_sensitivities(self.ctx, present_axes(self.ctx.view, self.kinds))
        return {name: dict(zip(alive[name], slopes.tolist(), strict=True)) for name, slopes in found.items()}

    def _all(self) -> list[Proposals]:
        """Return all cuts that may be next, by kind."""
        view = self.ctx.view
        orders = {
            name: sorted(view.alive[name], key=own.__getitem__, reverse=True) for name, own in self.slopes.items()
        }
        widths = Widths(view, orders, self.groups)
        blocks = [_blocks(view, kind) for kind in self.kinds if self.whole_blocks]
        return [*(widths.proposals(kind) for kind in self.kinds), *blocks]


def _blocks(view: View, kind: str) -> Proposals:
    """Return the removal of every block whose units are of a kind."""
    return block_proposals(view, "mha" if kind == HEADS else "mlp")


def _require_reachable(
    ctx: Context, goal: Goal, kinds: Collection[str], groups: Mapping[str, int], whole_blocks: bool
) -> None:
    """Refuse at once what no choice of the search could reach.

    Raises:
        BudgetError: all cuts together are less than what is asked for.
    """
    if whole_blocks:
        require_reachable(ctx, goal, {key: cut for kind in kinds for key, cut in _blocks(ctx.view, kind).items()})
        return
    most = sum(Widths(ctx.view, {}, groups).cuttable_params(kind) for kind in kinds)
    if most < (goal.params or 0):
        raise out_of_reach(ctx, goal.params or 0, most)


def promise(cut: Cut, slopes: Slopes, alive: Mapping[str, Sequence[int]]) -> float:
    """Return by how much a cut raises the loss to first order, in nats: the sum over the units that leave.

    Args:
        cut: Narrows an axis, or removes the block that it belongs to.
        slopes: What each unit of each axis costs.
        alive: The units of each axis that are there.
    """
    total = 0.0
    for op in cut.ops:
        if isinstance(op, Keep):
            axis, kept = op.axis, set(op.units)
        elif isinstance(op, DropSublayer):
            axis, kept = f"layers.{op.layer}.{_AXIS[op.which]}", set[int]()
        else:
            raise TypeError(f"{op} takes no units away")
        total += sum(slopes[axis][unit] for unit in alive[axis] if unit not in kept)
    return total
