"""Token ids in files: what `tokens:PATH` reads, and what `Tokens.save` writes.

Imports errors and canon, torch, numpy and safetensors.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sned.canon import canonical_json, digest
from sned.data.readers import existing_file
from sned.errors import DataError

# One metadata entry holds everything: several would be written in an order that changes from run to run.
_KEY = "sned.tokens"
_NAMES = ("ids", "input_ids")


def check_ids(ids: Tensor, place: str, vocab_size: int | None = None) -> Tensor:
    """Return ids as a contiguous int64 `[n, length]`.

    Raises:
        DataError: they are not integers, not two-dimensional, too few, or outside the vocabulary.
    """
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise DataError(f"{place} holds {str(ids.dtype).removeprefix('torch.')}, not integer token ids.")
    if ids.ndim != 2 or ids.shape[0] < 1 or ids.shape[1] < 2:
        raise DataError(
            f"{place} has the shape {list(ids.shape)}; token ids are [windows, length], at least [1, 2].",
            hint="reshape them into windows of one length",
        )
    ids = ids.to("cpu", torch.int64).contiguous()
    wrong = ids < 0 if vocab_size is None else (ids < 0) | (ids >= vocab_size)
    if wrong.any():
        row, column = (int(i) for i in wrong.nonzero()[0])
        limit = "a vocabulary" if vocab_size is None else f"the vocabulary of {vocab_size:,}"
        raise DataError(
            f"{place}: the token id {int(ids[row, column])} (window {row}, position {column}) is outside {limit}.",
            hint="the tokens were made by another tokenizer",
        )
    return ids


def ids_digest(ids: Tensor) -> str:
    """Return the sha256 of the shape and the values of int64 ids."""
    data = np.ascontiguousarray(ids.numpy(), dtype="<i8").tobytes()
    return digest(canonical_json(list(ids.shape)).encode() + data)


def read_ids(path: str | Path) -> tuple[Tensor, dict[str, Any]]:
    """Return the ids of a `.npy` or `.safetensors` file, int64 `[n, length]`, and the notes of `write_ids`.

    Raises:
        DataError: the file is missing, of another kind or malformed, or has changed since it was written.
    """
    found = existing_file(str(path))
    suffix = found.suffix.lower()
    if suffix not in (".npy", ".safetensors"):
        raise DataError(
            f"{found} has the suffix {found.suffix!r}; token ids are read from .npy and .safetensors.",
            hint=f"for text, write file:{path}",
        )
    ids, notes = (_read_npy(found), {}) if suffix == ".npy" else _read_safetensors(found)
    ids = check_ids(ids, str(found))
    if notes.pop("digest", None) not in (None, ids_digest(ids)):
        raise DataError(f"{found} is corrupt: its token ids do not match the digest saved with them.")
    return ids, notes


def write_ids(path: str | Path, ids: Tensor, notes: dict[str, Any]) -> None:
    """Write ids and notes as safetensors, whole or not at all.

    Raises:
        DataError: the file could not be written.
    """
    target = Path(path)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        noted = canonical_json({**notes, "digest": ids_digest(ids)})
        save_file({"ids": ids}, partial, metadata={_KEY: noted})
        partial.replace(target)
    except (OSError, SafetensorError) as error:
        raise DataError(f"the tokens could not be written to {target}: {error}") from error
    finally:
        partial.unlink(missing_ok=True)


def _read_npy(path: Path) -> Tensor:
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} is not a whole .npy file of numbers: {error}") from error
    if array.dtype.kind not in "iu":
        raise DataError(f"{path} holds {array.dtype}, not integer token ids.")
    return torch.from_numpy(array.astype(np.int64))


def _read_safetensors(path: Path) -> tuple[Tensor, dict[str, Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            name = next((known for known in _NAMES if known in names), names[0] if len(names) == 1 else None)
            if name is None:
                raise DataError(
                    f"{path} holds {len(names)} tensors ({', '.join(names[:8])}), and none is called 'ids'.",
                    hint="save the token ids alone, or under the name 'ids'",
                )
            notes = json.loads((file.metadata() or {}).get(_KEY, "{}"))
            return file.get_tensor(name), notes
    except (OSError, SafetensorError, ValueError) as error:
        raise DataError(f"{path} is not a whole safetensors file: {error}") from error
