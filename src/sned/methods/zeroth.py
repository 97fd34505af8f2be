"""Zeroth order: cut the channels and heads to which the loss answers least, found out by forward passes alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated, Literal

import torch
from pydantic import Field

from sned.plans.budget import Goal
from sned.plans.ops import Op
from sned.runtime.context import Context
from sned.runtime.method import method
from sned.runtime.parts import Across, MlpGroup, Part, cuts, find_parts, keep_highest, ranked, relative
from sned.runtime.random_steps import Directions, feature_worths, gates_moved, slopes, weights_moved
from sned.runtime.repair import RepairOption
from sned.runtime.repair import repair as refit_linearly
from sned.runtime.sensitivity import part_sensitivities, weight_sensitivities
from sned.runtime.widths import Kinds, require_exact_gates
from sned.score.spsa import estimate, rank_correlation, sizes
from sned.training.memory import require_memory_for_gates

STEPS = {"gates": 1e-2, "weights": 1e-4}
"""How far to move in full precision."""
COARSE = 10.0
"""How many times as far in half precision, lest the step be lost in rounding."""


@method(
    paper="arXiv:2407.11681",
    prunes="width",
    title="MINI-LLM: Memory-Efficient Structured Pruning for Large Language Models",
    budgets=("remove",),
    calibration_tokens=16_384,
    passes=lambda options: 1 + options["directions"] / 8 + 3 * options["true_gradients"],  # a sixteenth of it, twice
    goes_back=lambda options: options["true_gradients"],
)
def zeroth(
    ctx: Context,
    *,
    goal: Goal,
    form: Annotated[
        Literal["gates", "weights"], "what is moved: a gate on each part, or, as published, every weight"
    ] = "gates",
    directions: Directions = 64,
    step: Annotated[float | None, Field(gt=0), "how far to move; default: by form and dtype"] = None,
    kinds: Kinds = "both",
    mlp_group: MlpGroup = None,
    across: Across = "uniform",
    true_gradients: Annotated[
        bool, "also take true gradients by back-propagation, only to say how far the ranks agree with theirs"
    ] = False,
    repair: RepairOption = None,
) -> Iterator[Op]:
    """Cut the parts with the least worth by gradients that are estimated from losses along random directions (SPSA).

    `form=weights` is the published score: |gradient x weight| x input norm, summed over a unit's weights, with channels
    ranked one by one unless `mlp_group` says otherwise. Taken weight by weight, a gradient of few directions is mostly
    noise, and what is left is about Wanda-sp. `form=gates` moves one gate on each part instead: some hundred numbers,
    of which as many directions do tell something. Its score is how large the gradient of the gate is likely to be, the
    change of the loss, to first order, if the part went: by Wanda-sp, compared within axes, as far as directions say
    nothing, and by what they say as they become many.
    `agreement` in the scores is Spearman's correlation with Wanda-sp within axes, `agreement_with_gradients` that with
    true gradients: of the same gates, batch by batch, or what `taylor --form weights` would score.

    Departures: windows of calibration text; every layer may be cut; a head is a KV group with all its queries; the
    exact norm in the paper's equation 9 is not certain, and the one here is that of Wanda. No weight is left changed.
    """
    if form == "gates":
        require_exact_gates(ctx.view, kinds)
    if true_gradients:
        require_memory_for_gates(ctx.view, 0, ctx.calibration.length, ctx.free_memory)
    far = step or STEPS[form] * (1.0 if ctx.view.dtype == torch.float32 else COARSE)
    plain = find_parts(ctx, "widths", kinds, mlp_group or (1 if form == "weights" else None))
    keep_highest(ctx, plain, ranked(plain, across), goal.params or 0)  # out of reach, no direction is worth trying
    if form == "gates":
        found = slopes(ctx, f"gates {[p.name for p in plain]}", partial(gates_moved, ctx, plain), directions, far)
        expected = relative(plain) * torch.tensor([part.params for part in plain])
        parts = _worth(plain, sizes(estimate(found, ctx.seed, "parts", [len(plain)]), found, expected))
    else:
        found = slopes(ctx, "weights", partial(weights_moved, ctx), directions, far)
        parts = find_parts(ctx, "widths", kinds, mlp_group or 1, partial(feature_worths, found=found))
    ctx.scores["agreement"] = _told(ctx, "Wanda-sp", _agreement(parts, plain))
    if true_gradients:
        true = (
            _worth(plain, part_sensitivities(ctx, plain))
            if form == "gates"
            else find_parts(ctx, "widths", kinds, 1, weight_sensitivities)
        )
        ctx.scores["agreement_with_gradients"] = _told(ctx, "true gradients", _agreement(parts, true))
    yield from cuts(parts, keep_highest(ctx, parts, ranked(parts, across), goal.params or 0))
    if repair == "linear":
        yield from refit_linearly(ctx)


def _worth(parts: Sequence[Part], worths: torch.Tensor) -> list[Part]:
    """Return parts that are worth `[parts]`, divided among their units."""
    return [replace(part, worth=worth / len(part.units)) for part, worth in zip(parts, worths.tolist(), strict=True)]


def _told(ctx: Context, whose: str, agreement: float) -> float:
    ctx.progress.info(f"ranks agree with those of {whose} to {agreement:.2f} (Spearman's correlation within axes)")
    return agreement


def _agreement(parts: Sequence[Part], others: Sequence[Part]) -> float:
    """Return the mean over axes of the correlation of the parts' worths with those that others give to their units."""
    theirs = {(part.axis, unit): part.worth for part in others for unit in part.units}
    found = []
    for axis in sorted({part.axis for part in parts}):
        own = [part for part in parts if part.axis == axis]
        if len(own) > 1:
            said = [sum(theirs[axis, unit] for unit in part.units) / len(part.units) for part in own]
            found.append(rank_correlation(torch.tensor([part.worth for part in own]), torch.tensor(said)))
    return sum(found) / max(1, len(found))
