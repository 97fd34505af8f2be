"""Planning on tiny models as the library does it, and being killed in the middle of it."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import cache
from typing import TYPE_CHECKING, Any

from kit.compare import logits
from kit.tiny import DENSE_NAMES, FAMILY_NAMES, make_model, tokens
from sned.models.view import View
from sned.plans.budget import Budget
from sned.progress import Progress
from sned.runtime import sweep
from sned.runtime.crew import ALONE
from sned.runtime.journal import Journal
from sned.runtime.method import Method, all_methods, find_method
from sned.runtime.planner import make_plan
from sned.runtime.sweep import Cost
from sned.runtime.widths import HEADS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import pytest
    import torch

    from sned.data.tokens import Tokens
    from sned.plans.budget import BudgetKind
    from sned.plans.plan import Plan

METHODS = sorted(method.name for method in all_methods())
BUDGET = 2
"""Layers of five that the contracts remove."""
BUDGETS: dict[BudgetKind, Budget] = {
    "layers": Budget(layers=BUDGET),
    "blocks": Budget(blocks=3),
    "remove": Budget(remove=0.15, remove_of="body"),
    "sparsity": Budget(sparsity=0.55),
}
"""What they ask of a method, by the first kind of budget that it takes."""
OF_WEIGHTS = [name for name in METHODS if "sparsity" in find_method(name).budgets]
REFUSED = {
    **{
        name: set(FAMILY_NAMES) - set(DENSE_NAMES)
        for name in ("displlm", "flap", "multipruner", "policygrad", "taylor", "taylorsearch", "wandasp", "zeroth")
    },
    "laco": {"qwen3_moe"},  # whose layers are dense and experts in turn
}
"""Families for which a method has nothing to offer, and says so; every other works everywhere."""
PAIRS = [(m, name) for m in METHODS for name in FAMILY_NAMES if name not in REFUSED.get(m, ())]


SHORT: dict[str, dict[str, Any]] = {
    "displlm": {"epochs": 1, "rate": 0.02},
    "policygrad": {"epochs": 1, "masks": 2},
    "taylorsearch": {"proposals": 2, "mlp_group": 16},
    "zeroth": {"directions": 3},
}
"""Options with which a method that learns is done soon, unless a test gives its own."""
FROM_GATES = ("policygrad", "taylor", "taylorsearch", "zeroth")
"""Methods that learn from gates: where cutting heads is something else, they are asked for channels alone."""


class Messages(Progress):
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.told: list[str] = []

    def warn(self, message: str) -> None:
        self.warnings.append(message)

    def info(self, message: str) -> None:
        self.told.append(message)


class Kill(Progress):
    """Interrupts after so many steps of progress, wherever they happen."""

    def __init__(self, after: int) -> None:
        self.left = after

    @contextmanager
    def task(self, label: str, total: int) -> Iterator[Callable[[int], None]]:
        def advance(_units: int) -> None:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt

        yield advance


class Steps(Progress):
    """Counts the steps of progress of each task."""

    def __init__(self) -> None:
        self.tasks: dict[str, int] = {}

    @property
    def total(self) -> int:
        return sum(self.tasks.values())

    @contextmanager
    def task(self, label: str, total: int) -> Iterator[Callable[[int], None]]:
        def advance(_units: int) -> None:
            self.tasks[label] = self.tasks.get(label, 0) + 1

        yield advance


@dataclass(frozen=True)
class Planned:
    """A plan, the logits of the view that it was made on, and what it cost."""

    plan: Plan
    logits: torch.Tensor
    cost: int


def calibration() -> Tokens:
    return tokens(6, 16, seed=3)


def budget_for(method: str | Method) -> Budget:
    """Return what the contracts ask of a method."""
    return BUDGETS[find_method(method).budgets[0]]


def small_batches(monkeypatch: pytest.MonkeyPatch, tokens: int = 32) -> None:
    """Let a pass over the tokens of the contracts take three batches."""
    monkeypatch.setattr(sweep, "BATCH_TOKENS", tokens)


def plan_on(view: View, method: str | Method, folder: Path | None = None, **given: Any) -> Plan:
    """Plan with the tokens and the budget of the contracts; `given` may name others, and options."""
    found = find_method(method)
    exact = found.name not in FROM_GATES or HEADS not in view.family.inexact
    budget = {field.name: given.pop(field.name) for field in fields(Budget) if field.name in given}
    return make_plan(
        view,
        found,
        given.pop("tokens", calibration()),
        Budget(**budget) if budget else budget_for(method),
        source="here",
        seed=given.pop("seed", 0),
        journal=Journal(folder),
        progress=given.pop("progress", Progress()),
        cost=given.pop("cost", None),
        crew=given.pop("crew", ALONE),
        options=SHORT.get(found.name, {}) | ({} if exact else {"kinds": "mlp"}) | given,
    )


@cache
def planned(method: str, name: str) -> Planned:
    """Plan once, straight through, with default options; tests share the outcome."""
    view, cost = View(make_model(name)), Cost()
    plan = plan_on(view, method, cost=cost)
    return Planned(plan, logits(view.model), cost.forward_layer_tokens)
