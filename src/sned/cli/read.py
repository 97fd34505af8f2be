"""The commands that read and load no model: `show`, `diff`, `methods` and `report`."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

import typer
from rich.text import Text

from sned.cli import options, plans
from sned.cli.tables import facts, table
from sned.cli.terminal import Terminal, display
from sned.errors import ConfigError
from sned.models.families import FAMILIES
from sned.plans.budget import BUDGET_FLAGS

if TYPE_CHECKING:
    from rich.console import RenderableType

    from sned.runtime.method import Method
    from sned.runtime.signature import Option

SHOW_EXAMPLES = (
    "sned show plans/shortgpt",
    "sned show runs/demo --json",
    "sned show plans/blocks --as blockpruner",
)
DIFF_EXAMPLES = ("sned diff plans/shortgpt plans/uidl",)
METHODS_EXAMPLES = ("sned methods", "sned methods replaceme")
REPORT_EXAMPLES = ("sned report runs/demo",)

_BUDGETED = {"layers": "--layers 6", "blocks": "--blocks 12", "remove": "--remove 15%"}

_Second = Annotated[Path, typer.Argument(metavar="OTHER", help="The plan to compare with.", show_default=False)]
_As = Annotated[
    Literal["multipruner", "blockpruner"] | None,
    typer.Option("--as", help="Print the result file that these authors' code reads.", show_default=False),
]
_Base = Annotated[
    str | None,
    typer.Option(
        "--base", metavar="MODEL", help="With --as multipruner: the base model, if it has moved.", show_default=False
    ),
]
_Name = Annotated[str | None, typer.Argument(metavar="NAME", help="A method; all, if left out.", show_default=False)]
_Folder = Annotated[Path, typer.Argument(metavar="OUT", help="A folder that sned wrote.", show_default=False)]


def show(
    ctx: options.Context,
    plan: options.PlanPath,
    written_as: _As = None,
    base: _Base = None,
    json: options.Json = False,
    verbose: options.Verbose = False,
) -> None:
    """Read a plan: what it removes, from which model, what that saves, and why."""
    terminal: Terminal = ctx.obj
    progress = terminal.configure(json=json or written_as is not None, verbose=verbose)
    if written_as is not None:
        from sned.jobs.published import export_plan

        return terminal.document(export_plan(plan, written_as, base, progress))
    if base is not None:
        raise ConfigError("--base is for --as multipruner", hint="leave it out")
    from sned.plans.store import load_plan

    made = load_plan(plan)
    if json:
        return terminal.document(plans.document(made))
    return terminal.show(*plans.parts(made))


def diff(
    ctx: options.Context,
    first: options.PlanPath,
    second: _Second,
    json: options.Json = False,
    verbose: options.Verbose = False,
) -> None:
    """Compare two plans, layer by layer."""
    terminal: Terminal = ctx.obj
    terminal.configure(json=json, verbose=verbose)
    from sned.plans.store import load_plan

    a, b = load_plan(first), load_plan(second)
    if json:
        terminal.document(
            {
                "same": a.digest == b.digest,
                "base": a.base.differences(b.base),
                "layers": plans.layer_differences(a, b),
                "pruned": {"first": a.pruned.model_dump(), "second": b.pruned.model_dump()},
            }
        )
    else:
        terminal.show(*plans.differences(a, b, (display(first), display(second))))


def methods(
    ctx: options.Context,
    name: _Name = None,
    json: options.Json = False,
    verbose: options.Verbose = False,
) -> None:
    """List the methods, or tell all about one."""
    terminal: Terminal = ctx.obj
    terminal.configure(json=json, verbose=verbose)
    from sned.runtime.method import all_methods, find_method

    if name is not None:
        one = find_method(name)
        if json:
            return terminal.document(_described(one))
        return terminal.show(*_page(one))
    if json:
        return terminal.document({"methods": [_described(one) for one in all_methods()]})
    rows = [(one.name, one.prunes, one.paper or "baseline", one.summary) for one in all_methods()]
    terminal.show(table(("name", "prunes", "paper", "what it does"), rows, left=(0, 1, 2, 3), whole=(0, 1, 2)), "")
    return terminal.show("`sned methods NAME` lists the options of one.")


def report(
    ctx: options.Context,
    out: _Folder,
    json: options.Json = False,
    verbose: options.Verbose = False,
) -> None:
    """Write report.html again, from report.json."""
    terminal: Terminal = ctx.obj
    terminal.configure(json=json, verbose=verbose)
    from sned.jobs.report import rewrite

    page = rewrite(out)
    if json:
        terminal.document({"report": str(page)})
    else:
        terminal.show(f"Report  {display(page)}")


def _described(method: Method) -> dict[str, Any]:
    """Return a method for programs."""
    return {
        "name": method.name,
        "title": method.title,
        "paper": method.paper,
        "families": sorted(FAMILIES),
        "prunes": method.prunes,
        "needs_tokens": method.needs_tokens,
        "budget": list(method.budgets),
        "calibration_tokens": method.calibration_tokens if method.needs_tokens else 0,
        "summary": method.summary,
        "description": inspect.getdoc(method.run) or "",
        "options": [{"name": o.name, "type": _kind(o), "default": o.default, "help": o.help} for o in method.options],
    }


def _page(method: Method) -> list[RenderableType]:
    """Return a method for people."""
    usual = f"calibration text, {method.calibration_tokens:,} tokens unless told otherwise"
    looks = usual if method.needs_tokens else "nothing but the model's depth"
    proposed = "" if method.default_layers is None else f"; {method.default_layers} layers if none is given"
    budget = " or ".join(BUDGET_FLAGS[kind] for kind in method.budgets) + proposed
    shown: list[RenderableType] = [
        Text(method.title or method.name, style="bold"),
        "",
        facts(
            [
                ("Method", method.name),
                ("Paper", method.paper or "none: a baseline"),
                ("Prunes", method.prunes),
                ("Works on", ", ".join(sorted(FAMILIES))),
                ("Looks at", looks),
                ("Budget", budget),
            ]
        ),
        "",
        Text(inspect.getdoc(method.run) or ""),
        "",
    ]
    if method.options:
        rows = [
            (_flag(o), _kind(o).replace("|", " | "), "" if o.default is None else _plain(o.default), o.help)
            for o in method.options
        ]
        shown += [table(("option", "value", "default", "what it means"), rows, left=(0, 1, 2, 3), whole=(0, 2)), ""]
    return [
        *shown,
        "Example:",
        f"    sned prune demo -m {method.name} {_BUDGETED[method.budgets[0]]} -o runs/{method.name}",
    ]


def _flag(option: Option) -> str:
    from sned.cli.flags import is_switch

    name = option.name.replace("_", "-")
    return f"--[no-]{name}" if is_switch(option.type) else f"--{name}"


def _kind(option: Option) -> str:
    """Return what an option takes, in words: ``int``, ``lstsq|cosine|mse``."""
    return _spell(option.type)


def _spell(kind: Any) -> str:
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
