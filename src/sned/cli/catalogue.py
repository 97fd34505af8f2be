"""What methods and allocators there are, and what each can be told. Imports rich; the registry when called."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

from rich.text import Text

from sned.cli.tables import facts, table
from sned.errors import ConfigError
from sned.models.families import FAMILIES
from sned.plans.budget import BUDGET_FLAGS
from sned.registry import did_you_mean
from sned.runtime.allocator import Allocator, all_allocators
from sned.runtime.method import Method, all_methods

if TYPE_CHECKING:
    from rich.console import RenderableType

    from sned.runtime.signature import Configurable, Option

_BUDGETED = {"layers": "--layers 6", "blocks": "--blocks 12", "remove": "--remove 15%", "sparsity": "--sparsity 50%"}


def find(name: str) -> Configurable:
    """Return a method or an allocator by name.

    Raises:
        ConfigError: there is none; similar names are suggested.
    """
    known: dict[str, Configurable] = {one.name: one for one in [*all_allocators(), *all_methods()]}
    if name not in known:
        raise ConfigError(f"there is no method or allocator {name!r}", hint=did_you_mean(name, known))
    return known[name]


def document() -> dict[str, Any]:
    """Return all of them for programs."""
    return {
        "methods": [described(one) for one in all_methods()],
        "allocators": [described(one) for one in all_allocators()],
    }


def listing() -> list[RenderableType]:
    """Return all of them for people."""
    rows = [(one.name, one.prunes, one.paper or "baseline", one.summary) for one in all_methods()]
    how_many = [(one.name, one.paper or "baseline", one.summary) for one in all_allocators()]
    return [
        table(("name", "prunes", "paper", "what it does"), rows, left=(0, 1, 2, 3), whole=(0, 1, 2)),
        "",
        "Methods that prune weights take --allocate NAME, which decides how many weights of each matrix go:",
        "",
        table(("name", "paper", "what it does"), how_many, left=(0, 1, 2), whole=(0, 1)),
        "",
        "`sned methods NAME` lists the options of one.",
    ]


def described(one: Configurable) -> dict[str, Any]:
    """Return one for programs."""
    known: dict[str, Any] = {"name": one.name, "title": one.title, "paper": one.paper}
    if isinstance(one, Method):
        known |= {
            "families": sorted(FAMILIES),
            "prunes": one.prunes,
            "needs_tokens": one.needs_tokens,
            "budget": list(one.budgets),
            "calibration_tokens": one.calibration_tokens if one.needs_tokens else 0,
        }
    else:
        known |= {"needs_tokens": one.needs_tokens}
    taken = [{"name": o.name, "type": _spell(o.type), "default": o.default, "help": o.help} for o in one.options]
    return known | {"summary": one.summary, "description": one.description, "options": taken}


def page(one: Configurable) -> list[RenderableType]:
    """Return one for people."""
    rows = _method_facts(one) if isinstance(one, Method) else _allocator_facts(one)
    shown: list[RenderableType] = [Text(one.title or one.name, style="bold"), "", facts(rows), ""]
    shown += [Text(_flowing(one.description)), ""]
    if one.options:
        spell = _setting if isinstance(one, Allocator) else _flag
        told = [
            (spell(o), _spell(o.type).replace("|", " | "), "" if o.default is None else _plain(o.default), o.help)
            for o in one.options
        ]
        shown += [table(("option", "value", "default", "what it means"), told, left=(0, 1, 2, 3), whole=(0, 2)), ""]
    return [*shown, "Example:", f"    {_example(one)}"]


def _method_facts(method: Method) -> list[tuple[str, str]]:
    usual = f"calibration text, {method.calibration_tokens:,} tokens unless told otherwise"
    looks = usual if method.needs_tokens else "nothing but the model"
    if method.may_read_text is not None:
        looks = f"nothing but the model; with some options {usual}"
    # a mixture of experts has no channels to cut
    works = [name for name, family in FAMILIES.items() if method.prunes != "width" or not family.experts]
    proposed = "" if method.default_layers is None else f"; {method.default_layers} layers if none is given"
    return [
        ("Method", method.name),
        ("Paper", method.paper or "none"),
        ("Prunes", method.prunes),
        ("Works on", ", ".join(sorted(works))),
        ("Looks at", looks),
        ("Budget", " or ".join(BUDGET_FLAGS[kind] for kind in method.budgets) + proposed),
    ]


def _allocator_facts(one: Configurable) -> list[tuple[str, str]]:
    return [
        ("Allocator", one.name),
        ("Paper", one.paper or "none"),
        ("Looks at", "calibration text" if one.needs_tokens else "nothing but the model"),
        ("Used by", ", ".join(m.name for m in all_methods() if "sparsity" in m.budgets)),
    ]


def _example(one: Configurable) -> str:
    if isinstance(one, Method):
        return f"sned prune demo -m {one.name} {_BUDGETED[one.budgets[0]]} -o runs/{one.name}"
    first = next((o for o in one.options if isinstance(o.default, float)), None)
    setting = "" if first is None else f":{first.name}={first.default:g}"
    return f"sned prune demo -m wanda --sparsity 60% --allocate {one.name}{setting} -o runs/{one.name}"


def _flowing(text: str) -> str:
    """Return a docstring with each paragraph on one line, for the terminal to break."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))


def _flag(option: Option) -> str:
    from sned.cli.flags import is_switch

    name = option.name.replace("_", "-")
    return f"--[no-]{name}" if is_switch(option.type) else f"--{name}"


def _setting(option: Option) -> str:
    return f"{option.name}="


def _spell(kind: Any) -> str:
    """Return what an option takes, in words: ``number``, ``lstsq|cosine|mse``."""
    if get_origin(kind) is Annotated:
        return _spell(get_args(kind)[0])
    if get_origin(kind) is Literal:
        return "|".join(map(str, get_args(kind)))
    if args := [arg for arg in get_args(kind) if arg is not type(None)]:
        return "|".join(map(_spell, args))
    names = {bool: "yes/no", int: "number", float: "number", str: "text"}
    return names.get(kind, getattr(kind, "__name__", str(kind)))


def _plain(value: Any) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
