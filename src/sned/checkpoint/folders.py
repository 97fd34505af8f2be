"""Result folders that are whole or absent, on disks that may be full. Imports errors only.

A folder is built beside its final place under a hidden name and renamed when it is complete. Whatever was
there before is removed last of all.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from sned.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterator

_MARKERS = ("sned/report.json", "sned/classifier.json", "sned/plan.json", "plan.json", "packed.json")
_HIDDEN = re.compile(r"^\.(.+)\.partial-[0-9a-f]{8}$")
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def format_bytes(count: int) -> str:
    """Return a size for people: ``"269.1 MB"``, in powers of 1000."""
    value, unit = float(count), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 999.95 or unit == "TB":
            break
        value /= 1000
    return f"{count} B" if unit == "B" else f"{value:.1f} {unit}"


def free_bytes(path: Path) -> int:
    """Return the bytes free to us on the disk that holds `path`, or would if it were made."""
    path = Path(path).absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def write_error(folder: Path, error: Exception, *, needed: int | None = None) -> CheckpointError:
    """Return the error for a failed write: the folder, the bytes needed (if known) and the bytes free.

    A folder still under its hidden name is told by the name it was to get.
    """
    shown = folder.with_name(_HIDDEN.sub(r"\1", folder.name))
    free = f"{format_bytes(free_bytes(folder))} are free there"
    sizes = free if needed is None else f"{format_bytes(needed)} were to be written, {free}"
    return CheckpointError(
        f"could not write into {shown}: {error} ({sizes}).",
        hint="Free space, check the permissions, or choose another folder. Nothing half-written is left.",
    )


def check_output(out: Path, *, overwrite: bool) -> None:
    """Refuse a place that a result folder must not take; call it before the work as well as at its end.

    A missing or empty folder is fine. Any other folder needs `overwrite`. A file, a mount point, and the home
    and working directories with all that lie above them, are never replaced.

    Raises:
        CheckpointError: the place is taken or protected.
    """
    out = Path(out).expanduser().resolve()
    for special in (Path.cwd(), Path.home().resolve()):
        if out == special or out in special.parents:
            raise CheckpointError(
                f"{out} is or contains the {'working' if special == Path.cwd() else 'home'} directory, "
                "which a result must not replace.",
                hint="Name a new folder, such as runs/pruned.",
            )
    above = next(folder for folder in out.parents if folder.exists())
    if not above.is_dir():
        raise CheckpointError(f"{above} is a file, and no folder can be in it.", hint="Name another folder.")
    if out.exists() and not out.is_dir():
        raise CheckpointError(f"{out} is a file; a result is a folder.", hint="Name a new folder, or move the file.")
    if os.path.ismount(out):
        raise CheckpointError(
            f"{out} is a mount point and cannot be replaced.", hint=f"Name a folder in it: {out}/model"
        )
    if overwrite or not out.is_dir() or not any(out.iterdir()):
        return
    ours = any((out / marker).is_file() for marker in _MARKERS)
    what = "already holds a result of sned" if ours else "exists and was not written by sned"
    raise CheckpointError(f"{out} {what}.", hint="Choose another folder, or pass --overwrite to replace it.")


@contextmanager
def atomic_folder(out: Path, *, overwrite: bool) -> Iterator[Path]:
    """Give a new folder beside `out` that takes its name if the block succeeds, and is removed if it doesn't.

    With `overwrite`, what `out` held stays until the new folder is whole, and comes back if the exchange
    fails.

    Raises:
        CheckpointError: `out` is taken or protected (`check_output`), or the disk is full or not writable.
    """
    check_output(out, overwrite=overwrite)
    out = Path(out).expanduser().resolve()
    partial = _sibling(out, "partial")
    made = [folder for folder in partial.parents if not folder.exists()]
    try:
        try:
            partial.mkdir(parents=True)
        except OSError as error:
            raise write_error(out, error) from error
        yield partial
        check_output(out, overwrite=overwrite)
        _exchange(partial, out)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        for folder in made:  # innermost first; one that something else has used meanwhile stays
            with suppress(OSError):
                folder.rmdir()
        if isinstance(error, OSError) and error.errno in _FULL:
            raise write_error(out, error) from error
        raise


def put_in_place(folder: Path, out: Path, *, overwrite: bool) -> None:
    """Give a finished folder on the same disk the name `out`, as `atomic_folder` does at its end.

    Raises:
        CheckpointError: `out` is taken or protected (`check_output`), or the folder cannot be renamed.
    """
    check_output(out, overwrite=overwrite)
    _exchange(folder, Path(out).expanduser().resolve())


def _sibling(out: Path, purpose: str) -> Path:
    return out.parent / f".{out.name}.{purpose}-{secrets.token_hex(4)}"


def _exchange(partial: Path, out: Path) -> None:
    """Put `partial` in the place of `out`; the old content is deleted only when the new has its name."""
    old = _sibling(out, "old")
    try:
        if out.exists():
            out.rename(old)
        partial.rename(out)
    except BaseException as error:
        if old.exists() and not out.exists():
            old.rename(out)
        if isinstance(error, OSError):
            raise write_error(out, error) from error
        raise
    shutil.rmtree(old, ignore_errors=True)
