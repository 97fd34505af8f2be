"""The commands that look at a model and write none: `inspect`, `scan`, `eval` and `bench`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sned.cli import models, options, requests
from sned.cli.terminal import Terminal, display
from sned.jobs.request import LoadRequest

if TYPE_CHECKING:
    from sned.report.schema import Report

INSPECT_EXAMPLES = ("sned inspect demo", "sned inspect ./model --json")
SCAN_EXAMPLES = (
    "sned scan demo",
    "sned scan ./model --calib file:notes.txt --calib-tokens 16384 -o runs/scan",
    "sned scan demo --sparsity 50% --allocate owl --allocate owl:multiple=3 -o runs/scan",
)
EVAL_EXAMPLES = (
    "sned eval runs/demo --against demo",
    "sned eval ./model --eval file:held-out.txt --json",
    "sned eval runs/demo --against demo --tasks choices,piqa --task-items 100 --items runs/items",
)
BENCH_EXAMPLES = (
    "sned bench runs/demo --against demo",
    "sned bench runs/two-of-four --sparse-kernels --device cuda --dtype bf16",
)

_MaybeOut = Annotated[
    Path | None,
    typer.Option("--out", "-o", metavar="FOLDER", help="Also write scan.json and scan.html.", show_default=False),
]
_SparseKernels = Annotated[
    bool,
    typer.Option(
        "--sparse-kernels",
        metavar="",
        help="Run 2:4 matrices on the sparse kernels of an NVIDIA GPU; without --against, compare with dense kernels.",
    ),
]


def inspect(
    ctx: options.Context,
    model: options.Model,
    dtype: options.DType = "auto",
    trust_inferred: options.TrustInferred = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Say what a model is, what of it can be pruned and why not, and what that takes."""
    terminal: Terminal = ctx.obj
    progress = terminal.configure(json=json, quiet=quiet, verbose=verbose)
    from sned.jobs.inspect import inspect as run

    found = run(LoadRequest(model, dtype, "cpu", "on", trust_inferred), progress)
    if json:
        return terminal.document(found)
    return terminal.show(*models.inspected(found))


def scan(
    ctx: options.Context,
    model: options.Model,
    out: _MaybeOut = None,
    calib: options.Calib = ["builtin"],  # noqa: B006 - typer shows it in the help, and nothing changes it
    calib_tokens: options.ScanTokens = 65_536,
    seq_len: options.SeqLen = 1024,
    sparsity: options.ScanSparsity = None,
    allocate: options.Allocators = [],  # noqa: B006
    seed: options.Seed = 0,
    dtype: options.DType = "auto",
    device: options.Device = "auto",
    stream: options.Stream = "auto",
    trust_inferred: options.TrustInferred = False,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Measure how much every layer, attention and MLP matters, in one pass; if asked, compare allocators of zeros."""
    terminal: Terminal = ctx.obj
    progress = terminal.configure(json=json, quiet=quiet, verbose=verbose)
    text = requests.text(calib, calib_tokens, seq_len, "calib")
    shares = requests.profiles(sparsity, allocate)
    if out is not None:
        from sned.checkpoint.folders import check_output

        check_output(out, overwrite=overwrite)
    from sned.jobs import scan as job

    found = job.scan(LoadRequest(model, dtype, device, stream, trust_inferred), text, seed, progress, shares)
    if out is not None:
        job.write(found, out, overwrite=overwrite)
    if json:
        return terminal.document(found)
    terminal.show(*models.scanned(found))
    return None if out is None else terminal.show("", f"Written  {display(out)}/scan.html and scan.json")


def evaluate(
    ctx: options.Context,
    model: options.Model,
    against: options.Against = None,
    evaluation: options.Eval = ["builtin"],  # noqa: B006
    eval_tokens: options.EvalTokens = 16_384,
    seq_len: options.SeqLen = 1024,
    tasks: options.Tasks = [],  # noqa: B006
    task_items: options.TaskItems = None,
    items: options.Items = None,
    cached: options.Cached = False,
    seed: options.Seed = 0,
    dtype: options.DType = "auto",
    device: options.Device = "auto",
    stream: options.Stream = "auto",
    trust_inferred: options.TrustInferred = False,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Measure perplexity and how far a model moved from its base, and set it tasks."""
    terminal: Terminal = ctx.obj
    progress = terminal.configure(json=json, quiet=quiet, verbose=verbose)
    text = requests.text(evaluation, eval_tokens, seq_len, "eval")
    asked = requests.tasks(tasks, task_items, items, cached=cached, overwrite=overwrite)
    from sned.jobs.evaluate import evaluate as run

    load = LoadRequest(model, dtype, device, stream, trust_inferred)
    _tell(terminal, run(load, against, text, seed, progress, asked), model, against)
    if items is not None and not json:
        terminal.show("", f"Written  {display(items)}")


def bench(
    ctx: options.Context,
    model: options.Model,
    against: options.Against = None,
    sparse_kernels: _SparseKernels = False,
    dtype: options.DType = "auto",
    device: options.Device = "auto",
    trust_inferred: options.TrustInferred = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Measure prefill and decoding speed and size on disk, beside another model."""
    terminal: Terminal = ctx.obj
    progress = terminal.configure(json=json, quiet=quiet, verbose=verbose)
    from sned.jobs.bench import bench as run

    load = LoadRequest(model, dtype, device, "off", trust_inferred)
    _tell(terminal, run(load, against, progress, sparse_kernels=sparse_kernels), model, against)


def _tell(terminal: Terminal, report: Report, model: str, against: str | None) -> None:
    """Show what was measured."""
    if terminal.json:
        return terminal.document(report.to_json())
    return terminal.show(*models.measured(report, model, against))
