"""Narrowing MLPs and attentions in groups of units: what the width methods propose, and evolving all widths at once.

May import its neighbours in `runtime`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from sned.errors import BudgetError, ConfigError, UnsupportedModelError
from sned.models.count import count, units_counts
from sned.plans.ops import Keep, Op
from sned.runtime.evolution import Genome, Individual, evolve
from sned.runtime.greedy import Cut, Proposals, closest, removed_params

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sned.models.geometry import Axis
    from sned.models.view import View
    from sned.runtime.context import Context
    from sned.runtime.objective import ObjectiveName

Kinds = Annotated[Literal["both", "mlp", "heads"], "what is cut: MLP channels, KV groups, or both"]
ChannelGroup = Annotated[
    int | None, Field(ge=1), "channels that go together; default: a quarter of the hidden size, in steps of 64"
]
HeadGroup = Annotated[int, Field(ge=1), "KV groups that go together, each with the query heads it serves"]
Population = Annotated[int, Field(ge=4), "nsga2: models in a generation"]
Generations = Annotated[int, Field(ge=1), "nsga2: generations"]
Orders = Mapping[str, list[int]]
"""The units of each axis, those to keep longest first."""
MLP, HEADS = "mlp.hidden", "attn.group"
EVEN = 64
"""Widths that are no multiple of it run slowly on most hardware."""


@dataclass(frozen=True)
class Widths:
    """How units leave: in which order along each axis, and how many at a time by kind of axis."""

    view: View
    orders: Orders
    groups: Mapping[str, int]

    def axes(self, kinds: Sequence[str]) -> list[Axis]:
        """Return the axes of some kinds that are still there."""
        return present_axes(self.view, kinds)

    def most(self, axis: Axis) -> int:
        """Return how many groups may leave an axis, which keeps at least one unit."""
        return max(0, len(self.view.alive[axis.name]) - 1) // self.groups[axis.kind]

    def narrowed(self, axis: Axis, steps: int) -> tuple[Op, int]:
        """Return the op that cuts so many groups off an axis, and how many units these are."""
        gone = steps * self.groups[axis.kind]
        left = len(self.view.alive[axis.name]) - gone
        return Keep(axis=axis.name, units=tuple(self.orders[axis.name][:left])), gone

    def proposals(self, kind: str) -> Proposals:
        """Return the next cut of every axis of a kind that has more than one group."""
        cuts: Proposals = {}
        for axis in self.axes([kind]):
            if self.most(axis):
                op, gone = self.narrowed(axis, 1)
                key = f"{kind.partition('.')[0]}.{axis.layer}:{len(self.view.alive[axis.name]) - gone}"
                cuts[key] = Cut((op,), units_counts(self.view, axis, gone))
        return cuts

    def cuttable_params(self, kind: str) -> int:
        """Count the parameters of a kind that may go at most."""
        return sum(
            units_counts(self.view, axis, self.most(axis) * self.groups[kind]).params for axis in self.axes([kind])
        )


def evolve_widths(
    ctx: Context,
    widths: Widths,
    kinds: Sequence[str],
    goal_params: int,
    objective: ObjectiveName,
    population: int,
    generations: int,
) -> Iterator[Op]:
    """Yield the widths with the least loss among all that evolution has judged and that reach the goal.

    NSGA-II minimises loss and parameters; a gene is the number of groups cut off one axis. The first generation
    holds even cuts that remove half of the goal, all of it and half as much again.

    Raises:
        BudgetError: the goal is out of reach.
        MissingExtraError: optuna is not installed.
    """
    axes = {axis.name: axis for axis in widths.axes(kinds) if widths.most(axis)}
    left = count(ctx.view).params

    def ops_of(genome: Genome) -> list[Op]:
        return [widths.narrowed(axes[name], steps)[0] for name, steps in genome.items() if steps]

    def params_of(genome: Genome) -> int:
        gone = {name: widths.narrowed(axes[name], steps)[1] for name, steps in genome.items() if steps}
        return left - sum(units_counts(ctx.view, axes[name], n).params for name, n in gone.items())

    def judge(genomes: Sequence[Genome]) -> list[tuple[float, int]]:
        losses = ctx.losses([ops_of(genome) for genome in genomes], objective=objective)
        return list(zip(losses, map(params_of, genomes), strict=True))

    target = left - (goal_params - removed_params(ctx))
    genes = {name: widths.most(axis) for name, axis in axes.items()}
    first = [_even(genes, params_of, left - round(part * (left - target))) for part in (1.0, 0.5, 1.5)]
    judged = evolve(genes, judge, first=first, population=population, generations=generations, seed=ctx.seed)
    reaching = [i for i in judged if i.params <= target]
    if not reaching:
        raise BudgetError("no widths that were tried remove enough", hint=closest(ctx))
    best = min(reaching, key=lambda individual: individual.loss)
    ctx.scores["front"] = [{"loss": i.loss, "params": i.params} for i in _front(judged)]
    ctx.scores["evolved"] = {"loss": best.loss, "params": best.params, "judged": len(judged)}
    yield from ops_of(best.genome)


def group_sizes(view: View, mlp_group: int | None, attn_group: int) -> dict[str, int]:
    """Return how many units leave at a time, by kind of axis.

    Raises:
        ConfigError: a group is as large as the whole axis, or groups of heads do not divide it.
    """
    sizes = {MLP: mlp_group or _default_group(view.geometry.hidden), HEADS: attn_group}
    for axis in view.geometry.axes.values():
        if axis.kind == MLP and sizes[MLP] >= axis.size:
            raise ConfigError(f"mlp_group={sizes[MLP]} would take all {axis.size} channels of {axis.name} at once")
        if axis.kind == HEADS and axis.size % attn_group:
            raise ConfigError(f"attn_group={attn_group} does not divide the {axis.size} KV groups of {axis.name}")
    return sizes


def _default_group(hidden: int) -> int:
    """Return a quarter of the hidden size, as in the paper, made even."""
    quarter = max(1, hidden // 4)
    return quarter - quarter % EVEN if quarter >= EVEN else quarter


def require_channels(view: View) -> None:
    """Make sure that MLP channels can be cut.

    Raises:
        UnsupportedModelError: the MLPs are mixtures of experts.
    """
    if view.family.experts:
        raise UnsupportedModelError(
            "the MLPs of this model are mixtures of experts, whose channels sned does not cut.", hint="use blockpruner"
        )


def head_obstacle(view: View) -> str | None:
    """Say why no heads can be cut, or None if they can."""
    if view.heads_carry_positions:
        return "this model biases its attention by the number of the head (ALiBi)"
    return "all its heads share one key-value head" if view.geometry.n_kv_groups == 1 else None


def warn_of_inexact_heads(ctx: Context) -> None:
    """Tell the user if trying heads out is not quite what cutting them will be."""
    if HEADS in ctx.view.family.inexact:
        ctx.progress.warn("a norm spans all heads here: cutting some changes the others, which shows only afterwards")


def require_exact_gates(view: View, kinds: str) -> None:
    """Make sure that gates on the units that are cut, from which a method is to learn, act as the cuts will.

    Raises:
        UnsupportedModelError: heads are cut, and a norm spans all of them, so that the others change with each cut.
    """
    if kinds != "mlp" and HEADS in view.family.inexact:
        raise UnsupportedModelError(
            "heads cannot be learned from gates: a norm of this model spans all its heads, so that cutting some changes"
            " the others, which a gate does not show.",
            hint="use --kinds mlp, or a method that learns nothing from gates, such as wandasp",
        )


def axes_to_cut(ctx: Context, kinds: str) -> list[Axis]:
    """Return the axes whose units may be cut: of MLP channels, of heads, or both. Inexact heads are warned of.

    Raises:
        UnsupportedModelError: channels are to be cut, and the MLPs are mixtures of experts; or heads are, and they
            carry positions.
    """
    if kinds != "heads":
        require_channels(ctx.view)
    if kinds != "mlp":
        if ctx.view.heads_carry_positions:
            raise UnsupportedModelError(f"no head can be cut: {head_obstacle(ctx.view)}.", hint="use --kinds mlp")
        warn_of_inexact_heads(ctx)
    return present_axes(ctx.view, {"both": (HEADS, MLP), "mlp": (MLP,), "heads": (HEADS,)}[kinds])


def present_axes(view: View, kinds: Sequence[str]) -> list[Axis]:
    """Return the axes of some kinds whose sublayers are still there."""
    return [axis for axis in view.geometry.axes.values() if axis.kind in kinds and is_present(view, axis.name)]


def is_present(view: View, axis: str) -> bool:
    """Tell whether the sublayer of an axis is still there."""
    _, layer, which, _ = axis.split(".")
    return int(layer) in view.layers and view.has_branch(int(layer), "attn" if which == "attn" else "mlp")


def _even(genes: Mapping[str, int], params_of: Callable[[Genome], int], target: int) -> Genome:
    """Return a genome that cuts one group off every axis in turn, until no more parameters than the target are left."""
    genome = dict.fromkeys(genes, 0)
    for step in range(max(genes.values(), default=0)):
        for name, most in genes.items():
            if params_of(genome) <= target:
                return genome
            genome[name] = min(step + 1, most)
    return genome


def _front(judged: Sequence[Individual]) -> list[Individual]:
    """Return the individuals that no other beats in both loss and parameters, fewest parameters first."""
    front: list[Individual] = []
    for individual in sorted(judged, key=lambda i: (i.params, i.loss)):
        if not front or individual.loss < front[-1].loss:
            front.append(individual)
    return front
