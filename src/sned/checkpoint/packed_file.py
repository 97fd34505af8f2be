"""One weight file with its zeros left out, and back to the very same bytes; a few megabytes in memory at a time.

What is written is an ordinary safetensors file, so that any reader of that format gets at the numbers. A tensor NAME
with enough zeros becomes two: ``NAME.mask``, a bit per value, 1 where the value is kept (`models.bits`), and
``NAME.values``, those values row by row, in their own dtype. All others stay under their names. Only +0.0 is left out:
-0.0 and NaN have bits that are not zero, and come back as they were. May import `models.bits` and its neighbours.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

import torch
from torch import Tensor

from sned.checkpoint.catalogue import DTYPES, Entry, header_text, parse_header, read_header
from sned.checkpoint.folders import write_error
from sned.checkpoint.shards import fill
from sned.errors import CheckpointError, VerificationError
from sned.models.bits import pack, unpack

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

PIECE = 1 << 24
"""Bytes of a tensor that are in memory at a time: a multiple of 64, so that masks are cut between bytes."""
MASK, VALUES = ".mask", ".values"
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True, slots=True)
class Counted:
    """A tensor of a weight file: where it lies, how many values are not zero, and whether it is to be packed."""

    name: str
    entry: Entry
    kept: int
    packed: bool

    @property
    def packed_bytes(self) -> int:
        """Bytes of its mask and values."""
        return _mask_bytes(self.entry) + self.kept * self.entry.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Survey:
    """What a weight file holds: its header as it stands there, its digest, and its tensors in the order on disk."""

    file: Path
    header: str
    nbytes: int
    sha256: str
    tensors: tuple[Counted, ...]


def survey(file: Path, advance: Callable[[int], None]) -> Survey:
    """Read a weight file once, telling `advance` of the bytes.

    Raises:
        CheckpointError: it cannot be read, or is not whole.
    """
    header, nbytes = header_text(file)
    entries = parse_header(file, header, nbytes)
    sha = hashlib.sha256(_head(header))
    tensors = []
    for name, entry in _in_order(entries):
        kept = 0
        for piece in _pieces(entry):
            sha.update(_memory(piece))
            kept += int(torch.count_nonzero(_integers(piece, entry)))
            advance(len(piece))
        smaller = _mask_bytes(entry) + kept * entry.dtype.itemsize < entry.nbytes
        free = name + MASK not in entries and name + VALUES not in entries
        tensors.append(Counted(name, entry, kept, smaller and free))
    return Survey(file, header, nbytes, sha.hexdigest(), tuple(tensors))


def pack_file(found: Survey, into: Path, advance: Callable[[int], None]) -> None:
    """Write the packed form of a weight file, telling `advance` of the bytes read.

    Raises:
        CheckpointError: the disk is full or not writable, or the weight file can no longer be read.
    """
    head, places, size = _lay_out(found.tensors)
    try:
        with into.open("xb") as out:
            out.write(head)
            for tensor in found.tensors:
                _write(tensor, out, places, advance)
    except OSError as error:
        raise write_error(into.parent, error, needed=size) from error


def verify_file(found: Survey, packed: Path, advance: Callable[[int], None]) -> None:
    """Unpack a file just written and compare it with what it was made of, bit by bit.

    Raises:
        VerificationError: they differ, or one cannot be read; the tensor is named.
    """
    sha, position = hashlib.sha256(), 0
    try:
        for name, piece in restored(found.header, found.nbytes, packed):
            if not torch.equal(piece, _read(found.file, position, len(piece))):
                raise VerificationError(
                    f"{name} does not come back from {packed.name} as {found.file} has it. Nothing was kept.",
                    hint="Repeat the command; if it happens again, check the disk.",
                )
            sha.update(_memory(piece))
            position += len(piece)
            advance(len(piece))
    except CheckpointError as error:
        raise VerificationError(
            f"{found.file} does not come back from {packed.name}: {error.args[0]} Nothing was kept.",
            hint="Repeat the command; if it happens again, check the disk.",
        ) from error
    if sha.hexdigest() != found.sha256:
        raise VerificationError(
            f"{found.file} changed while it was packed. Nothing was kept.", hint="Repeat the command."
        )


def damaged(path: Path, why: str) -> CheckpointError:
    """Return the error for a file or folder that does not hold what was packed into it."""
    hint = "Copy or fetch the packed folder again, from where it is whole."
    return CheckpointError(f"{path} is damaged: {why}.", hint=hint)


def restored(header: str, nbytes: int, packed: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield the bytes of a weight file from its packed form, piece by piece, uint8.

    Args:
        header: Of the weight file.
        nbytes: Of the weight file.
        packed: The packed form.

    Yields:
        The name of the tensor that a piece belongs to, and the piece. The header comes first.

    Raises:
        CheckpointError: the packed file is missing or damaged.
    """
    tensors, parts = parse_header(packed, header, nbytes), read_header(packed)
    yield "its header", torch.frombuffer(bytearray(_head(header)), dtype=torch.uint8)
    for name, entry in _in_order(tensors):
        for piece in _restored(name, entry, parts, packed):
            yield name, piece


def _restored(name: str, entry: Entry, parts: Mapping[str, Entry], packed: Path) -> Iterator[Tensor]:
    """Yield a tensor's bytes."""
    if name in parts:
        if parts[name].nbytes != entry.nbytes:
            raise damaged(packed, f"the tensor {name} has another size than it had")
        yield from _pieces(parts[name])
        return
    mask, values = parts.get(name + MASK), parts.get(name + VALUES)
    if mask is None or values is None:
        raise damaged(packed, f"it lacks {name}, or the mask or the values of it")
    if mask.nbytes != _mask_bytes(entry) or values.dtype != entry.dtype:
        raise damaged(packed, f"the mask or the values of {name} do not fit the tensor as it was")
    width, taken = entry.dtype.itemsize, 0
    for start in range(0, entry.nbytes, PIECE):
        count = min(PIECE, entry.nbytes - start) // width
        bits = unpack(_read(packed, mask.offset + start // width // 8, -(-count // 8)), [count])
        wanted = int(torch.count_nonzero(bits)) * width
        if taken + wanted > values.nbytes:
            raise damaged(packed, f"the mask of {name} keeps more values than there are")
        kept = _integers(_read(packed, values.offset + taken, wanted), entry)
        yield torch.zeros(count, dtype=kept.dtype).masked_scatter_(bits, kept).view(torch.uint8)
        taken += wanted
    if taken != values.nbytes:
        raise damaged(packed, f"the mask of {name} keeps fewer values than there are")


def _write(tensor: Counted, out: IO[bytes], places: Mapping[str, int], advance: Callable[[int], None]) -> None:
    """Write a tensor, or its mask and values, to its places in the file."""
    mask_at = places.get(tensor.name + MASK, 0)
    values_at = places[tensor.name + VALUES if tensor.packed else tensor.name]
    for piece in _pieces(tensor.entry):
        values = piece
        if tensor.packed:
            whole = _integers(piece, tensor.entry)
            bits = whole != 0
            values = whole[bits].view(torch.uint8)
            mask_at += _put(out, mask_at, pack(bits))
        values_at += _put(out, values_at, values)
        advance(len(piece))


def _lay_out(tensors: Iterable[Counted]) -> tuple[bytes, dict[str, int], int]:
    """Return how a packed file begins, where each of its tensors does, and its size.

    The widest dtypes come first, as the format's own library has it, so that every tensor is aligned.
    """
    parts: list[tuple[str, torch.dtype, tuple[int, ...]]] = []
    for tensor in tensors:
        name, entry = tensor.name, tensor.entry
        if tensor.packed:
            parts.append((name + VALUES, entry.dtype, (tensor.kept,)))
            parts.append((name + MASK, torch.uint8, (_mask_bytes(entry),)))
        else:
            parts.append((name, entry.dtype, entry.shape))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offsets, end = {}, 0
    for name, dtype, shape in sorted(parts, key=lambda part: -part[1].itemsize):
        start, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
        offsets[name] = start
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False)
    head = _head(text + " " * (-len(text.encode()) % 8))
    return head, {name: len(head) + start for name, start in offsets.items()}, len(head) + end


def _head(header: str) -> bytes:
    """Return what stands before the tensors in a safetensors file."""
    text = header.encode()
    return len(text).to_bytes(8, "little") + text


def _in_order(entries: Mapping[str, Entry]) -> list[tuple[str, Entry]]:
    return sorted(entries.items(), key=lambda item: (item[1].offset, item[1].nbytes))


def _mask_bytes(entry: Entry) -> int:
    return -(-math.prod(entry.shape) // 8)


def _pieces(entry: Entry) -> Iterator[Tensor]:
    for start in range(0, entry.nbytes, PIECE):
        yield _read(entry.file, entry.offset + start, min(PIECE, entry.nbytes - start))


def _read(file: Path, offset: int, nbytes: int) -> Tensor:
    buffer = torch.empty(nbytes, dtype=torch.uint8)
    try:
        with file.open("rb", buffering=0) as source:
            source.seek(offset)
            fill(source, _memory(buffer))
    except (OSError, EOFError) as error:
        hint = "Was the file changed or removed meanwhile?"
        raise CheckpointError(f"{file} could not be read: {error}.", hint=hint) from error
    return buffer


def _put(out: IO[bytes], offset: int, data: Tensor) -> int:
    out.seek(offset)
    return out.write(_memory(data))


def _memory(data: Tensor) -> memoryview:
    return memoryview(data.numpy())  # pyright: ignore[reportArgumentType]


def _integers(data: Tensor, entry: Entry) -> Tensor:
    """Return the bits of values as integers, of which only 0 is zero."""
    return data.view(_INTEGERS[entry.dtype.itemsize])
