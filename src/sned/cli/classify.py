"""The command `classify`: a classifier out of a model's first layers. Its job is imported when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from sned.cli import options, tables
from sned.cli.prune import RESUME
from sned.cli.terminal import Terminal, display
from sned.jobs.request import ClassifyRequest, LoadRequest

CLASSIFY_EXAMPLES = (
    "sned classify demo --data reviews.jsonl -o runs/reviews",
    "sned classify demo --data train.jsonl --held-out valid.jsonl --test test.jsonl --label topic -o topics",
)
_DATA = "Data"

_Data = Annotated[
    str,
    typer.Option(
        metavar="FILE",
        help='JSON lines, each a text and its class: {"text": "...", "label": "..."}.',
        rich_help_panel=_DATA,
        show_default=False,
    ),
]
_HeldOut = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="Texts to choose the depth by; default: a share of --data.",
        rich_help_panel=_DATA,
        show_default=False,
    ),
]
_HeldOutShare = Annotated[
    float,
    typer.Option(min=0.01, max=0.9, metavar="SHARE", help="Of each class, without --held-out.", rich_help_panel=_DATA),
]
_Test = Annotated[
    str | None,
    typer.Option(
        metavar="FILE", help="Texts to judge the result by, nothing else.", rich_help_panel=_DATA, show_default=False
    ),
]
_Text = Annotated[str, typer.Option(metavar="COLUMN", help="Where the texts are.", rich_help_panel=_DATA)]
_Label = Annotated[str, typer.Option(metavar="COLUMN", help="Where the classes are.", rich_help_panel=_DATA)]
_SeqLen = Annotated[
    int, typer.Option("--seq-len", min=1, metavar="N", help="Longer texts are cut.", rich_help_panel=_DATA)
]
_Probe = Annotated[
    Literal["solve", "train"],
    typer.Option(
        help="Ridge regression in closed form, or logistic regression, whose penalty is chosen on held-out texts.",
        rich_help_panel="Choice",
    ),
]
_Layers = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Keep so many layers; default: the fewest within one standard error of the best.",
        rich_help_panel="Choice",
        show_default=False,
    ),
]


def classify(
    ctx: options.Context,
    model: options.Model,
    data: _Data,
    out: options.Out,
    held_out: _HeldOut = None,
    held_out_share: _HeldOutShare = 0.2,
    test: _Test = None,
    text: _Text = "text",
    label: _Label = "label",
    seq_len: _SeqLen = 1024,
    probe: _Probe = "solve",
    layers: _Layers = None,
    seed: options.Seed = 0,
    dtype: options.DType = "auto",
    device: options.Device = "auto",
    stream: options.Stream = "auto",
    trust_inferred: options.TrustInferred = False,
    resume: options.Resume = True,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Make a classifier out of a model's first layers and a linear head; the other layers go."""
    terminal: Terminal = ctx.obj
    progress = terminal.configure(json=json, quiet=quiet, verbose=verbose)
    request = ClassifyRequest(
        load=LoadRequest(model, dtype, device, stream, trust_inferred),
        data=data,
        out=Path(out),
        held_out=held_out,
        held_out_share=held_out_share,
        test=test,
        text=text,
        label=label,
        probe=probe,
        layers=layers,
        seq_len=seq_len,
        seed=seed,
        overwrite=overwrite,
        resume=resume,
        command=terminal.command,
    )
    from sned.jobs.classify import classify as run
    from sned.report import classifier

    terminal.after_interrupt = RESUME
    found = run(request, progress)
    if json:
        return terminal.document(found)
    place = display(out)
    return terminal.show(
        tables.table(classifier.headers(found), classifier.rows(found)),
        "",
        classifier.verdict(found),
        classifier.remark(found),
        "",
        f"Saved   {place}",
        f"Report  {place}/sned/report.html",
        "",
        f'Use it: transformers.pipeline("text-classification", "{place}")',
    )
