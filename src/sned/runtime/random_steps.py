"""How the loss answers to small random steps: gradients without back-propagation.

May import `score` and its neighbours in `runtime`.
"""

from __future__ import annotations

import math
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Annotated

import torch
from pydantic import Field

from sned.errors import NumericalError
from sned.models import trial
from sned.models.matrices import matrices
from sned.runtime.inputs import gather
from sned.runtime.lockstep import Stream
from sned.runtime.objective import window_nll
from sned.runtime.sweep import Sweep, windows_together
from sned.score.magnitude import unit_sums
from sned.score.spsa import direction, estimate, slope

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from sned.models.geometry import Axis
    from sned.models.view import View
    from sned.models.weights import Edit, Weights
    from sned.runtime.context import Context
    from sned.runtime.parts import Part

Directions = Annotated[int, Field(ge=1), "random directions, each tried ahead and behind on one batch of text"]


def slopes(
    ctx: Context,
    what: str,
    moved: Callable[[int, float], AbstractContextManager[None]],
    n_directions: int,
    step: float,
) -> list[float]:
    """Return the derivative of the mean loss, in nats a token, along each direction; each has its own batch of text.

    Args:
        ctx: The context.
        what: Names the directions in the journal.
        moved: Returns a context, for the number of a direction and an amount, in which the model is moved by it.
        n_directions: How many.
        step: How far.

    Raises:
        NumericalError: a loss is not finite.
    """
    ids, state = ctx.calibration.ids, ctx.state(ctx.calibration)
    batches = ids.split(windows_together(ids.shape[1]))

    def loss(number: int, amount: float) -> float:
        with moved(number, amount):
            return _loss(ctx, batches[number % len(batches)])

    def along(number: int) -> float:
        return slope(loss(number, step), loss(number, -step), step)

    found: list[float] = []
    with ctx.progress.task("try directions", n_directions) as advance:
        for number in range(n_directions):
            key = [*state, ctx.seed, what, step, number]
            found.append(ctx.journal.recall("slope", key, partial(along, number)))
            if not math.isfinite(found[-1]):
                raise NumericalError("a loss along a random direction is not finite", hint="try --dtype fp32")
            advance(1)
    return found


@contextmanager
def gates_moved(ctx: Context, parts: Sequence[Part], number: int, amount: float) -> Iterator[None]:
    """Multiply the units of each part by one plus its share of a direction."""
    masks: dict[str, torch.Tensor] = {}
    for part, share in zip(parts, direction(ctx.seed, number, "parts", [len(parts)]).tolist(), strict=True):
        mask = masks.setdefault(part.axis, torch.ones(ctx.view.axis(part.axis).size))
        mask[list(part.units)] += amount * share
    with ExitStack() as stack:
        for name, mask in masks.items():
            stack.enter_context(trial.gate(ctx.view, ctx.view.axis(name), mask))
        yield


@contextmanager
def weights_moved(ctx: Context, number: int, amount: float) -> Iterator[None]:
    """Move every weight of all matrices along a direction; afterwards each is what it was, to the bit."""
    with ExitStack() as stack:
        for layer in ctx.view.layers:
            stack.enter_context(ctx.view.edited(layer, _moving(ctx.view, layer, ctx.seed, number, amount)))
        yield


def feature_worths(ctx: Context, axes: Sequence[Axis], found: Sequence[float]) -> dict[str, torch.Tensor]:
    """Return the sum of |gradient x weight| x input norm over all weights of each unit, `[units]` by axis.

    The gradient is the one that slopes along directions of weights give; it is made again layer by layer.
    """
    view, tokens, worths = ctx.view, ctx.calibration, dict[str, torch.Tensor]()
    stream = Stream(view, tokens.ids, ctx.cost)
    with ctx.progress.task("score weights", tokens.n_tokens * len(view.layers)) as advance:
        for layer in view.layers:
            own = [m for m in matrices(view, layer) if m.expert is None]
            inputs = gather(stream, layer, own, "norms", advance, stay=False)
            scores: dict[str, torch.Tensor] = {}
            with view.materialised(layer) as block:
                for m in own:
                    gradient = estimate(found, ctx.seed, m.name, (m.rows, m.columns))
                    felt = (gradient * m.of(block).float().cpu()).abs() * inputs[m.reads].norm.cpu()
                    stored = block.get_parameter(m.param)
                    m.write(scores.setdefault(m.param, torch.zeros(stored.shape)), felt)
            here = [axis for axis in axes if axis.layer == layer]
            worths |= {axis.name: unit_sums(axis, scores, len(view.alive[axis.name])) for axis in here}
    return worths


def _moving(view: View, layer: int, seed: int, number: int, amount: float) -> Edit:
    own = [m for m in matrices(view, layer) if m.expert is None]

    def change(weights: Weights) -> None:
        for m in own:
            moved = weights[m.param].clone()
            step = amount * direction(seed, number, m.name, (m.rows, m.columns)).to(moved.device)
            m.write(moved, m.read(moved).float() + step)
            weights[m.param] = moved

    return change


@torch.no_grad()
def _loss(ctx: Context, ids: torch.Tensor) -> float:
    sweep, total = Sweep(ctx.view, ctx.cost), 0.0
    for chunk in sweep.chunks(ids):
        for batch, hidden in sweep.final(chunk):
            total += float(window_nll(sweep, batch, hidden).sum(dtype=torch.float64))
    return total / (ids.numel() - len(ids))
