"""The command that compares logs of items: `stability`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from sned.cli import options, tables
from sned.cli.terminal import Terminal, display
from sned.report import numbers

if TYPE_CHECKING:
    from rich.console import RenderableType

STABILITY_EXAMPLES = (
    "sned stability runs/items/base runs/items/model",
    "sned stability base/piqa.jsonl pruned/piqa.jsonl --agreement same-answer",
)

_Log = "A log of items that `sned eval --items` wrote, or a folder of them"
_Base = Annotated[Path, typer.Argument(metavar="BASE_LOG", help=f"{_Log}: that of the base.", show_default=False)]
_Pruned = Annotated[
    Path, typer.Argument(metavar="PRUNED_LOG", help="The same of the pruned model.", show_default=False)
]
_Ddof = Annotated[
    int,
    typer.Option(
        "--ddof", min=0, max=1, metavar="N", help="Divide squared deviations by choices − N: 1 as in the paper, or 0."
    ),
]
_Score = Annotated[
    Literal["nll", "ppl"],
    typer.Option(
        "--score",
        help="What deviates among choices: loss per token, or its exponential, which gives few items all the weight.",
    ),
]
_Agreement = Annotated[
    Literal["correctness", "same-answer"],
    typer.Option("--agreement", help="Agree where both are right or both wrong, or where both answer alike."),
]


def stability(
    ctx: options.Context,
    base: _Base,
    pruned: _Pruned,
    ddof: _Ddof = 1,
    score: _Score = "nll",
    agreement: _Agreement = "correctness",
    json: options.Json = False,
    verbose: options.Verbose = False,
) -> None:
    """Say how far a pruned model keeps the verdicts of its base, item by item, where sure ones weigh more."""
    terminal: Terminal = ctx.obj
    terminal.configure(json=json, verbose=verbose)
    from sned.jobs.stability import compare_logs

    found = compare_logs(base, pruned, ddof=1 if ddof else 0, score=score, agree=agreement)
    if json:
        return terminal.document(found)
    return terminal.show(f"{display(base)} beside {display(pruned)}", "", *_shown(found))


def _shown(found: Mapping[str, Any]) -> list[RenderableType]:
    """Return the table of all tasks, with their plain mean where there are several."""
    rows = [
        (
            name,
            numbers.grouped(row["items"]),
            *_shares(row),
            *(numbers.grouped(row["flips"][key]) for key in ("tp", "fn", "fp", "tn")),
        )
        for name, row in found["tasks"].items()
    ]
    if len(rows) > 1:
        rows.append(("mean", "", *_shares(found["mean"]), "", "", "", ""))
    headers = ("task", "items", "stability", "agreement", "legacy", "TP", "FN", "FP", "TN")
    remark = (
        "Items weigh by how sure the base was; legacy: what the code released with the paper gives. "
        "TP right in both, FN lost, FP won, TN wrong in both"
    )
    return [tables.table(headers, rows), "", remark]


def _shares(row: Mapping[str, float]) -> list[str]:
    return [f"{row[key]:.4f}" for key in ("stability", "agreement", "legacy")]
