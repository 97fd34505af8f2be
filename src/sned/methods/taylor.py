"""Taylor: cut the channels and heads whose absence would change the loss least, to first order."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from sned.plans.budget import Goal
from sned.plans.ops import Op
from sned.runtime.context import Context
from sned.runtime.method import method
from sned.runtime.parts import Across, MlpGroup, cuts, find_parts, keep_highest, ranked
from sned.runtime.repair import RepairOption
from sned.runtime.repair import repair as refit_linearly
from sned.runtime.sensitivity import gate_sensitivities, weight_sensitivities
from sned.runtime.widths import Kinds, require_exact_gates
from sned.training.memory import require_memory_for_gates


@method(
    paper="arXiv:2305.11627",
    prunes="width",
    title="LLM-Pruner: On the Structural Pruning of Large Language Models",
    budgets=("remove",),
    calibration_tokens=16_384,
    passes=lambda _options: 3,
    goes_back=lambda _options: True,
)
def taylor(
    ctx: Context,
    *,
    goal: Goal,
    form: Annotated[
        Literal["gates", "weights"], "absolute values are taken of the sum over a unit's weights, or of every weight"
    ] = "gates",
    kinds: Kinds = "both",
    mlp_group: MlpGroup = 1,
    across: Across = "uniform",
    repair: RepairOption = None,
) -> Iterator[Op]:
    """Cut the units with the least |dL/dgate|, all at once: to first order, by how much the loss rises without them.

    Of LLM-Pruner's criteria it is the one that sums weight times gradient over a group before taking the absolute
    value (`vectorize`); the gradient of a gate on a unit is that sum over the weights that read it. `form=weights`
    takes the absolute value of each weight first, and sums over all of a unit's (`param_first`, its code's default).

    Departures: windows of calibration text take the place of ten short samples, and absolute values are taken batch
    by batch; all layers may be cut; a head is a KV group with all its queries; the budget is met to within one part.
    """
    if form == "gates":
        require_exact_gates(ctx.view, kinds)
    require_memory_for_gates(ctx.view, 0, ctx.calibration.length, ctx.free_memory)
    worths_of = gate_sensitivities if form == "gates" else weight_sensitivities
    parts = find_parts(ctx, "widths", kinds, mlp_group, worths_of)
    yield from cuts(parts, keep_highest(ctx, parts, ranked(parts, across), goal.params or 0))
    if repair == "linear":
        yield from refit_linearly(ctx)
