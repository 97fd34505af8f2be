"""The command `heal`: training what pruning left. Its job is imported when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from sned.cli import options, requests
from sned.cli.prune import RESUME, announce
from sned.cli.together import carry_out
from sned.jobs.request import TRAINING_RATES, HealRequest, LoadRequest

if TYPE_CHECKING:
    from sned.cli.terminal import Terminal

HEAL_EXAMPLES = (
    "sned heal runs/demo -o runs/healed",
    "sned heal runs/demo --train full --last 4 --lr 1e-4 --calib-tokens 262144 -o runs/healed",
    "sned heal runs/demo --loss ce --calib file:notes.txt --first-share 0.3 -o runs/mine",
)
_TRAINING = "Training"

_Pruned = Annotated[
    Path, typer.Argument(metavar="OUT", help="A folder that sned pruned a model into.", show_default=False)
]
_Base = Annotated[
    str | None,
    typer.Option(
        "--base", metavar="MODEL", help="The model it was pruned from, if that was moved.", show_default=False
    ),
]
_Train = Annotated[
    Literal["lora", "full", "transform"],
    typer.Option(
        help="Low-rank updates, merged afterwards; all weights; or only the linear maps for removed layers.",
        rich_help_panel=_TRAINING,
    ),
]
_Loss = Annotated[
    Literal["kl", "ce", "states"],
    typer.Option(
        help="Learn from the base's predictions, from the text, or from the base's last states.",
        rich_help_panel=_TRAINING,
    ),
]
_Last = Annotated[
    int | None,
    typer.Option(
        "--last",
        min=1,
        metavar="K",
        help="Train the last K layers only.",
        rich_help_panel=_TRAINING,
        show_default=False,
    ),
]
_Rank = Annotated[
    int | None,
    typer.Option(
        min=1, metavar="R", help="lora: rank of an update; default: 16.", rich_help_panel=_TRAINING, show_default=False
    ),
]
_Alpha = Annotated[
    float | None,
    typer.Option(
        min=1e-9,
        metavar="A",
        help="lora: an update counts A / R times; default: 32.",
        rich_help_panel=_TRAINING,
        show_default=False,
    ),
]
_Rate = Annotated[
    float | None,
    typer.Option(
        "--lr",
        min=1e-9,
        metavar="RATE",
        help="Peak of AdamW; default: 1e-3, or 1e-4 for full.",
        rich_help_panel=_TRAINING,
        show_default=False,
    ),
]
_Epochs = Annotated[
    int, typer.Option(min=1, metavar="N", help="Times that the text is seen.", rich_help_panel=_TRAINING)
]
_Batch = Annotated[int, typer.Option(min=1, metavar="N", help="Windows of text per step.", rich_help_panel=_TRAINING)]
_FirstShare = Annotated[
    float,
    typer.Option(
        min=0.0,
        max=1.0,
        metavar="SHARE",
        help="Of its change that the first layer keeps, rising with depth to all of it (LiNeS).",
        rich_help_panel=_TRAINING,
    ),
]
_KeepZeros = Annotated[
    bool | None,
    typer.Option(
        "--keep-zeros/--free-zeros",
        metavar="",
        help="Whether zeros among the weights stay; default: if the plan made some.",
        rich_help_panel=_TRAINING,
        show_default=False,
    ),
]
_Recompute = Annotated[
    bool,
    typer.Option(
        "--recompute",
        metavar="",
        help="Keep only what enters each layer, and run it again on the way back: less memory, some more time.",
        rich_help_panel=_TRAINING,
    ),
]
_Shard = Annotated[
    bool,
    typer.Option(
        "--shard",
        metavar="",
        help="Several processes: each holds some layers of the models, and sends them to the others as they run.",
        rich_help_panel=_TRAINING,
    ),
]
_Tokens = Annotated[
    int | None,
    typer.Option(
        "--calib-tokens",
        metavar="N",
        help="How many tokens to train on.  [default: 131072]",
        rich_help_panel="Text",
        show_default=False,
    ),
]


def heal(
    ctx: options.Context,
    pruned: _Pruned,
    out: options.Out,
    base: _Base = None,
    train: _Train = "lora",
    loss: _Loss = "kl",
    last: _Last = None,
    rank: _Rank = None,
    alpha: _Alpha = None,
    lr: _Rate = None,
    epochs: _Epochs = 1,
    batch: _Batch = 4,
    first_share: _FirstShare = 1.0,
    keep_zeros: _KeepZeros = None,
    recompute: _Recompute = False,
    shard: _Shard = False,
    calib: options.Calib = ["builtin"],  # noqa: B006 - typer shows it in the help, and nothing changes it
    calib_tokens: _Tokens = None,
    seq_len: options.SeqLen = 1024,
    evaluation: options.Eval = ["builtin"],  # noqa: B006
    eval_tokens: options.EvalTokens = 16_384,
    allow_overlap: options.AllowOverlap = False,
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
    """Recover quality by training: a pruned model learns from the one it came from.

    Started by torchrun, several processes share the work.
    """
    terminal: Terminal = ctx.obj
    progress = terminal.configure(json=json, quiet=quiet, verbose=verbose)
    from sned.training.healing import Healing, low_rank
    from sned.training.schedule import Schedule

    rank, alpha = low_rank(train, rank, alpha)
    request = HealRequest(
        pruned=pruned,
        load=LoadRequest(base or "", dtype, device, stream, trust_inferred),
        out=out,
        healing=Healing(
            train=train,
            loss=loss,
            last=last,
            rank=rank,
            alpha=alpha,
            first_share=first_share,
            schedule=Schedule(batch=batch, epochs=epochs, lr=TRAINING_RATES[train] if lr is None else lr),
        ),
        keep_zeros=keep_zeros,
        recompute=recompute,
        shard=shard,
        text=requests.text(calib, calib_tokens, seq_len, "calib"),
        evaluation=requests.text(evaluation, eval_tokens, seq_len, "eval"),
        allow_overlap=allow_overlap,
        seed=seed,
        overwrite=overwrite,
        resume=resume,
        command=terminal.command,
    )
    from sned.jobs.heal import heal as run

    terminal.after_interrupt = RESUME
    report = carry_out(run, request, progress)
    if report is not None:
        announce(terminal, report, out)
