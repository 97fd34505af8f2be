"""Checkpoints into their compact form on disk and back. May import everything below `jobs`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from sned.checkpoint.folders import atomic_folder, check_output
from sned.checkpoint.packing import CONTENTS, pack_folder, survey_folder, unpack_folder
from sned.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from sned.checkpoint.packed_file import Survey
    from sned.progress import Progress


def pack(folder: Path, out: Path, *, overwrite: bool, progress: Progress) -> dict[str, Any]:
    """Write a checkpoint in its packed form, prove that it comes back, and say what that saves; JSON.

    Raises:
        CheckpointError: the folder is no checkpoint, has too few zeros or is packed already; the output is taken, or
            the disk full.
        VerificationError: a tensor does not come back as it was. Nothing is kept.
    """
    folder = folder.expanduser()
    _check_places(folder, out, overwrite=overwrite)
    found = survey_folder(folder, progress)
    with atomic_folder(out, overwrite=overwrite) as partial:
        contents = pack_folder(folder, found, partial, progress)
        written = [CONTENTS, *(file.packed for file in contents.files)]
        after = sum((partial / name).stat().st_size for name in written)
    before = sum(one.nbytes for one in found)
    return {
        "packed": str(out),
        "weights": {"bytes_before": before, "bytes_after": after, "ratio": after / before},
        "tensors": _of_tensors(found),
    }


def unpack(folder: Path, out: Path, *, overwrite: bool, progress: Progress) -> dict[str, Any]:
    """Write the checkpoint that a packed folder was made of, and say what its weight files are; JSON.

    Raises:
        CheckpointError: the folder is not packed or is damaged; the output is taken, or the disk full.
    """
    folder = folder.expanduser()
    _check_places(folder, out, overwrite=overwrite)
    with atomic_folder(out, overwrite=overwrite) as partial:
        contents = unpack_folder(folder, partial, progress)
    files = [{"file": file.original, "bytes": file.nbytes, "sha256": file.sha256} for file in contents.files]
    return {"unpacked": str(out), "bytes": sum(file.nbytes for file in contents.files), "files": files}


def _of_tensors(found: Sequence[Survey]) -> dict[str, Any]:
    """Return what became of the tensors that were packed, and what the number of their zeros promises."""
    tensors = [tensor for one in found for tensor in one.tensors]
    packed = [tensor for tensor in tensors if tensor.packed]
    values, zeros, before, promised = 0, 0, 0, 0.0
    for tensor in packed:
        numel = math.prod(tensor.entry.shape)
        values += numel
        zeros += numel - tensor.kept
        before += tensor.entry.nbytes
        promised += numel / 8 + tensor.kept * tensor.entry.dtype.itemsize
    after = sum(tensor.packed_bytes for tensor in packed)
    return {
        "packed": len(packed),
        "of": len(tensors),
        "values": values,
        "zeros": zeros,
        "sparsity": zeros / values,
        "bits": 8 * before / values,
        "bytes_before": before,
        "bytes_after": after,
        "ratio": after / before,
        "theory": promised / before,
    }


def _check_places(folder: Path, out: Path, *, overwrite: bool) -> None:
    """Refuse an output that lies in what is read, or that what is read lies in; replacing it would destroy that."""
    source, target = folder.resolve(), out.expanduser().resolve()
    if source == target or source in target.parents or target in source.parents:
        raise CheckpointError(
            f"{out} and {folder} are the same folder, or one lies in the other.", hint="Choose another --out."
        )
    check_output(out, overwrite=overwrite)
