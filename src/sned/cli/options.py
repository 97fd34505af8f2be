"""The options that commands share, named and explained once. Imports typer and the names of `jobs.request`.

Each is an annotated type: a command takes the option by having a parameter of that type. typer reads the
annotations when it runs, so the modules of commands import this one for real.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from sned.jobs.request import DeviceName, DTypeName, Switch

Context = typer.Context

_BUDGET, _TEXT, _RUN, _OUTPUT = "Budget", "Text", "How to run", "Output"
_PROFILES = "Shares of zeros"
_TASKS = "Tasks"

Model = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="A folder, a Hub id, a .gguf file, or `demo`.", show_default=False),
]
PlanPath = Annotated[
    Path, typer.Argument(metavar="PLAN", help="A plan, or a folder that sned wrote.", show_default=False)
]
Method = Annotated[
    str, typer.Option("--method", "-m", metavar="NAME", help="How to choose; see `sned methods`.", show_default=False)
]
Out = Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="Where the result goes.", show_default=False)]

Layers = Annotated[
    int | None,
    typer.Option("--layers", metavar="N", help="Remove so many decoder layers.", rich_help_panel=_BUDGET),
]
Blocks = Annotated[
    int | None,
    typer.Option("--blocks", metavar="N", help="Remove so many attentions and MLPs.", rich_help_panel=_BUDGET),
]
Remove = Annotated[
    str | None,
    typer.Option(
        "--remove", metavar="SHARE", help="Remove this share of the parameters: 25% or 0.25.", rich_help_panel=_BUDGET
    ),
]
RemoveOf = Annotated[
    Literal["all", "body"],
    typer.Option(
        "--remove-of", help="What --remove is a share of: all parameters, or the layers'.", rich_help_panel=_BUDGET
    ),
]
Sparsity = Annotated[
    str | None,
    typer.Option(
        "--sparsity",
        metavar="SHARE",
        help="Set this share of the layers' weights to zero: 50% or 0.5.",
        rich_help_panel=_BUDGET,
    ),
]

ScanSparsity = Annotated[
    str | None,
    typer.Option(
        "--sparsity",
        metavar="SHARE",
        help="Also show what share of zeros each layer would get from each allocator, at 50% or 0.5 in all. "
        "This takes further passes over the text.",
        rich_help_panel=_PROFILES,
        show_default=False,
    ),
]
Allocators = Annotated[
    list[str],
    typer.Option(
        "--allocate",
        metavar="NAME[:KEY=VALUE,..]",
        help="Show this allocator, such as owl:multiple=3. Repeatable; default: all that are installed.",
        rich_help_panel=_PROFILES,
        show_default=False,
    ),
]

Calib = Annotated[
    list[str],
    typer.Option(
        "--calib",
        metavar="SOURCE",
        help="Calibration text: builtin, file:PATH, hf:REPO, tokens:PATH. Repeat to mix: SOURCE*WEIGHT.",
        rich_help_panel=_TEXT,
    ),
]
CalibTokens = Annotated[
    int | None,
    typer.Option(
        "--calib-tokens",
        metavar="N",
        help="How many tokens to calibrate on; each method has its own default, see `sned methods NAME`.",
        rich_help_panel=_TEXT,
        show_default=False,
    ),
]
ScanTokens = Annotated[
    int, typer.Option("--calib-tokens", metavar="N", help="How many tokens to look at.", rich_help_panel=_TEXT)
]
SeqLen = Annotated[
    int, typer.Option("--seq-len", metavar="N", help="Tokens in one window of text.", rich_help_panel=_TEXT)
]
Eval = Annotated[
    list[str],
    typer.Option(
        "--eval", metavar="SOURCE", help="Evaluation text; must not overlap calibration.", rich_help_panel=_TEXT
    ),
]
EvalTokens = Annotated[
    int, typer.Option("--eval-tokens", metavar="N", help="How many tokens to evaluate on.", rich_help_panel=_TEXT)
]
AllowOverlap = Annotated[
    bool,
    typer.Option(
        "--allow-overlap", metavar="", help="Evaluate on text seen in calibration; noted.", rich_help_panel=_TEXT
    ),
]
Baseline = Annotated[
    list[str],
    typer.Option(
        "--baseline",
        metavar="NAME",
        help="Also plan and evaluate with this method, for comparison. Repeatable.",
        rich_help_panel=_TEXT,
        show_default=False,
    ),
]
Speed = Annotated[
    bool,
    typer.Option("--speed/--no-speed", metavar="", help="Race the dense model and the result.", rich_help_panel=_RUN),
]

Tasks = Annotated[
    list[str],
    typer.Option(
        "--tasks",
        metavar="NAME[,NAME]",
        help="Also set these tasks: choices, which needs nothing more, any of lm-eval's, or a YAML file in its format. "
        "Repeatable.",
        rich_help_panel=_TASKS,
        show_default=False,
    ),
]
TaskItems = Annotated[
    int | None,
    typer.Option(
        "--task-items",
        metavar="N",
        help="Only so many items of each task; default: 200 of choices, all of the others.",
        rich_help_panel=_TASKS,
        show_default=False,
    ),
]
Items = Annotated[
    Path | None,
    typer.Option(
        "--items",
        metavar="FOLDER",
        help="Write what each model made of each item, for `sned stability`.",
        rich_help_panel=_TASKS,
        show_default=False,
    ),
]
Cached = Annotated[
    bool,
    typer.Option(
        "--cached",
        metavar="",
        help="In choices, read each context once and keep its KV cache: less than half of the work.",
        rich_help_panel=_TASKS,
    ),
]

Seed = Annotated[int, typer.Option("--seed", min=0, metavar="N", help="Of all chance.", rich_help_panel=_RUN)]
DType = Annotated[
    DTypeName, typer.Option("--dtype", help="Run and save in this dtype; auto: the file's own.", rich_help_panel=_RUN)
]
Device = Annotated[DeviceName, typer.Option("--device", help="auto: a GPU where there is one.", rich_help_panel=_RUN)]
Stream = Annotated[
    Switch,
    typer.Option("--stream", help="Read layer by layer from disk; auto: when memory is short.", rich_help_panel=_RUN),
]
TrustInferred = Annotated[
    bool,
    typer.Option(
        "--trust-inferred", metavar="", help="Accept the guess at an unknown architecture.", rich_help_panel=_RUN
    ),
]
Set = Annotated[
    list[str],
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="An option of the method; --key VALUE does the same. See `sned methods NAME`.",
        rich_help_panel=_RUN,
        show_default=False,
    ),
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume/--no-resume", metavar="", help="Go on where an interrupted run stopped.", rich_help_panel=_RUN
    ),
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run", metavar="", help="Only say what would be done, in what memory and time.", rich_help_panel=_RUN
    ),
]

Overwrite = Annotated[
    bool, typer.Option("--overwrite", metavar="", help="Replace the folder if it exists.", rich_help_panel=_OUTPUT)
]
Json = Annotated[
    bool,
    typer.Option(
        "--json", metavar="", help="One JSON document on stdout, the rest on stderr.", rich_help_panel=_OUTPUT
    ),
]
Quiet = Annotated[
    bool,
    typer.Option(
        "--quiet", metavar="", help="No progress; only warnings, errors and the result.", rich_help_panel=_OUTPUT
    ),
]
Verbose = Annotated[
    bool,
    typer.Option(
        "--verbose", "-v", metavar="", help="With an error, also where in sned it arose.", rich_help_panel=_OUTPUT
    ),
]
Against = Annotated[
    str | None,
    typer.Option("--against", metavar="BASE", help="The model to compare with.", show_default=False),
]
