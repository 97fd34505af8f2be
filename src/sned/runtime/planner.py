"""The driver: runs a method against a view and records what it yields. May import everything below `methods`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from sned.errors import ConfigError
from sned.models.count import count
from sned.plans.budget import Budget, layers_to_remove
from sned.plans.plan import Base, Plan, Size, Stage, used_tensors
from sned.progress import SILENT, Progress
from sned.runtime.context import Context
from sned.runtime.journal import Journal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sned.data.tokens import Tokens
    from sned.models.view import View
    from sned.runtime.method import Method
    from sned.runtime.sweep import Cost


def make_plan(
    view: View,
    method: Method,
    tokens: Tokens | None,
    budget: Budget,
    options: Mapping[str, Any] | None = None,
    *,
    source: str = "",
    seed: int = 0,
    journal: Journal | None = None,
    progress: Progress = SILENT,
    cost: Cost | None = None,
) -> Plan:
    """Plan with one method; afterwards the view shows the pruned model.

    Each op is applied before the method goes on, so that one-shot, greedy and layer-by-layer methods are written
    alike.

    Raises:
        BudgetError: the method cannot meet the budget.
        ConfigError: an option or the kind of budget does not suit the method.
        DataError: the method needs calibration tokens and there are none.
        NumericalError: an activation or a system of equations is not finite.
    """
    parsed = method.parse(options or {})
    n_layers = budgeted_layers(view, method, budget, parsed)
    base, dense = Base.of(view, source), Size.of(count(view))
    context = Context(view, tokens, budget, seed, journal or Journal(), progress)
    if cost is not None:
        context.cost = cost
    started = time.monotonic()
    for op in method.run(context, layers=n_layers, **parsed):
        op.apply(view, context.tensors)
        context.ops.append(op)
        context.journal.note("op", op.model_dump(mode="json"))
    stage = Stage(
        method=method.name,
        options={"layers": n_layers, "seed": seed} | parsed,
        ops=tuple(context.ops),
        scores=context.scores,
    )
    return Plan(
        base=base,
        stages=(stage,),
        dense=dense,
        pruned=Size.of(count(view)),
        provenance={
            "calibration": None if tokens is None else {"source": tokens.source, "digest": tokens.digest},
            "seconds": time.monotonic() - started,
        },
        tensors=used_tensors(context.ops, context.tensors),
    )


def budgeted_layers(view: View, method: Method, budget: Budget, options: Mapping[str, Any]) -> int:
    """Return how many layers a method is to remove; where the user gave no budget, what the method proposes.

    Raises:
        BudgetError: not that many layers may be removed.
        ConfigError: there is no budget, or the method takes none of layers.
    """
    if not method.takes_layers:
        raise ConfigError(f"{method.name} takes no budget of layers")
    if budget.layers is None and budget.remove is None and method.default_layers is not None:
        budget = Budget(layers=method.default_layers)
    return layers_to_remove(budget, view.geometry, _removable(view, options))


def _removable(view: View, options: Mapping[str, Any]) -> list[int]:
    """Return the present layers that a depth method may remove; those that protect some say so by their options."""
    end = options.get("max_end") or view.geometry.n_layers - 1
    return [i for i in view.layers if options.get("min_start", 1) <= i < end]
