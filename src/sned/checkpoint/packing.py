"""Checkpoints with many zeros in a compact form on disk: a packed folder, and the very same folder back.

A packed folder has a `packed.safetensors` (or one per shard) in the place of each weight file, and `packed.json`,
which holds what gives these back byte by byte: their headers, with shapes and dtypes, and their digests. All other
files are copied as they are. May import pydantic and its neighbours in `checkpoint`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from sned import __version__
from sned.checkpoint.catalogue import catalogue, leads_outside, parse_header
from sned.checkpoint.folders import write_error
from sned.checkpoint.packed_file import Survey, damaged, pack_file, restored, survey, verify_file
from sned.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from sned.progress import Progress

CONTENTS = "packed.json"
_FORMAT = 1
_ABOUT = (
    "A checkpoint whose zeros were left out, written by `sned pack`. `sned unpack` gives back the very same files. "
    "Each file named under `packed` is a safetensors file. A tensor NAME is there under its own name, or as two: "
    "NAME.mask holds one bit for each of its values, row by row, the first value in the highest bit of the first byte; "
    "NAME.values holds those whose bit is 1, in the same order, and all others are +0.0. "
    "The file named under `original` was: the length of `header` in bytes as 8 bytes, lowest first; `header`, which "
    "is JSON with every dtype and shape; and the tensors at the offsets which that gives. `sha256` is its digest."
)


class PackedFile(BaseModel):
    """One weight file in a packed folder."""

    model_config = ConfigDict(frozen=True)

    packed: str
    original: str
    nbytes: int
    sha256: str
    header: str


class Contents(BaseModel):
    """What `packed.json` holds."""

    model_config = ConfigDict(frozen=True)

    format: Literal[1] = 1
    sned: str = __version__
    about: str = _ABOUT
    files: tuple[PackedFile, ...]


def is_packed(folder: Path) -> bool:
    """Tell whether a folder is a packed checkpoint, whole or not."""
    return (folder / CONTENTS).is_file()


def survey_folder(folder: Path, progress: Progress) -> list[Survey]:
    """Look through the weight files of a checkpoint.

    Raises:
        CheckpointError: the folder is packed already, or is no whole checkpoint, or packing makes none of it smaller.
    """
    if is_packed(folder):
        raise CheckpointError(f"{folder} is packed already.", hint=f"Unpack it with: sned unpack {folder} -o OUT")
    files = sorted({entry.file for entry in catalogue(folder).values()})
    with progress.task("count zeros", sum(file.stat().st_size for file in files)) as advance:
        found = [survey(file, advance) for file in files]
    if not any(tensor.packed for one in found for tensor in one.tensors):
        raise CheckpointError(
            f"{folder} has no tensor with so many zeros that it would become smaller, so there is nothing to pack.",
            hint="Packing is for weights that were set to zero, as by: sned prune MODEL -m wanda --sparsity 50% -o OUT",
        )
    return found


def pack_folder(folder: Path, found: Sequence[Survey], into: Path, progress: Progress) -> Contents:
    """Write a checkpoint in its packed form into an empty folder, prove that it comes back, and say what is in it.

    Args:
        folder: The checkpoint.
        found: What `survey_folder` returned for it.
        into: The empty folder.
        progress: Told of what goes on.

    Raises:
        CheckpointError: the disk is full, or the checkpoint has a file with a name that is needed here.
        VerificationError: a tensor does not come back as it was.
    """
    names = _packed_names(len(found))
    originals = [one.file.relative_to(folder).as_posix() for one in found]
    _copy_others(folder, into, without=originals, taken=[CONTENTS, *names])
    total = sum(one.nbytes for one in found)
    with progress.task("pack", total) as advance:
        for one, name in zip(found, names, strict=True):
            pack_file(one, into / name, advance)
    with progress.task("verify", total) as advance:
        for one, name in zip(found, names, strict=True):
            verify_file(one, into / name, advance)
    files = [
        PackedFile(packed=name, original=original, nbytes=one.nbytes, sha256=one.sha256, header=one.header)
        for one, name, original in zip(found, names, originals, strict=True)
    ]
    contents = Contents(files=tuple(files))
    (into / CONTENTS).write_text(contents.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return contents


def unpack_folder(folder: Path, into: Path, progress: Progress) -> Contents:
    """Write the checkpoint that a packed folder was made of into an empty folder, and return what it consists of.

    Raises:
        CheckpointError: the folder is not packed or is damaged, or the disk is full.
    """
    contents = read_contents(folder)
    packed, originals = [file.packed for file in contents.files], [file.original for file in contents.files]
    if missing := [name for name in packed if not (folder / name).is_file()]:
        raise damaged(folder, f"{CONTENTS} names {missing[0]}, and there is no such file")
    _copy_others(folder, into, without=[CONTENTS, *packed], taken=originals)
    with progress.task("unpack", sum(file.nbytes for file in contents.files)) as advance:
        for file in contents.files:
            _unpack_file(file, folder, into, advance)
    return contents


def read_contents(folder: Path) -> Contents:
    """Return what stands in the `packed.json` of a packed folder.

    Raises:
        CheckpointError: there is none, it is damaged, or it is from a newer sned.
    """
    if not folder.is_dir():
        what = "is a file, not a packed folder" if folder.exists() else "does not exist"
        raise CheckpointError(f"{folder} {what}.", hint=f"Check the path; a packed folder has a {CONTENTS}.")
    if not is_packed(folder):
        model = (folder / "config.json").is_file()
        hint = "A checkpoint can be used as it is." if model else "Packed folders are made by: sned pack OUT -o PACKED"
        raise CheckpointError(f"{folder} has no {CONTENTS}, so it is not packed.", hint=hint)
    return _parse(folder / CONTENTS)


def _parse(file: Path) -> Contents:
    try:
        document = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise damaged(file, f"it is not readable JSON ({error})") from error
    number = document.get("format") if isinstance(document, dict) else None
    if isinstance(number, int) and number > _FORMAT:
        hint = "A newer sned reads it: pip install -U sned"
        raise CheckpointError(f"{file} is of format {number}; this sned reads format {_FORMAT}.", hint=hint)
    try:
        contents = Contents.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        raise damaged(file, f"{'.'.join(map(str, first['loc'])) or 'it'}: {first['msg']}") from error
    for one in contents.files:
        if outside := [name for name in (one.packed, one.original) if leads_outside(name)]:
            raise damaged(file, f"it names a file outside its folder: {outside[0]!r}")
        try:
            parse_header(file, one.header, one.nbytes)
        except CheckpointError as error:
            raise damaged(file, f"the header in it is not that of {one.original}") from error
    return contents


def _unpack_file(file: PackedFile, folder: Path, into: Path, advance: Callable[[int], None]) -> None:
    packed, target, sha = folder / file.packed, into / file.original, hashlib.sha256()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("xb") as out:
            for _, piece in restored(file.header, file.nbytes, packed):
                data = piece.numpy().tobytes()
                sha.update(data)
                out.write(data)
                advance(len(data))
    except OSError as error:
        raise write_error(into, error, needed=file.nbytes) from error
    if sha.hexdigest() != file.sha256:
        raise damaged(packed, f"what comes out of it is not the {file.original} that was packed (its SHA-256 differs)")


def _packed_names(count: int) -> list[str]:
    if count == 1:
        return ["packed.safetensors"]
    return [f"packed-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


def _copy_others(folder: Path, into: Path, *, without: Collection[str], taken: Collection[str]) -> None:
    """Copy all files of a folder but some, none of which may have a name that is `taken`."""
    for name in _files(folder):
        if name in without:
            continue
        if name in taken:
            raise CheckpointError(
                f"{folder / name} has the name of a file that is to be written.", hint="Move it out of the folder."
            )
        try:
            (into / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(folder / name, into / name)
        except OSError as error:
            raise write_error(into, error) from error


def _files(folder: Path) -> list[str]:
    """Return all files of a folder and of those in it, by relative name."""
    found = []
    for root, folders, files in os.walk(folder):
        for name in folders:
            if Path(root, name).is_symlink():
                raise CheckpointError(
                    f"{Path(root, name)} is a link to a folder, which is not followed.",
                    hint="Put the folder itself in its place, or take the link away.",
                )
        found += [Path(root, name).relative_to(folder).as_posix() for name in files]
    return sorted(found)
