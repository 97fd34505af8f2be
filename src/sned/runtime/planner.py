"""The driver: runs a method against a view and records what it yields. May import everything below `methods`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sned.errors import ConfigError
from sned.models.count import count
from sned.models.matrices import all_matrices
from sned.plans.budget import BUDGET_FLAGS, Budget, goal_of, layers_to_remove
from sned.plans.plan import Base, Plan, Size, Stage, merged, used_tensors
from sned.progress import SILENT, Progress
from sned.runtime.context import Context
from sned.runtime.crew import ALONE, Crew
from sned.runtime.journal import Journal
from sned.runtime.quotas import require_pattern

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
    free_memory: int | None = None,
    crew: Crew = ALONE,
) -> Plan:
    """Plan with one method; afterwards the view shows the pruned model.

    Each op is applied before the method goes on, so that one-shot, greedy and layer-by-layer methods are written
    alike.

    Args:
        view: The model; it is cut.
        method: The method.
        tokens: Calibration text, if it looks at any.
        budget: How much to remove.
        options: Of the method.
        source: Where the model came from.
        seed: Of every random choice.
        journal: Keeps what a resumed run needs.
        progress: Told of what goes on.
        cost: Counts the layers run.
        free_memory: Bytes that may be used beside the model; None to try what it takes.
        crew: The processes that share what is trained; all come to the same plan.

    Raises:
        BudgetError: the method cannot meet the budget.
        ConfigError: an option or the kind of budget does not suit the method, or memory is short.
        DataError: the method needs calibration tokens and there are none.
        NumericalError: an activation or a system of equations is not finite.
    """
    parsed = method.parse(options or {})
    budget = check_budget(view, method, budget, parsed)
    amount = {"goal": goal_of(budget, view.geometry)} if method.takes_goal else {"layers": budget.layers}
    base, dense = Base.of(view, source), Size.of(count(view))
    context = Context(
        view, view.fork(), tokens, seed, journal or Journal(), progress, free_memory=free_memory, crew=crew
    )
    if cost is not None:
        context.cost = cost
    for op in method.run(context, **amount, **parsed):
        op.apply(view, context.tensors)
        context.ops.append(op)
        context.journal.note("op", op.model_dump(mode="json"))
    stage = Stage(
        method=method.name,
        options=budget.as_options() | {"seed": seed} | parsed,
        ops=tuple(merged(context.ops)),
        scores=context.scores,
    )
    return Plan(
        base=base,
        stages=(stage,),
        dense=dense,
        pruned=Size.of(count(view)),
        provenance={"calibration": None if tokens is None else {"source": tokens.source, "digest": tokens.digest}},
        tensors=used_tensors(context.ops, context.tensors),
    )


def check_kind(method: Method, budget: Budget, options: Mapping[str, Any]) -> Budget:
    """Return the budget, or where the user gave none, what the method proposes with these options.

    Raises:
        ConfigError: there is no budget, or not of a kind that the method takes.
    """
    if budget.kind is None:
        budget = method.proposed_budget(options)
    accepted = " or ".join(BUDGET_FLAGS[kind] for kind in method.budgets)
    if budget.kind is None:
        raise ConfigError("no budget is given", hint=f"use {accepted}")
    if budget.kind not in method.budgets:
        raise ConfigError(f"{method.name} takes no budget of {budget.kind}", hint=f"use {accepted}")
    return budget


def check_budget(view: View, method: Method, budget: Budget, options: Mapping[str, Any]) -> Budget:
    """Return the budget as the method understands it: for one that can only count whole layers, their number.

    Raises:
        BudgetError: so much cannot be removed.
        ConfigError: there is no budget, or not of a kind that the method takes.
    """
    budget = check_kind(method, budget, options)
    if budget.layers is not None or not method.takes_goal:
        return Budget(layers=layers_to_remove(budget, view.geometry, _removable(view, options)))
    if "sparsity" in method.budgets:
        require_pattern(all_matrices(view), budget.sparsity or 0.0, str(options.get("pattern", "")))
    goal_of(budget, view.geometry)
    return budget


def _removable(view: View, options: Mapping[str, Any]) -> list[int]:
    """Return the present layers that a depth method may remove; those that protect some say so by their options."""
    end = options.get("max_end") or view.geometry.n_layers - 1
    return [i for i in view.layers if options.get("min_start", 1) <= i < end]
