"""What every layer, attention or MLP is worth: by how much it changes the stream, or by what its absence costs.

May import `score` and its neighbours in `runtime`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from sned.errors import NumericalError, UnsupportedModelError
from sned.plans.ops import DropLayers, DropSublayer, Op
from sned.runtime.greedy import present_blocks
from sned.runtime.statistics import Influence, Metric
from sned.score.shapley import Coalition, antithetic_orders, coalitions, shapley_values

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sned.models.view import View
    from sned.runtime.context import Context
    from sned.runtime.objective import ObjectiveName

STRIDE = 4
"""Units that go along an order before it is seen whether to go on."""
UnitKind = Literal["layers", "attn", "mlp", "both"]
UnitOption = Annotated[UnitKind, "what goes: whole layers, attentions, MLPs, or attentions and MLPs"]
Worth = Literal["shapley", "loo", Metric]
WorthOption = Annotated[
    Worth,
    "what a unit is worth: the mean rise of the loss when it goes, over orders in which all go; its rise when it goes "
    "alone; or how much the unit turns the stream, or adds to it",
]
Permutations = Annotated[
    int, Field(ge=2, multiple_of=2), "shapley: orders in which all units go; half of them are drawn, half the reverse"
]
Bounded = Annotated[
    bool,
    "shapley: a loss counts no more than that of a uniform guess, and an order ends where it is reached",
]
Windows = Annotated[int | None, Field(ge=1), "calibration windows that values are measured on; default: all"]


@dataclass(frozen=True, slots=True)
class Unit:
    """Something that a model can do without."""

    layer: int
    which: Literal["layer", "attn", "mlp"]

    @property
    def name(self) -> str:
        """How scores name it: ``layer.3``, ``attn.3``, ``mlp.3``."""
        return f"{self.which}.{self.layer}"

    @property
    def op(self) -> Op:
        """What removes it."""
        if self.which == "layer":
            return DropLayers(layers=(self.layer,))
        return DropSublayer(layer=self.layer, which=self.which)


@dataclass(frozen=True, slots=True)
class Valuation:
    """What units are worth, in their order, and what is known besides."""

    values: list[float]
    errors: list[float] | None = None
    """Standard errors."""
    facts: dict[str, Any] = field(default_factory=dict)
    """For the scores; JSON."""


def find_units(view: View, kind: UnitKind, first: int, last: int) -> list[Unit]:
    """Return what may go of the layers from `first` on and before `last`, in the order in which the stream meets it.

    Raises:
        UnsupportedModelError: there is none of this kind.
    """
    layers = [i for i in view.layers if first <= i < last]
    if kind == "layers":
        return [Unit(i, "layer") for i in layers]
    wanted = ("attn", "mlp") if kind == "both" else (kind,)
    units = [Unit(i, which) for which, i in present_blocks(view) if which in wanted and i in layers]
    if not units:
        raise UnsupportedModelError(
            f"no {kind} of layers {first} to {last - 1} can be removed", hint="use --units layers, or --units both"
        )
    return units


def value_units(
    ctx: Context,
    units: Sequence[Unit],
    worth: Worth,
    *,
    permutations: int,
    windows: int | None,
    objective: ObjectiveName,
    bounded: bool,
) -> Valuation:
    """Return what units are worth; the lowest can go first.

    Raises:
        NumericalError: a loss that others are compared with is not finite, or no better than a guess.
    """
    if worth == "shapley":
        orders = antithetic_orders(len(units), permutations, ctx.generator)
        return _shapley(ctx, orders, _Absence(ctx, units, windows, objective), bounded)
    if worth == "loo":
        return _leave_one_out(ctx, units, windows, objective)
    return _changes(ctx, units, worth, windows)


@dataclass
class _Absence:
    """The losses of a model without sets of its units, each measured once."""

    ctx: Context
    units: Sequence[Unit]
    windows: int | None
    objective: ObjectiveName
    losses: dict[Coalition, float] = field(default_factory=dict)

    def measure(self, sets: Sequence[Coalition], label: str = "try candidates") -> None:
        """Try sets all together; with an op for each unit, they share a stream as long as they agree."""
        met = [gone for gone in sets if gone not in self.losses]
        candidates = [tuple(self.units[i].op for i in sorted(gone)) for gone in met]
        found = self.ctx.losses(candidates, windows=self.windows, objective=self.objective, label=label)
        self.losses |= zip(met, found, strict=True)


def _shapley(ctx: Context, orders: list[list[int]], absence: _Absence, bounded: bool) -> Valuation:
    """Value units by going along orders.

    Losing all units is tried like any other set, even where they are all there is.
    """
    ceiling = math.log(ctx.view.geometry.vocab) if bounded else math.inf
    if bounded:
        _measure_up_to(ceiling, absence, orders)
    else:
        absence.measure(coalitions(orders))
        _require_finite(absence.losses)
    tried = absence.losses  # what an order would have met after the ceiling counts as much as the ceiling
    losses = {gone: loss if (loss := tried.get(gone, ceiling)) < ceiling else ceiling for gone in coalitions(orders)}
    found = shapley_values(orders, losses)
    if found.agreement is not None:
        ctx.progress.info(
            f"values from either half of {len(orders)} orders agree to {found.agreement:.2f} (Kendall's tau)"
        )
    facts = {"orders": len(orders), "tried": len(tried), "agreement": found.agreement, "gap": found.gap}
    facts |= {"ceiling": ceiling} if bounded else {}
    all_gone = losses[Coalition(range(len(absence.units)))]
    return Valuation(found.values, found.errors, {"base": losses[Coalition()], "all_gone": all_gone, **facts})


def _measure_up_to(ceiling: float, absence: _Absence, orders: list[list[int]]) -> None:
    """Go along orders a few units at a time, each until a loss reaches the ceiling.

    Raises:
        NumericalError: the model with all units is there already.
    """
    n = len(absence.units)
    absence.measure([Coalition(), Coalition(range(n))])
    if not absence.losses[Coalition()] < ceiling:
        raise NumericalError(
            "the model itself predicts no better than a uniform guess, so its units are worth nothing",
            hint="give --no-bounded, or other --calib text",
        )
    for start in range(1, n, STRIDE):
        if not orders:
            break
        sizes = range(start, min(start + STRIDE, n))
        absence.measure(coalitions(orders, sizes), f"{len(orders)} orders, units {start} to {sizes[-1]} of {n}")
        orders = [order for order in orders if absence.losses[Coalition(order[: sizes[-1]])] < ceiling]


def _require_finite(losses: Mapping[Coalition, float]) -> None:
    """Make sure that losses can be told apart.

    Raises:
        NumericalError: some are not finite.
    """
    if broken := sum(not math.isfinite(loss) for loss in losses.values()):
        raise NumericalError(
            f"{broken} of {len(losses)} losses are not finite, so units have no Shapley values",
            hint="try --bounded, --dtype fp32, or --metric loo",
        )


def _leave_one_out(ctx: Context, units: Sequence[Unit], windows: int | None, objective: ObjectiveName) -> Valuation:
    base, *losses = ctx.losses([(), *((unit.op,) for unit in units)], windows=windows, objective=objective)
    if not math.isfinite(base):
        raise NumericalError("the model itself gives no finite loss", hint="try --dtype fp32")
    return Valuation([loss - base for loss in losses], facts={"base": base, "tried": len(units)})


def _changes(ctx: Context, units: Sequence[Unit], metric: Metric, windows: int | None) -> Valuation:
    following = dict(pairwise([*ctx.view.layers, ctx.view.geometry.n_layers]))
    parts = {unit.layer: {u.which for u in units if u.layer == unit.layer} for unit in units}
    found = ctx.collect(
        *(Influence(i, following[i], has_attn="attn" in of, has_mlp="mlp" in of) for i, of in parts.items()),
        windows=windows,
        label="measure influence",
    )
    known = dict(zip(parts, found, strict=True))
    return Valuation([known[unit.layer][unit.which][metric] for unit in units])
