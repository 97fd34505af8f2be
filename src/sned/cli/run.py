"""The command `run`: a whole job of several stages from one file. Its job is imported when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sned.cli import options, prune
from sned.errors import ConfigError
from sned.jobs.request import RunRequest

if TYPE_CHECKING:
    from sned.cli.terminal import Terminal

RUN_EXAMPLES = (
    "sned run recipe.yaml -o runs/small",
    "sned run recipe.yaml --set prune.layers=4 --set heal.rank=8 --set seed=1 -o runs/smaller",
    "sned run runs/small/sned/recipe.yaml --dry-run",
)

_Recipe = Annotated[
    Path,
    typer.Argument(
        metavar="RECIPE",
        help="A YAML file: model, texts and stages (prune, then any of heal, eval, report).",
        show_default=False,
    ),
]
_Out = Annotated[
    Path | None,
    typer.Option(
        "--out", "-o", metavar="FOLDER", help="Where the result goes, whatever the recipe says.", show_default=False
    ),
]
_Set = Annotated[
    list[str],
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change the recipe: seed=1, prune.layers=4, heal.rank=8, or stages.2.heal.rank=8 where there are "
        "several. Repeatable.",
        rich_help_panel="How to run",
        show_default=False,
    ),
]
_DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        metavar="",
        help="Only check the recipe, and print it with all defaults.",
        rich_help_panel="How to run",
    ),
]


def run(
    ctx: options.Context,
    recipe: _Recipe,
    out: _Out = None,
    settings: _Set = [],  # noqa: B006 - typer shows it in the help, and nothing changes it
    resume: options.Resume = True,
    dry_run: _DryRun = False,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Carry out a recipe of stages: prune, heal, set tasks, report."""
    terminal: Terminal = ctx.obj
    progress = terminal.configure(json=json, quiet=quiet, verbose=verbose)
    from sned.jobs import recipe_file

    read = recipe_file.read_recipe(recipe, settings, out)
    if dry_run:
        told = recipe_file.document(read)
        return terminal.document(told) if json else terminal.show(recipe_file.as_yaml(read).rstrip())
    if read.out is None:
        raise ConfigError(
            f"{recipe} does not say where the result goes", hint="add --out FOLDER, or out: to the recipe"
        )
    from sned.jobs.run import run as carry_out

    terminal.after_interrupt = prune.RESUME
    target = Path(read.out)
    request = RunRequest(read, target, overwrite=overwrite, resume=resume, command=terminal.command)
    return prune.announce(terminal, carry_out(request, progress), target)
