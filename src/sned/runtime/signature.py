"""A signature that is a configuration: the keyword-only parameters of a function are its options.

Their types, defaults and `Annotated` help are all there is to say about them. Methods and allocators are told what to
do in this way. May import `registry`.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, get_args, get_type_hints

from pydantic import ConfigDict, ValidationError, create_model

from sned.errors import ConfigError
from sned.registry import did_you_mean, entries

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


@dataclass(frozen=True, slots=True)
class Option:
    """One option, as a signature states it."""

    name: str
    type: Any
    default: Any
    help: str


@dataclass(frozen=True)
class Configurable:
    """A named function with options, found among installed packages, and what users want to know about it."""

    kind: ClassVar[str]
    """What it is, in a word."""
    group: ClassVar[str]
    """The entry points among which it is found."""
    given: ClassVar[tuple[str, ...]] = ()
    """Parameters that are no options: what the user's budget comes to."""

    name: str
    run: Callable[..., Any]
    title: str
    paper: str
    needs_tokens: bool

    @property
    def summary(self) -> str:
        """The first line of the docstring."""
        return self.description.partition("\n")[0]

    @property
    def description(self) -> str:
        """The docstring."""
        return inspect.getdoc(self.run) or ""

    @property
    def options(self) -> list[Option]:
        """The options, in the order of the signature."""
        parameters = inspect.signature(self.run).parameters.values()
        named = [p for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in self.given]
        # of the options alone: what else the signature names may be imported for type checkers only
        holder = type("_Options", (), {"__annotations__": {p.name: p.annotation for p in named}})
        hints = get_type_hints(holder, self.run.__globals__, include_extras=True)
        return [Option(p.name, hints[p.name], p.default, _help(hints[p.name])) for p in named]

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


C = TypeVar("C", bound=Configurable)


def find(kind: type[C], name: str) -> C:
    """Return an installed method or allocator by name.

    Raises:
        ConfigError: there is none; similar names are suggested.
    """
    known = entries(kind.group)
    if name not in known:
        raise ConfigError(f"there is no {kind.kind} {name!r}", hint=did_you_mean(name, known))
    loaded = known[name].load()
    if not isinstance(loaded, kind):
        raise ConfigError(f"{known[name].value} is not a {kind.kind}", hint=f"decorate it with @sned.{kind.kind}")
    return loaded


def _literal(value: Any) -> Any:
    """Read a command-line text that means nothing as None; the schema reads numbers and switches itself."""
    return None if value in ("none", "null") else value


def _help(hint: Any) -> str:
    return next((arg for arg in get_args(hint)[1:] if isinstance(arg, str)), "")
