"""The commands that read and load no model: `show`, `diff`, `methods` and `report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from sned.cli import options, plans, sparse
from sned.cli.terminal import Terminal, display
from sned.errors import ConfigError

SHOW_EXAMPLES = (
    "sned show plans/shortgpt",
    "sned show runs/demo --json",
    "sned show plans/blocks --as blockpruner",
)
DIFF_EXAMPLES = ("sned diff plans/shortgpt plans/uidl",)
METHODS_EXAMPLES = ("sned methods", "sned methods replaceme")
REPORT_EXAMPLES = ("sned report runs/demo",)

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
                "zeros": sparse.overlap(a, b),
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
    """List the methods and allocators, or tell all about one."""
    terminal: Terminal = ctx.obj
    terminal.configure(json=json, verbose=verbose)
    from sned.cli import catalogue

    if name is not None:
        one = catalogue.find(name)
        return terminal.document(catalogue.described(one)) if json else terminal.show(*catalogue.page(one))
    return terminal.document(catalogue.document()) if json else terminal.show(*catalogue.listing())


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
