"""FLAP: cut the channels and heads whose activations fluctuate least, and let a bias stand for their means."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import torch

from sned.models.matrices import matrix_of
from sned.plans.budget import Goal
from sned.plans.ops import AddBias, Keep, Op
from sned.runtime.context import Context
from sned.runtime.method import method
from sned.runtime.parts import (
    Across,
    MlpGroup,
    cuts,
    find_parts,
    fluctuations,
    keep_highest,
    ranked,
    reader_weight,
)
from sned.runtime.widths import Kinds

if TYPE_CHECKING:
    from sned.models.geometry import Axis


@method(
    paper="arXiv:2312.11983",
    prunes="width",
    title="Fluctuation-based Adaptive Structured Pruning for Large Language Models",
    budgets=("remove",),
    calibration_tokens=16_384,
)
def flap(
    ctx: Context,
    *,
    goal: Goal,
    kinds: Kinds = "both",
    mlp_group: MlpGroup = 1,
    across: Across = "standard",
    compensate: Annotated[bool, "whether a bias makes up for the mean of what is cut"] = True,
) -> Iterator[Op]:
    """Cut the units with the least variance times squared weight of their readers (WIFV), and add their means.

    What hardly varies is a constant to those who read it: its product with their weights takes its place exactly.

    Departures: variances are those of all tokens, by their definition; scores of heads are not squared first, a head is
    a KV group with all its queries, and its score is the mean of its channels; parameters are counted, the biases too,
    so that the budget is met to within one unit, and every axis keeps something.
    """
    means: dict[str, torch.Tensor] = {}

    def worths(ctx: Context, axes: Sequence[Axis]) -> dict[str, torch.Tensor]:
        found = fluctuations(ctx, axes)
        means.update({name: mean for name, (_, mean) in found.items()})
        return {name: worth for name, (worth, _) in found.items()}

    parts = find_parts(ctx, "widths", kinds, mlp_group, worths)
    ranks, added = ranked(parts, across), 0
    while True:  # until what is cut makes up for the biases too
        trims = cuts(parts, keep_highest(ctx, parts, ranks, (goal.params or 0) + added))
        keeps = [op for op in trims if isinstance(op, Keep)]
        if not compensate or (needed := sum(new_biases(ctx, op) for op in keeps)) <= added:
            break
        added = needed
    yield from keeps
    if compensate:
        yield from constants(ctx, keeps, means)


def new_biases(ctx: Context, op: Keep) -> int:
    """Return how many parameters the bias of an axis' reader takes, if it has none yet."""
    axis = ctx.dense.axis(op.axis)
    reader = ctx.dense.layer(axis.layer).get_submodule(axis.taps[0])
    return matrix_of(ctx.dense, axis.layer, axis.taps[0]).rows if getattr(reader, "bias", None) is None else 0


def constants(ctx: Context, trims: Sequence[Keep], means: Mapping[str, torch.Tensor]) -> Iterator[AddBias]:
    """Yield the biases that stand for what was cut: the product of its means, by axis, with its readers' weights."""
    for op in trims:
        axis, kept = ctx.dense.axis(op.axis), set(op.units)
        gone = torch.tensor([unit not in kept for unit in ctx.dense.alive[axis.name]]).repeat_interleave(axis.tap_block)
        bias = reader_weight(ctx.dense, axis)[:, gone].double().cpu() @ means[axis.name][gone]
        yield AddBias(layer=axis.layer, which=axis.which, tensor=ctx.put(f"bias.{axis.layer}.{axis.which}", bias))
