"""The commands that change a model: `prune`, `plan`, `apply`, `import` and `demo`. Jobs are imported when one runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sned.cli import flags, options, plans, requests
from sned.cli.terminal import Terminal, display
from sned.cli.together import carry_out
from sned.jobs.request import LoadRequest, PlanRequest, PruneRequest

if TYPE_CHECKING:
    from sned.plans.plan import Plan
    from sned.progress import Progress
    from sned.report.schema import Report

DEMO = Path("runs/demo")
RESUME = "the same command goes on where this one stopped; --no-resume starts over"

PRUNE_EXAMPLES = (
    "sned prune demo -m replaceme --layers 6 -o runs/smaller",
    "sned prune meta-llama/Llama-3.2-1B -m uidl --remove 25% --baseline random --stream on -o runs/llama",
    "sned prune demo -m blockpruner --blocks 12 --search racing --dtype fp32 -o runs/blocks",
    "sned prune ./model -m replaceme --layers 4 --estimator cosine --calib file:notes.jsonl#text -o runs/mine",
)
PLAN_EXAMPLES = (
    "sned plan demo -m shortgpt --layers 4 -o plans/shortgpt",
    "sned plan ./model -m replaceme --remove 20% --remove-of body --set structure=diagonal -o plans/mine",
)
APPLY_EXAMPLES = ("sned apply demo plans/shortgpt -o runs/shortgpt",)
IMPORT_EXAMPLES = (
    "sned import demo pruning_config.json -o plans/theirs",
    "sned import ./model blocks.json --blocks 12 -o plans/twelve",
)
DEMO_EXAMPLES = ("sned demo", "sned demo -o runs/again --overwrite")


_Published = Annotated[
    Path, typer.Argument(metavar="FILE", help="Their pruning_config.json, or list of blocks.", show_default=False)
]
_First = Annotated[
    int | None,
    typer.Option("--blocks", metavar="N", help="The first N removals of a BlockPruner file; all, if left out."),
]
_Reorder = Annotated[
    bool,
    typer.Option(
        "--reorder/--no-reorder",
        metavar="",
        help="Whether widths of a MultiPruner file count units by magnitude, for files that do not say.",
    ),
]


def prune(
    ctx: options.Context,
    model: options.Model,
    method: options.Method,
    out: options.Out,
    layers: options.Layers = None,
    blocks: options.Blocks = None,
    remove: options.Remove = None,
    remove_of: options.RemoveOf = "all",
    sparsity: options.Sparsity = None,
    calib: options.Calib = ["builtin"],  # noqa: B006 - typer shows it in the help, and nothing changes it
    calib_tokens: options.CalibTokens = None,
    seq_len: options.SeqLen = 1024,
    evaluation: options.Eval = ["builtin"],  # noqa: B006
    eval_tokens: options.EvalTokens = 16_384,
    allow_overlap: options.AllowOverlap = False,
    baseline: options.Baseline = [],  # noqa: B006
    speed: options.Speed = True,
    settings: options.Set = [],  # noqa: B006
    seed: options.Seed = 0,
    dtype: options.DType = "auto",
    device: options.Device = "auto",
    stream: options.Stream = "auto",
    trust_inferred: options.TrustInferred = False,
    resume: options.Resume = True,
    dry_run: options.DryRun = False,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Prune a model: plan, apply, save, verify, evaluate, report.

    Started by torchrun, several processes share what a method trains.
    """
    terminal: Terminal = ctx.obj
    progress = terminal.configure(json=json, quiet=quiet, verbose=verbose)
    chosen = flags.collect(ctx, settings)
    request = PruneRequest(
        load=LoadRequest(model, dtype, device, stream, trust_inferred),
        method=method,
        budget=requests.budget(
            method,
            chosen,
            layers=layers,
            blocks=blocks,
            remove=remove,
            remove_of=remove_of,
            sparsity=sparsity,
        ),
        out=out,
        options=chosen,
        calibration=requests.text(calib, calib_tokens, seq_len, "calib"),
        seed=seed,
        overwrite=overwrite,
        resume=resume,
        command=terminal.command,
        evaluation=requests.text(evaluation, eval_tokens, seq_len, "eval"),
        allow_overlap=allow_overlap,
        baselines=tuple(baseline),
        speed=speed,
    )
    if dry_run:
        return _forecast(terminal, request, progress)
    from sned.jobs.prune import prune as run

    terminal.after_interrupt = RESUME
    report = carry_out(run, request, progress)
    return None if report is None else announce(terminal, report, out)


def plan(
    ctx: options.Context,
    model: options.Model,
    method: options.Method,
    out: options.Out,
    layers: options.Layers = None,
    blocks: options.Blocks = None,
    remove: options.Remove = None,
    remove_of: options.RemoveOf = "all",
    sparsity: options.Sparsity = None,
    calib: options.Calib = ["builtin"],  # noqa: B006
    calib_tokens: options.CalibTokens = None,
    seq_len: options.SeqLen = 1024,
    settings: options.Set = [],  # noqa: B006
    seed: options.Seed = 0,
    dtype: options.DType = "auto",
    device: options.Device = "auto",
    stream: options.Stream = "auto",
    trust_inferred: options.TrustInferred = False,
    resume: options.Resume = True,
    dry_run: options.DryRun = False,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Decide what to remove, and write that as a plan; the model stays as it is."""
    terminal: Terminal = ctx.obj
    progress = terminal.configure(json=json, quiet=quiet, verbose=verbose)
    chosen = flags.collect(ctx, settings)
    request = PlanRequest(
        load=LoadRequest(model, dtype, device, stream, trust_inferred),
        method=method,
        budget=requests.budget(
            method,
            chosen,
            layers=layers,
            blocks=blocks,
            remove=remove,
            remove_of=remove_of,
            sparsity=sparsity,
        ),
        out=out,
        options=chosen,
        calibration=requests.text(calib, calib_tokens, seq_len, "calib"),
        seed=seed,
        overwrite=overwrite,
        resume=resume,
        command=terminal.command,
    )
    if dry_run:
        return _forecast(terminal, request, progress)
    from sned.jobs.plan import plan as run

    terminal.after_interrupt = RESUME
    made = carry_out(run, request, progress)
    return None if made is None else _show_plan(terminal, made, model, out)


def apply(
    ctx: options.Context,
    model: options.Model,
    plan: options.PlanPath,
    out: options.Out,
    dtype: options.DType = "auto",
    device: options.Device = "auto",
    stream: options.Stream = "auto",
    trust_inferred: options.TrustInferred = False,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Carry out a plan on the model it was made for: apply, save, verify."""
    terminal: Terminal = ctx.obj
    progress = terminal.configure(json=json, quiet=quiet, verbose=verbose)
    from sned.jobs.apply import apply as run

    load = LoadRequest(model, dtype, device, stream, trust_inferred)
    made = run(load, plan, out, overwrite=overwrite, command=terminal.command, progress=progress)
    announce(terminal, made, out)


def import_(
    ctx: options.Context,
    model: options.Model,
    file: _Published,
    out: options.Out,
    blocks: _First = None,
    reorder: _Reorder = True,
    dtype: options.DType = "auto",
    device: options.Device = "auto",
    stream: options.Stream = "auto",
    trust_inferred: options.TrustInferred = False,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Read the result file of MultiPruner's or BlockPruner's own code as a plan for the model."""
    terminal: Terminal = ctx.obj
    progress = terminal.configure(json=json, quiet=quiet, verbose=verbose)
    from sned.jobs.published import import_plan

    load = LoadRequest(model, dtype, device, stream, trust_inferred)
    made = import_plan(load, file, out, reorder=reorder, blocks=blocks, overwrite=overwrite, progress=progress)
    _show_plan(terminal, made, model, out)


def demo(
    ctx: options.Context,
    out: options.Out = DEMO,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Prune 6 of the 30 layers of SmolLM2-135M-Instruct; needs no network."""
    terminal: Terminal = ctx.obj
    progress = terminal.configure(json=json, quiet=quiet, verbose=verbose)
    from sned.jobs.demo import demo as run

    again = out == DEMO and (out / "sned" / "report.json").is_file()  # `make demo` may be repeated at will
    terminal.after_interrupt = "the same command goes on where this one stopped"
    announce(terminal, run(out, overwrite or again, progress), out)


def _forecast(terminal: Terminal, request: PlanRequest, progress: Progress) -> None:
    """Show what a job would do."""
    from sned.jobs.forecast import dry_run_together

    expected = carry_out(dry_run_together, request, progress)
    if expected is None:
        return
    if terminal.json:
        terminal.document(expected)
    else:
        terminal.show(plans.forecast(expected))


def _show_plan(terminal: Terminal, made: Plan, model: str, out: Path) -> None:
    """Show a plan that was written, and what to do with it."""
    if terminal.json:
        return terminal.document(plans.document(made))
    folder = display(out)
    return terminal.show(*plans.parts(made), "", f"Plan   {folder}", f"Apply  sned apply {model} {folder} -o OUT")


def announce(terminal: Terminal, report: Report, out: Path) -> None:
    """Show the result of a job that wrote a model."""
    if terminal.json:
        return terminal.document(report.to_json())
    from sned.report import facts, text

    unseen = [warning for warning in report.warnings if warning not in terminal.warned]
    folder = display(out)
    terminal.show(text.summary(report.model_copy(update={"warnings": unseen})), "")
    terminal.show(f"Model   {folder}", f"Report  {folder}/sned/report.html", "", "Load it:")
    return terminal.show(*(f"    {line}" for line in facts.loading(report, folder).splitlines() if line))
