"""Tensors of a safetensors folder, read and written one by one.

May import errors, `checkpoint.catalogue` and `checkpoint.folders`; knows nothing of models. Tensors are read
into memory of their own, not mapped: a map counts as resident memory, and hands one caller's in-place change
to the next.
"""

from __future__ import annotations

import json
import math
import os
import threading
from pathlib import Path
from typing import IO, Self

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from sned.canon import sample_indices
from sned.checkpoint.catalogue import INDEX, SINGLE, Entry, catalogue
from sned.checkpoint.folders import atomic_folder, check_output, free_bytes, write_error
from sned.errors import CheckpointError

__all__ = ["ShardReader", "ShardWriter", "atomic_folder", "check_output", "free_bytes"]


class ShardReader:
    """Reads single tensors of a safetensors model folder, which is checked whole when the reader is made.

    Each tensor comes into memory of its own, so that resident memory holds what the caller keeps and no more.
    Threads may share a reader, and so may a forked child.

    Raises:
        CheckpointError: the folder, its config.json, its index or a shard is missing, broken or truncated,
            or its weights are pickles.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self._files: dict[tuple[int, Path], IO[bytes]] = {}
        self._lock = threading.Lock()
        self._entries = catalogue(self.folder)

    @property
    def names(self) -> tuple[str, ...]:
        """All tensor names, sorted."""
        return tuple(sorted(self._entries))

    @property
    def total_bytes(self) -> int:
        """Bytes of all tensors together."""
        return sum(entry.nbytes for entry in self._entries.values())

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor.

        Raises:
            CheckpointError: there is no such tensor; so do all methods that take a name.
        """
        return self._entry(name).shape

    def dtype(self, name: str) -> torch.dtype:
        """Return the dtype of a tensor."""
        return self._entry(name).dtype

    def nbytes(self, name: str) -> int:
        """Return the bytes of a tensor."""
        return self._entry(name).nbytes

    def tensor(self, name: str) -> Tensor:
        """Read one tensor: on the CPU, in its own dtype, the caller's to change."""
        entry = self._entry(name)
        buffer = torch.empty(entry.nbytes, dtype=torch.uint8)
        self._read(entry, [entry.offset], buffer)
        return buffer.view(entry.dtype).reshape(entry.shape)

    def sample(self, name: str, count: int) -> Tensor:
        """Read the elements at `sample_indices(numel, count)` of the flattened tensor: float32 `[n]`.

        Of a large tensor nothing else is read.

        Raises:
            ValueError: `count` is not positive.
        """
        entry = self._entry(name)
        numel = math.prod(entry.shape)
        indices = sample_indices(numel, count)
        if numel <= 16 * count:  # one read is cheaper than many small ones
            return self.tensor(name).flatten()[indices].float()
        width = entry.dtype.itemsize
        buffer = torch.empty(len(indices) * width, dtype=torch.uint8)
        offsets = [entry.offset + width * index for index in indices]
        self._read(entry, offsets, buffer)
        return buffer.view(entry.dtype).float()

    def close(self) -> None:
        """Close the files; a later read opens them again."""
        with self._lock:
            for file in self._files.values():
                file.close()
            self._files.clear()

    def __del__(self) -> None:
        """Close what the last user of a streamed model left open."""
        self.close()

    def __enter__(self) -> Self:
        """Return the reader itself."""
        return self

    def __exit__(self, *_exc: object) -> None:
        """Close the files."""
        self.close()

    def _entry(self, name: str) -> Entry:
        try:
            return self._entries[name]
        except KeyError:
            raise CheckpointError(f"{self.folder} holds no tensor named {name!r}.") from None

    def _read(self, entry: Entry, offsets: list[int], buffer: Tensor) -> None:
        """Fill `buffer` (uint8) with equal pieces that start at `offsets`."""
        into = memoryview(buffer.numpy())  # pyright: ignore[reportArgumentType]
        step = len(into) // len(offsets)
        try:
            with self._lock:  # seeking and reading is one act
                file = self._open(entry.file)
                for number, offset in enumerate(offsets):
                    file.seek(offset)
                    fill(file, into[number * step : (number + 1) * step])
        except (OSError, EOFError) as error:
            raise CheckpointError(
                f"{entry.file} could not be read: {error}.", hint="Was the file changed or removed meanwhile?"
            ) from error

    def _open(self, path: Path) -> IO[bytes]:
        key = (os.getpid(), path)  # a forked child would move the parent's file position
        if key not in self._files:
            self._files[key] = path.open("rb", buffering=0)
        return self._files[key]


class ShardWriter:
    """Writes tensors into safetensors shards, keeping at most one shard in memory.

    The weights get their final names in `close`. Tensors are referred to, not copied, until their shard is
    written: don't change them meanwhile. The same tensors in the same order give the same bytes. As a context
    manager it closes on success and removes what it wrote on an exception.

    Raises:
        ValueError: the folder already holds `model*.safetensors`.
    """

    def __init__(self, folder: Path, max_shard_bytes: int = 5_000_000_000) -> None:
        self.folder = Path(folder)
        if stale := sorted(self.folder.glob("model*.safetensors")):
            raise ValueError(f"{self.folder} already holds weights: {stale[0].name}")
        self._limit = max_shard_bytes
        self._pending: dict[str, Tensor] = {}
        self._pending_bytes = 0
        self._shards: list[tuple[Path, list[str]]] = []
        self._names: set[str] = set()
        self._pointers: set[int] = set()
        self._total = 0
        self._closed = False

    def add(self, name: str, tensor: Tensor) -> None:
        """Take one tensor; the shard before it is written when this one would overfill it.

        Raises:
            ValueError: the name was added before.
            CheckpointError: the shard could not be written, for instance because the disk is full.
        """
        if name in self._names:
            raise ValueError(f"the tensor {name!r} was added twice")
        size = tensor.numel() * tensor.element_size()
        if self._pending and self._pending_bytes + size > self._limit:
            self._flush()
        tensor = tensor.detach().cpu().contiguous()
        if tensor.untyped_storage().nbytes() != size or tensor.data_ptr() in self._pointers:
            tensor = tensor.clone()  # a view would keep its base alive, and the format refuses shared memory
        self._names.add(name)
        self._pointers.add(tensor.data_ptr())
        self._pending[name] = tensor
        self._pending_bytes += size
        self._total += size

    def close(self) -> None:
        """Write what is pending, give the shards their final names, and write the index if there are several.

        Raises:
            CheckpointError: a file could not be written.
        """
        if self._closed:
            return
        if self._pending or not self._shards:
            self._flush()
        count = len(self._shards)
        weight_map: dict[str, str] = {}
        try:
            for number, (path, names) in enumerate(self._shards, 1):
                final = SINGLE if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"
                path.replace(self.folder / final)
                weight_map |= dict.fromkeys(names, final)
            if count > 1:
                index = {"metadata": {"total_size": self._total}, "weight_map": weight_map}
                text = json.dumps(index, indent=2, sort_keys=True) + "\n"
                (self.folder / INDEX).write_text(text, encoding="utf-8")
        except OSError as error:
            raise write_error(self.folder, error) from error
        self._closed = True

    def discard(self) -> None:
        """Remove the shards written so far that have no final name yet."""
        self._pending.clear()
        for path, _ in self._shards:
            path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        """Return the writer itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_exc: object) -> None:
        """Close after success, discard after an exception."""
        if kind is not None:
            self.discard()
            return
        try:
            self.close()
        except BaseException:
            self.discard()
            raise

    def _flush(self) -> None:
        path = self.folder / f".shard-{len(self._shards) + 1:05d}.partial"
        try:
            path.touch()
            mode = path.stat().st_mode  # the library makes its files private, whatever the umask says
            safetensors.torch.save_file(self._pending, path, metadata={"format": "pt"})
            path.chmod(mode)
        except (OSError, SafetensorError) as error:
            path.unlink(missing_ok=True)
            raise write_error(self.folder, error, needed=self._pending_bytes) from error
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        self._shards.append((path, list(self._pending)))
        self._pending = {}
        self._pointers = set()
        self._pending_bytes = 0


def fill(file: IO[bytes], into: memoryview) -> None:
    """Read until the buffer is full: one system call gives 2 GB at most.

    Raises:
        EOFError: the file ends before.
    """
    done = 0
    while done < len(into):
        count = file.readinto(into[done:])  # pyright: ignore[reportAttributeAccessIssue]
        if not count:
            raise EOFError(f"the file ends {len(into) - done} bytes early")
        done += count
