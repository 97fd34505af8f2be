"""The options of a method as flags: ``--ridge 0.1`` beside ``--set ridge=0.1``. Imports typer; methods when needed.

What a method can be told is known only once it is named, so these flags are taken out of the command line before
typer reads the rest.
"""

from __future__ import annotations

from difflib import get_close_matches
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args, get_origin

from typer.core import TyperCommand

from sned.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    import typer

    from sned.runtime.method import Method

_KEY = "sned.method_flags"


class MethodCommand(TyperCommand):
    """A command that takes the flags of the method named by ``--method``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Take out the method's flags, then parse the rest.

        Raises:
            ConfigError: a flag belongs neither to the command nor to the method.
        """
        takes_value = {
            option: not getattr(param, "is_flag", False)
            for param in self.get_params(ctx)
            for option in (*param.opts, *param.secondary_opts)
            if option.startswith("-")
        }
        rest, ctx.meta[_KEY] = take_flags(args, takes_value)
        return super().parse_args(ctx, rest)


def take_flags(args: Sequence[str], own: Mapping[str, bool]) -> tuple[list[str], dict[str, str]]:
    """Split a command line into what the command knows and the flags of its method, as option and text.

    Args:
        args: The command line after the command's name.
        own: The command's own options, and whether each is followed by a value.

    Raises:
        ConfigError: a flag is of neither, or is given twice.
    """
    foreign = [text for text, _, mine in _walk(args, own) if not mine]
    if not foreign or "--help" in args:
        return [text for text, _, mine in _walk(args, own) if mine], {}
    switches, known = _method_options(_named_method(args, own))
    rest: list[str] = []
    flags: dict[str, str] = {}
    for text, value, mine in _walk(args, own, switches):
        if mine:
            rest.append(text)
            continue
        flag = text.partition("=")[0]
        name, read = _read(text, value, switches)
        if known is not None and name not in known:
            raise ConfigError(f"no such option: {flag}", hint=_suggest(flag, [*own, *map(_flag_of, known)]))
        if known is not None and read is None:
            raise ConfigError(f"the option {flag} needs a value", hint=f"such as {flag} VALUE")
        _add(flags, name, read or "true")
    return rest, flags


def collect(ctx: typer.Context, settings: Iterable[str]) -> dict[str, str]:
    """Return the method's options as text: from its flags, and from ``--set key=value``.

    Raises:
        ConfigError: a setting has no equals sign, or an option is given twice.
    """
    options: dict[str, str] = dict(ctx.meta.get(_KEY, {}))
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set {setting} is not key=value", hint="such as --set ridge=0.1")
        _add(options, key.strip().replace("-", "_"), value)
    return options


def is_switch(kind: Any) -> bool:
    """Tell whether an option of this type needs no value on the command line."""
    if get_origin(kind) is Annotated:
        return is_switch(get_args(kind)[0])
    if get_origin(kind) in (Union, UnionType):
        return set(get_args(kind)) <= {bool, type(None)}
    return kind is bool


def _walk(
    args: Sequence[str], own: Mapping[str, bool], switches: Iterable[str] = ()
) -> Iterator[tuple[str, str | None, bool]]:
    """Yield `(argument, value that follows it, whether it is the command's own)`; own values come by themselves."""
    position = 0
    while position < len(args):
        text = args[position]
        position += 1
        name, equals, _ = text.partition("=")
        if text == "--":
            yield from ((rest, None, True) for rest in args[position - 1 :])
            return
        if not text.startswith("--") or name in own:
            yield text, None, True
            if own.get(text, False) and not equals and position < len(args):
                yield args[position], None, True
                position += 1
            continue
        following = args[position] if position < len(args) else None
        alone = bool(equals) or _option_name(text).removeprefix("no_") in switches
        if alone or following is None or (following.startswith("-") and not _is_number(following)):
            yield text, None, False
        else:
            yield text, following, False
            position += 1


def _read(text: str, value: str | None, switches: Iterable[str]) -> tuple[str, str | None]:
    """Return the option that a flag stands for and its value: None where one is needed and missing."""
    name, (_, equals, given) = _option_name(text), text.partition("=")
    if equals:
        return name, given
    if name in switches:
        return name, "true"
    if name.removeprefix("no_") in switches:
        return name.removeprefix("no_"), "false"
    return name, value


def _method_options(method: Method | None) -> tuple[set[str], list[str] | None]:
    """Return the options that need no value, and all; None where the method is not named."""
    if method is None:
        return set(), None
    options = method.options
    return {o.name for o in options if is_switch(o.type)}, [o.name for o in options]


def _named_method(args: Sequence[str], own: Mapping[str, bool]) -> Method | None:
    from sned.runtime.method import find_method

    mine = [text for text, _, kept in _walk(args, own) if kept]
    name = None
    for text, following in zip(mine, [*mine[1:], None], strict=True):
        if text in ("-m", "--method"):
            name = following
        elif text.startswith("--method="):
            name = text.partition("=")[2]
        elif text.startswith("-m") and len(text) > 2:
            name = text[2:]
    return None if name is None else find_method(name)


def _suggest(flag: str, options: list[str]) -> str:
    near = get_close_matches(flag, options, n=2, cutoff=0.7)
    return f"did you mean {' or '.join(near)}?" if near else "`sned methods NAME` lists the options of a method"


def _flag_of(option: str) -> str:
    return f"--{option.replace('_', '-')}"


def _option_name(text: str) -> str:
    return text.partition("=")[0].removeprefix("--").replace("-", "_")


def _add(options: dict[str, str], name: str, value: str) -> None:
    if name in options:
        raise ConfigError(f"the option {name!r} is given twice")
    options[name] = value


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
