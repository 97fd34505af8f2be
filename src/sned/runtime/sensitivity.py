"""How the loss answers to every unit, by back-propagation to gates. May import its neighbours in `runtime`."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import torch

from sned.errors import NumericalError
from sned.models import trial
from sned.runtime.predictions import Predictions
from sned.runtime.sweep import windows_together

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sned.models.geometry import Axis
    from sned.models.view import View
    from sned.runtime.context import Context


def gate_sensitivities(ctx: Context, axes: Sequence[Axis], windows: int | None = None) -> dict[str, torch.Tensor]:
    """Return, for the present units of each axis, the mean over batches of |dL/dgate|, `[units]`, float64, in nats.

    A gate multiplies what its unit gives to its reader, so that its gradient is the sum of weight times gradient over
    the reader's weights for that unit: by how much the loss would rise, to first order, were the unit gone. Absolute
    values are taken batch by batch, for at a minimum of the loss the mean gradient is nothing.

    Args:
        ctx: The context.
        axes: Whose units.
        windows: How many of the first calibration windows to look at, if not all.

    Raises:
        NumericalError: a gradient is not finite.
    """
    view, tokens = ctx.view, ctx.calibration if windows is None else ctx.calibration.take(windows)
    sums = {axis.name: torch.zeros(len(view.alive[axis.name]), dtype=torch.float64) for axis in axes}
    state, batches = ctx.state(tokens), tokens.ids.split(windows_together(tokens.length))
    model = Predictions(view, ctx.cost)
    with ctx.progress.task("back-propagate", tokens.n_tokens) as advance:
        for number, ids in enumerate(batches):
            key = [*state, sorted(sums), number]
            found = ctx.journal.load_tensors("sensitivity", key)
            if found is None:
                found = _gradients(view, model, axes, ids.to(view.device))
                ctx.journal.save_tensors("sensitivity", key, found)
            for name, gradient in found.items():
                sums[name] += gradient.double().abs() * len(ids) / len(tokens)
            advance(ids.numel())
    return sums


def _gradients(view: View, model: Predictions, axes: Sequence[Axis], ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the gradient of a batch's mean loss by the gates of the present units, by axis."""
    gates = [torch.ones(axis.size, device=view.device, requires_grad=True) for axis in axes]
    with ExitStack() as stack, torch.enable_grad():
        for axis, gate in zip(axes, gates, strict=True):
            stack.enter_context(trial.gate(view, axis, gate))
        found = torch.autograd.grad(model.cross_entropy(ids), gates)
    alive = {axis.name: list(view.alive[axis.name]) for axis in axes}
    out = {axis.name: grad[alive[axis.name]].float().cpu() for axis, grad in zip(axes, found, strict=True)}
    if not all(torch.isfinite(gradient).all() for gradient in out.values()):
        raise NumericalError("a gradient of the loss is NaN or infinity", hint="try --dtype fp32")
    return out
