"""Learning the chances of parts by trying random masks. May import `score` and its neighbours in `runtime`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import Field

from sned.errors import NumericalError
from sned.runtime.parts import cuts, require_floors
from sned.score.bernoulli import advantages, draw, gradient, spread

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sned.data.tokens import Tokens
    from sned.runtime.context import Context
    from sned.runtime.objective import ObjectiveName
    from sned.runtime.parts import Part

Baseline = Literal["others", "moving"]
Masks = Annotated[int, Field(ge=2), "masks drawn and tried in each step, all on the same text"]
Rate = Annotated[float, Field(gt=0), "learning rate of the first step; it falls to zero along a cosine"]
BaselineOption = Annotated[
    Baseline, "a loss counts against those of the step's other masks, or against a moving average"
]
FORGET = 5
"""Steps over which the moving average forgets."""


@dataclass(frozen=True, slots=True)
class Lesson:
    """How chances are learned."""

    epochs: int
    masks: int
    batch: int
    rate: float
    baseline: Baseline
    objective: ObjectiveName


def learn(
    ctx: Context,
    parts: Sequence[Part],
    chances: torch.Tensor,
    within: Callable[[torch.Tensor], torch.Tensor],
    lesson: Lesson,
) -> torch.Tensor:
    """Return better chances `[parts]`; `ctx.scores["learning"]` keeps the mean loss of each step's masks.

    `within` brings chances back into the budget after each step.

    Every loss is kept in the journal, so that a killed run comes back to where it was without trying a mask again.

    Raises:
        NumericalError: no mask of a step gives a finite loss.
    """
    average: float | None = None
    rows = ctx.scores.setdefault("learning", [])
    windows = range(len(ctx.calibration))
    batches = [windows[i : i + lesson.batch] for i in windows[:: lesson.batch]] * lesson.epochs
    with ctx.progress.task("learn", len(batches)) as advance:
        for step, batch in enumerate(batches):
            masks = require_floors(parts, draw(chances, lesson.masks, ctx.generator), chances)
            masks, losses = _tried(ctx, parts, masks, ctx.calibration.pick(batch), lesson.objective)
            mean = float(losses.mean())
            if lesson.baseline == "moving":
                average = mean if average is None else (1 - 1 / FORGET) * average + mean / FORGET
                excess = (losses - average) * len(losses) / max(1, len(losses) - 1)
            else:
                excess = advantages(losses)
            pace = lesson.rate * (1 + math.cos(math.pi * step / len(batches))) / 2
            chances = within(chances - pace * spread(chances) * gradient(masks, chances, excess))
            rows.append({"step": step + 1, "loss": mean})
            ctx.progress.note(f"loss {mean:.3f}")
            advance(1)
    return chances


def _tried(
    ctx: Context, parts: Sequence[Part], masks: torch.Tensor, text: Tokens, objective: ObjectiveName
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the masks that give a finite loss, and their losses `[masks]`."""
    found = ctx.losses([cuts(parts, mask) for mask in masks], objective=objective, tokens=text, label="")
    losses = torch.tensor(found, dtype=torch.float64)
    finite = torch.isfinite(losses)
    if not finite.any():
        raise NumericalError("none of the masks of a step gives a finite loss", hint="try --dtype fp32")
    return masks[finite], losses[finite]
