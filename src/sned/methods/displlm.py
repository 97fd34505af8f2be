"""DISP-LLM: learn which features of the residual stream each attention and each MLP reads and writes, and its width."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

import torch
from pydantic import Field

from sned.models.count import count
from sned.plans.budget import Goal
from sned.plans.ops import Keep, Op
from sned.runtime.context import Context
from sned.runtime.method import method
from sned.runtime.widths import require_channels
from sned.score.binarise import Estimator
from sned.score.rounding import kept_units
from sned.training.options import Batch, Epochs, Rate
from sned.training.schedule import Schedule
from sned.training.structure import OPEN, Aim, Sides, find_gates, learn, require_possible, settle, starts_by_slope

EVALUATIONS = 8
"""The held-out loss is measured so often. Training never ends early: while the budget tightens, the loss may rise."""


@method(
    paper="arXiv:2410.11988",
    prunes="width",
    title="DISP-LLM: Dimension-Independent Structural Pruning for Large Language Models",
    budgets=("remove",),
    # there and back for each epoch, to judge, and once for the start
    passes=lambda options: 3.5 * options["epochs"] + 1 + 3 * (options["start"] == "slopes"),
    goes_back=lambda _options: True,
    together=True,
)
def displlm(
    ctx: Context,
    *,
    goal: Goal,
    structure: Annotated[
        Literal["free", "shared", "mlp"],
        "every branch with its own features, all branches with the same ones, or MLP channels alone",
    ] = "free",
    estimator: Annotated[Estimator, "hard masks with second or first-order gradients, or relaxed ones as released"] = (
        "reinmax"
    ),
    start: Annotated[
        Literal["slopes", "open"],
        "gates begin where the loss's answer to each unit puts them, or, as published, all of them open",
    ] = "slopes",
    weight: Annotated[float, Field(gt=0), "of missing the budget, against the loss (lambda)"] = 16.0,
    sides: Annotated[Sides, "what misses the budget: too many parameters, or too few as well, as published"] = "above",
    ramp: Annotated[
        float | None,
        Field(ge=0, le=1),
        "share of the steps in which the budget tightens; 0 as published: all at once; default: 0.7 from open gates",
    ] = None,
    temperature: Annotated[float, Field(gt=0), "the lower, the less masks are left to chance"] = 0.4,
    epochs: Epochs = 4,
    batch: Batch = 1,
    rate: Rate = 1e-3,
    step: Annotated[int | None, Field(ge=1), "widths are a multiple of this; default: 64, or fewer"] = None,
) -> Iterator[Op]:
    """Train a network that sets gates on the stream and in the MLPs, on the loss and the budget; cut what it closes.

    The model is frozen, and what it is left with is the model's own weights: the stream stays as wide as it was, no
    head goes, and the cache of keys and values stays as large.

    Departures: gates begin where one pass of back-propagation puts them (`start`), which saves most of the published
    10,000 steps; to be below the budget costs nothing, and from open gates it tightens as training goes on (`sides`,
    `ramp`): pulled to both sides, what is useless is pushed up and down with all the rest, and stays. Chances are
    sigmoids, whose noise has no bias; the inputs of the network are fixed; what is cut follows from the logits, not
    from one more draw: widths are rounded, then moved a step at a time until the budget is met. A mask of the MLP acts
    once, on what its output projection reads. Parameters are counted as they are: KV heads, biases and norms included.
    """
    require_channels(ctx.view)
    gates = find_gates(ctx.view, structure)
    left = count(ctx.view).body_params - (goal.params or 0)
    require_possible(ctx, gates, left, step)
    schedule = Schedule(
        batch, epochs, rate, warmup=0.0, weight_decay=0.05, evaluations=EVALUATIONS, patience=EVALUATIONS + 1
    )
    if start == "open":
        starts, tightening = [torch.full((len(gate.units),), OPEN) for gate in gates], 0.7
    else:
        starts, tightening = starts_by_slope(ctx, gates, left), 0.0
    aim = Aim(left, weight, sides, tightening if ramp is None else ramp, estimator, temperature, step)
    logits = learn(ctx, gates, starts, aim, schedule)
    for gate, width, own in zip(gates, settle(ctx, gates, logits, aim), logits, strict=True):
        if width < len(gate.units):
            units = tuple(gate.units[place] for place in kept_units(own, width))
            yield from (Keep(axis=axis.name, units=units) for axis in gate.axes)
