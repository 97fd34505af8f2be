"""What a method is: a generator of ops whose signature is its configuration.

A method's keyword-only parameters, with their types, defaults and `Annotated` help, are its options; nothing else
describes them. `layers` and `goal` are special: they are what the user's budget comes to. May import `registry`
and its neighbours.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args, get_type_hints

from pydantic import ConfigDict, ValidationError, create_model

from sned.errors import ConfigError
from sned.registry import did_you_mean, entries

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from sned.plans.budget import BudgetKind
    from sned.plans.ops import Op

Prunes = Literal["depth", "width", "weights"]
GROUP = "sned.methods"
CALIBRATION_TOKENS = 65_536
_BUDGET = ("layers", "goal")


@dataclass(frozen=True, slots=True)
class Option:
    """One option of a method, as its signature states it."""

    name: str
    type: Any
    default: Any
    help: str


@dataclass(frozen=True)
class Method:
    """A named generator of ops, with what users want to know about it."""

    name: str
    run: Callable[..., Iterator[Op]]
    title: str
    paper: str
    prunes: Prunes
    needs_tokens: bool
    budgets: tuple[BudgetKind, ...] = ("layers", "remove")
    """The kinds of budget that make sense for it."""
    calibration_tokens: int = CALIBRATION_TOKENS
    """How many it looks at unless told otherwise."""

    @property
    def summary(self) -> str:
        """The first line of the docstring."""
        return (inspect.getdoc(self.run) or "").partition("\n")[0]

    @property
    def options(self) -> list[Option]:
        """The options besides the budget."""
        parameters = inspect.signature(self.run).parameters.values()
        named = [p for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in _BUDGET]
        # of the options alone: what else the signature names may be imported for type checkers only
        holder = type("_Options", (), {"__annotations__": {p.name: p.annotation for p in named}})
        hints = get_type_hints(holder, self.run.__globals__, include_extras=True)
        return [Option(p.name, hints[p.name], p.default, _help(hints[p.name])) for p in named]

    @property
    def default_layers(self) -> int | None:
        """The number of layers that the signature proposes, if any."""
        parameter = inspect.signature(self.run).parameters.get("layers")
        return parameter.default if parameter is not None and isinstance(parameter.default, int) else None

    def parse(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return all options, typed, from what the user gave: values, or their text as on a command line.

        Raises:
            ConfigError: an option is unknown or has a value it cannot have; all problems are listed.
        """
        options = {o.name: o for o in self.options}
        problems = [
            f"{self.name} has no option {name!r}; {did_you_mean(name, options)}"
            for name in given
            if name not in options
        ]
        if problems:
            raise ConfigError("; ".join(problems), hint=f"`sned methods {self.name}` lists the options")
        fields: dict[str, Any] = {o.name: (o.type, o.default) for o in options.values()}
        schema = create_model(f"{self.name}_options", __config__=ConfigDict(extra="forbid"), **fields)
        try:
            parsed = schema.model_validate({name: _literal(value) for name, value in given.items()})
        except ValidationError as error:
            lines = [f"{e['loc'][0]}={e['input']!r}: {e['msg']}" for e in error.errors()]
            raise ConfigError(f"{self.name}: " + "; ".join(lines)) from error
        return parsed.model_dump()


def method(
    *,
    paper: str,
    prunes: Prunes,
    title: str = "",
    needs_tokens: bool = True,
    budgets: tuple[BudgetKind, ...] = ("layers", "remove"),
    calibration_tokens: int = CALIBRATION_TOKENS,
) -> Callable[[Callable[..., Iterator[Op]]], Method]:
    """Turn a generator of ops into a method.

    Args:
        paper: Where it was published, such as ``arXiv:2403.03853``; empty for a baseline.
        prunes: What it removes.
        title: The paper's title.
        needs_tokens: Whether it looks at calibration text.
        budgets: The kinds of budget it takes. With layers among them, the generator is given their number as
            `layers`, else a `goal` to reach.
        calibration_tokens: How many tokens it looks at unless told otherwise.
    """

    def wrap(run: Callable[..., Iterator[Op]]) -> Method:
        return Method(run.__name__, run, title, paper, prunes, needs_tokens, budgets, calibration_tokens)

    return wrap


def find_method(name: str | Method) -> Method:
    """Return a method by name.

    Raises:
        ConfigError: there is none; similar names are suggested.
    """
    if isinstance(name, Method):
        return name
    known = entries(GROUP)
    if name not in known:
        raise ConfigError(f"there is no method {name!r}", hint=did_you_mean(name, known))
    loaded = known[name].load()
    if not isinstance(loaded, Method):
        raise ConfigError(f"{known[name].value} is not a method", hint="decorate it with @sned.method")
    return loaded


def all_methods() -> list[Method]:
    """Return every installed method, by name."""
    return [find_method(name) for name in entries(GROUP)]


def _literal(value: Any) -> Any:
    """Read a command-line text that means nothing as None; the schema reads numbers and switches itself."""
    return None if value in ("none", "null") else value


def _help(hint: Any) -> str:
    return next((arg for arg in get_args(hint)[1:] if isinstance(arg, str)), "")
