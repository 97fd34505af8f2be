"""How the loss answers to every unit, by back-propagation. May import `score` and its neighbours in `runtime`."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch

from sned.errors import NumericalError
from sned.models import trial
from sned.models.geometry import is_conv1d
from sned.models.matrices import matrices
from sned.runtime.predictions import Predictions
from sned.runtime.sweep import windows_together
from sned.score.magnitude import unit_sums

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from torch import nn

    from sned.models.geometry import Axis
    from sned.models.view import View
    from sned.runtime.context import Context
    from sned.runtime.parts import Part


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
    return _mean_sizes(ctx, axes, _batch_by_batch(ctx, axes, windows, "gates", _to_gates))


def part_sensitivities(ctx: Context, parts: Sequence[Part]) -> torch.Tensor:
    """Return the mean over batches of |dL/dgate| for one gate on all units of each part, `[parts]`, float64, in nats.

    Raises:
        NumericalError: a gradient is not finite.
    """
    view, sums = ctx.view, torch.zeros(len(parts), dtype=torch.float64)
    axes = [view.axis(name) for name in dict.fromkeys(part.axis for part in parts)]
    places = {axis.name: {unit: place for place, unit in enumerate(view.alive[axis.name])} for axis in axes}
    own = [[places[part.axis][unit] for unit in part.units] for part in parts]
    for share, slopes in _batch_by_batch(ctx, axes, None, "gates", _to_gates):
        felt = [float(slopes[part.axis][units].sum()) for part, units in zip(parts, own, strict=True)]
        sums += torch.tensor(felt, dtype=torch.float64).abs() * share
    return sums


def weight_sensitivities(ctx: Context, axes: Sequence[Axis]) -> dict[str, torch.Tensor]:
    """Return, for the present units of each axis, the mean over batches of the sum of |weight x gradient|, `[units]`.

    The sum, float64 and in nats, is over all weights of a unit, those that make it and those that read it. A gradient
    is let go as soon as its matrix has had it, so that no more is kept than on the way back to gates.

    Raises:
        NumericalError: a gradient is not finite.
    """
    return _mean_sizes(ctx, axes, _batch_by_batch(ctx, axes, None, "weights", _to_weights))


def _nothing(view: View, axes: Sequence[Axis]) -> dict[str, torch.Tensor]:
    return {axis.name: torch.zeros(len(view.alive[axis.name]), dtype=torch.float64) for axis in axes}


def _mean_sizes(
    ctx: Context, axes: Sequence[Axis], batches: Iterable[tuple[float, dict[str, torch.Tensor]]]
) -> dict[str, torch.Tensor]:
    sums = _nothing(ctx.view, axes)
    for share, found in batches:
        for name, values in found.items():
            sums[name] += values.abs() * share
    return sums


def _batch_by_batch(
    ctx: Context,
    axes: Sequence[Axis],
    windows: int | None,
    what: str,
    measured: Callable[[View, Predictions, Sequence[Axis], torch.Tensor], dict[str, torch.Tensor]],
) -> Iterator[tuple[float, dict[str, torch.Tensor]]]:
    """Yield, for each batch, its share of the text, and what is measured of it for the units of each axis, float64."""
    view, tokens = ctx.view, ctx.calibration if windows is None else ctx.calibration.take(windows)
    state, batches = ctx.state(tokens), tokens.ids.split(windows_together(tokens.length))
    model, names = Predictions(view, ctx.cost), sorted(axis.name for axis in axes)
    with ctx.progress.task("back-propagate", tokens.n_tokens) as advance:
        for number, ids in enumerate(batches):
            key = [*state, what, names, number]
            found = ctx.journal.load_tensors("sensitivity", key)
            if found is None:
                found = measured(view, model, axes, ids.to(view.device))
                if not all(torch.isfinite(gradient).all() for gradient in found.values()):
                    raise NumericalError("a gradient of the loss is NaN or infinity", hint="try --dtype fp32")
                ctx.journal.save_tensors("sensitivity", key, found)
            yield len(ids) / len(tokens), {name: values.double() for name, values in found.items()}
            advance(ids.numel())


def _to_gates(view: View, model: Predictions, axes: Sequence[Axis], ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the gradient of a batch's mean loss by the gates of the present units, by axis."""
    gates = [torch.ones(axis.size, device=view.device, requires_grad=True) for axis in axes]
    with ExitStack() as stack, torch.enable_grad():
        for axis, gate in zip(axes, gates, strict=True):
            stack.enter_context(trial.gate(view, axis, gate))
        found = torch.autograd.grad(model.cross_entropy(ids), gates)
    alive = {axis.name: list(view.alive[axis.name]) for axis in axes}
    return {axis.name: grad[alive[axis.name]].float().cpu() for axis, grad in zip(axes, found, strict=True)}


def _to_weights(view: View, model: Predictions, axes: Sequence[Axis], ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the sums of |weight x gradient of a batch's mean loss| over the weights of the present units, by axis."""
    sums = _nothing(view, axes)

    def listen(module: nn.Module, param: str, owners: Sequence[Axis]) -> Callable[[], None]:
        def told(felt: torch.Tensor) -> None:
            for axis in owners:
                sums[axis.name] += unit_sums(axis, {param: felt}, len(sums[axis.name]))

        def heard(module: Any, args: tuple[Any, ...], out: torch.Tensor) -> torch.Tensor:
            return _Listener.apply(anchor, out, args[0], module.weight, module, told)  # type: ignore[no-any-return]

        return module.register_forward_hook(heard).remove

    anchor = torch.zeros((), device=view.device, requires_grad=True)
    with ExitStack() as stack, torch.enable_grad():
        for layer in sorted({axis.layer for axis in axes}):
            for param in dict.fromkeys(m.param for m in matrices(view, layer)):
                owners = [a for a in axes if a.layer == layer and any(slot.param == param for slot in a.slots)]
                module = view.layer(layer).get_submodule(param.rpartition(".")[0])
                if owners:
                    stack.callback(listen(module, param, owners))
        torch.autograd.grad(model.cross_entropy(ids), anchor, allow_unused=True)
    return sums


class _Listener(torch.autograd.Function):
    """Passes on what a linear map returns; on the way back, tells |weight x gradient| of its weights, as stored.

    It hangs on a number of its own, `anchor`, so that the way back comes by here although no weight asks for it. All
    that it keeps is kept for the map's own way back in any case.
    """

    @staticmethod
    def forward(
        ctx: Any,
        _anchor: torch.Tensor,
        out: torch.Tensor,
        inputs: torch.Tensor,
        weight: torch.Tensor,
        module: nn.Module,
        told: Callable[[torch.Tensor], None],
    ) -> torch.Tensor:
        ctx.save_for_backward(inputs, weight)
        ctx.module, ctx.told = module, told
        return out.clone()  # some families add to it in place

    @staticmethod
    def backward(ctx: Any, *slopes: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (slope,) = slopes
        inputs, weight = ctx.saved_tensors
        received, answered = _own(ctx.module, "reads", inputs), _own(ctx.module, "writes", slope)
        pair = (received, answered) if is_conv1d(ctx.module) else (answered, received)
        left, right = (tensor.flatten(0, -2) for tensor in pair)
        ctx.told((left.T @ right).float().mul_(weight).abs_())
        return None, slope, None, None, None, None


def _own(module: nn.Module, side: str, stream: torch.Tensor) -> torch.Tensor:
    """Return what a module takes of a stream, or puts into it, where it picks its features itself."""
    features = getattr(module, side, None)
    return stream if features is None else features.take(stream)
