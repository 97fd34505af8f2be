"""Learning which units a model needs: gates on its axes, a network that sets them, and the text that judges it.

The model's own weights are left alone. May import `models`, `runtime` and its neighbours.
"""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from sned.errors import BudgetError, ConfigError, NumericalError
from sned.models import trial
from sned.models.count import count, layer_params, units_counts
from sned.plans.plan import tensor_digest
from sned.runtime.greedy import out_of_reach
from sned.runtime.predictions import Predictions
from sned.runtime.sensitivity import gate_sensitivities
from sned.runtime.widths import MLP, is_present
from sned.score.binarise import logistic_noise, sampled
from sned.score.rounding import default_step, kept_units, meet_budget, nearest_widths
from sned.training.hypernetwork import STATES, HyperNetwork
from sned.training.loop import fit_within
from sned.training.memory import require_memory_for_gates
from sned.training.options import held_out_part

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sned.models.geometry import Axis
    from sned.models.view import View
    from sned.runtime.context import Context
    from sned.score.binarise import Estimator
    from sned.training.schedule import Schedule

Sides = Literal["above", "both"]
OPEN = 3.0
"""Logits with which everything begins open."""
STREAM = 4.0
"""By so much first slopes understate what features of the stream are worth next to channels (SmolLM2-135M, a fifth of
the layers: perplexity 39.4 by slopes alone, 36.1 so)."""
LOOK = 16_384
"""Tokens by whose gradients gates begin."""
DOUBT, SURE = 1.5, 4.0
"""Logits that begin elsewhere: by how much those differ that are a standard deviation apart, and the most."""
FAR = 0.05
"""Logarithm of the ratio by which learned parameters may miss the aim without a word."""


@dataclass(frozen=True, slots=True)
class Gate:
    """Units that are kept or cut on all of its axes alike.

    Attributes:
        name: How scores name it.
        axes: Of one size.
        units: The base numbers of the units that are there.
    """

    name: str
    axes: tuple[Axis, ...]
    units: tuple[int, ...]

    @property
    def of_channels(self) -> bool:
        """Whether its units are the channels of an MLP, and not features of the stream."""
        return self.axes[0].kind == MLP


@dataclass(frozen=True, slots=True)
class Aim:
    """What learning is after.

    Attributes:
        params: How many parameters the layers should be left with.
        weight: How much it counts to miss that, against the loss: a nat per unit of the logarithm of the ratio.
        sides: Whether it counts to have too many (`above`), or too few as well (`both`).
        ramp: Share of the steps in which the aim falls from all parameters to these.
        how: How masks are drawn.
        temperature: How much is left to chance.
        step: Widths are a multiple of it; None for 64, or fewer.
    """

    params: int
    weight: float = 16.0
    sides: Sides = "above"
    ramp: float = 0.0
    how: Estimator = "reinmax"
    temperature: float = 0.4
    step: int | None = None

    def at(self, progress: float, whole: int) -> float:
        """Return the parameters aimed at after a share of the steps, by a model that had `whole` of them."""
        share = 1.0 if self.ramp == 0 else min(1.0, progress / self.ramp)
        return whole - share * (whole - self.params)


class StructureTask:
    """A frozen model with gates, and the network that sets them.

    Judged, the gates are as they would be cut, at the budget, and the loss is the cross-entropy alone.
    """

    def __init__(self, ctx: Context, gates: Sequence[Gate], net: HyperNetwork, aim: Aim, steps: int) -> None:
        """Prepare to learn in so many steps."""
        self.parameters = dict(net.named_parameters())
        self._gates, self._net, self._aim, self._steps = gates, net, aim, steps
        self._view, self._seed, self._whole = ctx.view, ctx.seed, count(ctx.view).body_params
        self._crew = ctx.crew
        self._model = Predictions(ctx.view, ctx.cost)

    def losses(self, batches: Sequence[torch.Tensor], step: int | None) -> Iterator[torch.Tensor]:
        """Yield the mean loss per token of each batch `[windows, tokens]`, and with it what missing the aim costs."""
        if step is None:
            masks = self.cut()
            with gated(self._view, self._gates, masks):
                yield from (self._model.cross_entropy(ids.to(self._view.device)) for ids in batches)
            return
        aim = self._aim.at((step + 1) / self._steps, self._whole)
        for number, ids in enumerate(batches):
            masks = self._drawn(step, self._crew.rank + number * self._crew.size)  # its number among those of all
            with gated(self._view, self._gates, masks):
                loss = self._model.cross_entropy(ids.to(self._view.device))
                hard = [mask if self._aim.how != "soft" else _rounded(mask) for mask in masks]
                yield loss + self._aim.weight * self.miss(hard, aim).to(
                    loss.device
                )  # layers may run again on the way back

    def cut(self) -> list[torch.Tensor]:
        """Return the masks that the gates come to now."""
        logits = self._net()
        masks = [torch.zeros_like(own) for own in logits]
        for mask, own, width in zip(masks, logits, widths_at(self._view, self._gates, logits, self._aim), strict=True):
            mask[kept_units(own, width)] = 1
        return masks

    def _drawn(self, step: int, number: int) -> list[torch.Tensor]:
        logits, aim = self._net(), self._aim
        generator = torch.Generator().manual_seed((self._seed * 1_000_003 + step) * 1_009 + number)
        return [sampled(own, logistic_noise(len(own), generator), aim.temperature, aim.how) for own in logits]

    def miss(self, masks: Sequence[torch.Tensor], aim: float) -> torch.Tensor:
        """Return `log(parameters / those aimed at)` of the layers under hard masks: its size, or what is above zero."""
        kept = [mask.double().sum() for mask in masks]
        excess = (body_params(self._view, self._gates, kept) / aim).log()
        return excess.abs() if self._aim.sides == "both" else excess.clamp_min(0)


def _rounded(mask: torch.Tensor) -> torch.Tensor:
    """Return a relaxed mask made hard, with the gradient of the relaxed one."""
    return mask.round() + (mask - mask.detach())


def gated(view: View, gates: Sequence[Gate], masks: Sequence[torch.Tensor]) -> ExitStack:
    """Return a context in which each gate multiplies its units by its mask, `[units]`; differentiable."""
    stack = ExitStack()
    for gate, mask in zip(gates, masks, strict=True):
        size = gate.axes[0].size
        whole = mask.to(view.device)
        if len(gate.units) < size:
            whole = whole.new_zeros(size).scatter(0, torch.tensor(gate.units, device=whole.device), whole)
        for axis in gate.axes:
            stack.enter_context(trial.gate(view, axis, whole))
    return stack


def body_params(view: View, gates: Sequence[Gate], kept: Sequence[Any]) -> Any:
    """Return how many parameters the layers have when so many units of each gate are kept; tensors give a tensor."""
    by_axis: dict[str, Any] = {axis.name: n for gate, n in zip(gates, kept, strict=True) for axis in gate.axes}
    return sum(layer_params(view, index, by_axis) for index in view.layers)


def find_gates(view: View, structure: Literal["free", "shared", "mlp"]) -> list[Gate]:
    """Return the gates on what is there, in the order in which a token meets them.

    Args:
        view: The view.
        structure: `free`: on what every attention and MLP reads and writes, and on every MLP's channels; `shared`:
            one for all that is read and written; `mlp`: on channels alone.

    Raises:
        BudgetError: there is nothing to gate.
        ConfigError: one gate is to serve branches that read or write different features already.
    """
    kinds = ("attn.read", "attn.write", "mlp.read", MLP, "mlp.write")
    axes = [
        view.axis(f"layers.{i}.{kind}")
        for i in view.layers
        for kind in kinds
        if (kind == MLP or structure != "mlp") and is_present(view, f"layers.{i}.{kind}")
    ]
    gates = [Gate(axis.name, (axis,), view.alive[axis.name]) for axis in axes]
    if not gates:
        raise BudgetError("no attention or MLP is left that could be made narrower")
    if structure != "shared":
        return gates
    stream = [gate for gate in gates if not gate.of_channels]
    if any(gate.units != stream[0].units or gate.axes[0].size != stream[0].axes[0].size for gate in stream):
        raise ConfigError("branches read or write different features already", hint="use structure=free")
    shared = Gate("stream", tuple(gate.axes[0] for gate in stream), stream[0].units)
    return [shared, *(gate for gate in gates if gate.of_channels)]


def starts_by_slope(ctx: Context, gates: Sequence[Gate], params: int) -> list[torch.Tensor]:
    """Return logits to begin with, `[units]` for each gate, that keep what the loss answers to most per parameter.

    The logarithm of what `taylor` ranks units by, moved so that the layers are left with `params`, in units of its own
    spread. What hardly matters begins closed, what matters much open, and there is doubt in between.
    """
    windows = min(len(ctx.calibration), max(1, LOOK // ctx.calibration.length))
    slopes = gate_sensitivities(ctx, [axis for gate in gates for axis in gate.axes], windows)
    tiny, worths = torch.finfo(torch.float64).tiny, list[torch.Tensor]()
    for gate in gates:
        slope = sum((slopes[axis.name] for axis in gate.axes), start=torch.zeros(len(gate.units), dtype=torch.float64))
        per_unit = sum(units_counts(ctx.view, axis, 1).params for axis in gate.axes)
        share = 1.0 if gate.of_channels else STREAM
        worths.append((share * slope.clamp_min(tiny) / per_unit).log())
    every = torch.cat(worths).sort().values
    low, high = 0, len(every) - 1
    while low < high:  # the lowest threshold that leaves no more than is wanted
        middle = (low + high) // 2
        left = body_params(ctx.view, gates, [int((own > every[middle]).sum()) for own in worths])
        low, high = (middle + 1, high) if left > params else (low, middle)
    spread = (every.quantile(0.84) - every.quantile(0.16)) / 2  # a standard deviation, whatever the ends do
    return [((own - every[low]) / spread.clamp_min(tiny) * DOUBT).clamp(-SURE, SURE).float() for own in worths]


def learn(
    ctx: Context, gates: Sequence[Gate], starts: Sequence[torch.Tensor], aim: Aim, schedule: Schedule
) -> list[torch.Tensor]:
    """Return the logits of being kept of every gate, `[units]` each, learned from the calibration text.

    `ctx.scores["structure"]` keeps how it went. The user is told if the budget was missed by far.

    Raises:
        DataError: there is too little text.
        NumericalError: training finds nothing better than it began with before it diverges.
    """
    tokens, held_out = held_out_part(ctx.calibration)
    for own in starts:
        ctx.crew.send(own)  # what another device worked out may differ in the last bits
    net = HyperNetwork(starts, seed=ctx.seed)
    task = StructureTask(ctx, gates, net, aim, schedule.steps(len(tokens)))
    names = [gate.name for gate in gates]
    key: list[Any] = [*ctx.state(None), "structure", names, tensor_digest(torch.cat([*starts])), asdict(aim)]
    found = fit_within(ctx, task, tokens, held_out, schedule, key)
    if found.ended == "diverged" and not found.best:
        raise NumericalError("training diverged, or its loss is NaN", hint="try a lower rate, or --dtype fp32")
    with torch.no_grad():
        logits = net()
    left = int(body_params(ctx.view, gates, [int((own > 0).sum()) for own in logits]))
    facts = {"tokens": tokens.n_tokens, "aimed": aim.params, "learned": left}
    ctx.scores["structure"] = facts | found.as_scores()
    if (missed := math.log(left / aim.params)) > FAR:
        ctx.progress.warn(
            f"training settled at {left:,} parameters in the layers instead of {aim.params:,}: what is cut to get "
            f"there was not learned. Raise weight ({aim.weight:g}) or epochs ({schedule.epochs})"
        )
    elif missed < -FAR:
        ctx.progress.warn(
            f"training settled at {left:,} parameters in the layers instead of {aim.params:,}: what is kept to get "
            f"there was not learned. Lower the rate ({schedule.lr:g}), or let --sides both pull it up"
        )
    return logits


def widths_at(view: View, gates: Sequence[Gate], logits: Sequence[torch.Tensor], aim: Aim) -> list[int]:
    """Return how many units each gate keeps: as learned, rounded, then moved until the budget is met."""
    steps = [aim.step or default_step(gate.axes[0].size) for gate in gates]
    widths = nearest_widths(logits, steps)
    return meet_budget(logits, widths, steps, aim.params, lambda found: int(body_params(view, gates, found)))


def settle(ctx: Context, gates: Sequence[Gate], logits: Sequence[torch.Tensor], aim: Aim) -> list[int]:
    """Return how many units each gate keeps; `ctx.scores["structure"]` keeps which share of every axis that is."""
    widths = widths_at(ctx.view, gates, logits, aim)
    rows: dict[int, dict[str, float]] = {}
    for gate, width in zip(gates, widths, strict=True):
        for axis in gate.axes:
            rows.setdefault(axis.layer, {})[axis.kind] = width / axis.size
    ctx.scores["structure"]["kept"] = [{"layer": layer, "shares": rows[layer]} for layer in sorted(rows)]
    return widths


def require_possible(ctx: Context, gates: Sequence[Gate], params: int, step: int | None) -> None:
    """Make sure that the layers can be left with so few parameters, and that gates can be trained here.

    Raises:
        BudgetError: they cannot; the closest reachable budget is named.
        ConfigError: memory is short.
    """
    least = [min(len(gate.units), step or default_step(gate.axes[0].size)) for gate in gates]
    body = count(ctx.view).body_params
    if (fewest := int(body_params(ctx.view, gates, least))) > params:
        raise out_of_reach(ctx, body - params, body - fewest)
    trained = 2 * STATES * sum(len(gate.units) for gate in gates)
    require_memory_for_gates(ctx.view, trained, ctx.calibration.length, ctx.free_memory)
