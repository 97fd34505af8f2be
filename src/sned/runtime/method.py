"""What a method is: a generator of ops whose signature is its configuration.

`layers` and `goal` are no options: they are what the user's budget comes to. May import its neighbours.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from sned.plans.budget import Budget
from sned.registry import entries
from sned.runtime.signature import Configurable, find
from sned.score.quota import parse_n_of_m

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sned.plans.budget import BudgetKind
    from sned.plans.ops import Op

Prunes = Literal["depth", "width", "weights"]
CALIBRATION_TOKENS = 65_536


@dataclass(frozen=True)
class Method(Configurable):
    """A named generator of ops, with what users want to know about it."""

    kind = "method"
    group = "sned.methods"
    given = ("layers", "goal")

    prunes: Prunes = "depth"
    budgets: tuple[BudgetKind, ...] = ("layers", "remove")
    """The kinds of budget that make sense for it."""
    calibration_tokens: int = CALIBRATION_TOKENS
    """How many it looks at unless told otherwise."""
    may_read_text: Callable[[Mapping[str, Any]], bool] | None = None
    """For a method that needs no text: which options make it look at some all the same."""
    passes: Callable[[Mapping[str, Any]], float] | None = None
    """About how many times it runs the text through the model, one way, with some options; unless said, once."""
    goes_back: Callable[[Mapping[str, Any]], bool] | None = None
    """For a method that takes gradients through the whole model: with which options it does."""
    together: bool = False
    """Whether processes that a launcher starts share what it trains."""

    def reads_text(self, options: Mapping[str, Any]) -> bool:
        """Tell whether it looks at calibration text with these options, parsed."""
        return self.needs_tokens or (self.may_read_text is not None and self.may_read_text(options))

    @property
    def takes_goal(self) -> bool:
        """Whether it is given a goal to reach, not a number of layers."""
        return "goal" in inspect.signature(self.run).parameters

    @property
    def default_layers(self) -> int | None:
        """The number of layers that the signature proposes, if any."""
        parameter = inspect.signature(self.run).parameters.get("layers")
        return parameter.default if parameter is not None and isinstance(parameter.default, int) else None

    def proposed_budget(self, options: Mapping[str, Any]) -> Budget:
        """Return what is removed where the user gives no budget: what the signature or an n:m pattern says, if any."""
        if self.default_layers is not None:
            return Budget(layers=self.default_layers)
        if "sparsity" in self.budgets and (pattern := parse_n_of_m(str(options.get("pattern", "")))):
            return Budget(sparsity=1 - pattern[0] / pattern[1])
        return Budget()


def method(
    *,
    paper: str,
    prunes: Prunes,
    title: str = "",
    needs_tokens: bool = True,
    budgets: tuple[BudgetKind, ...] = ("layers", "remove"),
    calibration_tokens: int = CALIBRATION_TOKENS,
    may_read_text: Callable[[Mapping[str, Any]], bool] | None = None,
    passes: Callable[[Mapping[str, Any]], float] | None = None,
    goes_back: Callable[[Mapping[str, Any]], bool] | None = None,
    together: bool = False,
) -> Callable[[Callable[..., Iterator[Op]]], Method]:
    """Turn a generator of ops into a method.

    Args:
        paper: Where it was published, such as ``arXiv:2403.03853``; empty if nowhere.
        prunes: What it removes.
        title: The paper's title.
        needs_tokens: Whether it looks at calibration text.
        budgets: The kinds of budget it takes. The generator is given a `goal` to reach, or, if it has a parameter
            `layers` instead, the number of whole layers that meet the budget.
        calibration_tokens: How many tokens it looks at unless told otherwise.
        may_read_text: Where it needs no text: which options make it look at some all the same.
        passes: About how many times it runs the text through the model, with some options; the way back counts twice.
        goes_back: Where it takes gradients through the whole model: with which options it does.
        together: Whether processes that a launcher starts share what it trains.
    """

    def wrap(run: Callable[..., Iterator[Op]]) -> Method:
        name = run.__name__
        facts = (title, paper, needs_tokens, prunes, budgets, calibration_tokens, may_read_text, passes, goes_back)
        return Method(name, run, *facts, together)

    return wrap


def find_method(name: str | Method) -> Method:
    """Return a method by name.

    Raises:
        ConfigError: there is none; similar names are suggested.
    """
    return name if isinstance(name, Method) else find(Method, name)


def all_methods() -> list[Method]:
    """Return every installed method, by name."""
    return [find_method(name) for name in entries(Method.group)]
