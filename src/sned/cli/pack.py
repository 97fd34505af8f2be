"""The commands that change how a checkpoint lies on disk, and nothing else of it: `pack` and `unpack`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sned.cli import options, tables
from sned.cli.terminal import Terminal, display
from sned.report import numbers

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import RenderableType

PACK_EXAMPLES = ("sned pack runs/wanda -o runs/wanda-packed",)
UNPACK_EXAMPLES = ("sned unpack runs/wanda-packed -o runs/wanda-again",)

_Folder = Annotated[
    Path, typer.Argument(metavar="OUT", help="A checkpoint with many zeros, as pruning left it.", show_default=False)
]
_Packed = Annotated[Path, typer.Argument(metavar="PACKED", help="A folder that was packed.", show_default=False)]


def pack(
    ctx: options.Context,
    folder: _Folder,
    out: options.Out,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Store a checkpoint without its zeros: a bit mask and what is left, in safetensors."""
    terminal: Terminal = ctx.obj
    progress = terminal.configure(json=json, quiet=quiet, verbose=verbose)
    from sned.jobs.pack import pack as run

    done = run(folder, out, overwrite=overwrite, progress=progress)
    if json:
        return terminal.document(done)
    packed = display(out)
    terminal.show(*_sizes(done), "", f"Packed  {packed}", "")
    return terminal.show(
        "Verified: every weight file comes back byte for byte. sned takes the packed folder wherever it takes a model.",
        f"Plain transformers does not load it; for that, first: sned unpack {packed} -o OUT",
    )


def unpack(
    ctx: options.Context,
    packed: _Packed,
    out: options.Out,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Give back the checkpoint that was packed, the same to the byte."""
    terminal: Terminal = ctx.obj
    progress = terminal.configure(json=json, quiet=quiet, verbose=verbose)
    from sned.jobs.pack import unpack as run

    done = run(packed, out, overwrite=overwrite, progress=progress)
    if json:
        return terminal.document(done)
    files = [(file["file"], numbers.scaled(file["bytes"], "B"), file["sha256"]) for file in done["files"]]
    return terminal.show(
        tables.table(("weights, as they were packed", "size", "SHA-256"), files, left=(0, 2)),
        "",
        f"Unpacked  {display(out)}",
    )


def _sizes(done: Mapping[str, Any]) -> list[RenderableType]:
    """Return what packing saved, for people."""
    weights, tensors = done["weights"], done["tensors"]
    rows = [
        _row("all weights", weights),
        _row(f"{tensors['packed']} packed tensors of {tensors['of']}", tensors),
    ]
    zeros = f"{numbers.count(tensors['zeros'])} of {numbers.count(tensors['values'])} values"
    rule = f"one bit in {tensors['bits']:.3g} and what is not zero"
    theory = f"{zeros} are zero ({numbers.percent(tensors['sparsity'])}); in theory, {rule}: "
    return [tables.table(("", "before", "after", "ratio"), rows), "", theory + numbers.times(tensors["theory"])]


def _row(label: str, sizes: Mapping[str, Any]) -> tuple[str, ...]:
    before, after = (numbers.scaled(sizes[name], "B") for name in ("bytes_before", "bytes_after"))
    return (label, before, after, numbers.times(sizes["ratio"]))
