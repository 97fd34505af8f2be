"""``sned/sparsity.json``: what is zero in a saved checkpoint, tensor by tensor, read back from its files.

The checkpoint itself stays an ordinary dense one. Nothing about sparsity stands in ``config.json``, where engines that
know the word refuse to load what they cannot run. May import `models`, `score` and its neighbours in `checkpoint`.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch

from sned.canon import digest
from sned.checkpoint.shards import ShardReader
from sned.errors import VerificationError
from sned.models.bits import pack
from sned.models.matrices import all_matrices

if TYPE_CHECKING:
    from pathlib import Path

    from sned.models.view import View

SPARSITY_FILE = "sparsity.json"
FORMAT = 1


def census(folder: Path, view: View, m: int | None = None) -> dict[str, Any]:
    """Return what is zero in the layers' matrices of a saved checkpoint, by tensor; JSON.

    Args:
        folder: Of the checkpoint.
        view: The model that was saved.
        m: For weights that went by runs of so many: what is kept of each is stated.

    Raises:
        VerificationError: a zero is negative.
    """
    matrices = {matrix.param: matrix for matrix in all_matrices(view)}
    prefix = f"{view.family.layers}."
    tensors: dict[str, dict[str, Any]] = {}
    with ShardReader(folder) as reader:
        for name in reader.names:
            param = name.removeprefix(prefix).partition(".")[2]
            if name.startswith(prefix) and param in matrices:
                tensors[name] = _describe(name, reader.tensor(name), m, transposed=matrices[param].transposed)
    return {
        "format": FORMAT,
        "zeros": sum(t["zeros"] for t in tensors.values()),
        "of": sum(t["of"] for t in tensors.values()),
        "tensors": tensors,
    }


def write_census(found: dict[str, Any], notes: Path) -> None:
    """Write what `census` found into the folder of a checkpoint's notes."""
    (notes / SPARSITY_FILE).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def _describe(name: str, weight: torch.Tensor, m: int | None, *, transposed: bool) -> dict[str, Any]:
    gone = weight == 0
    if torch.signbit(weight[gone]).any():
        raise VerificationError(f"{name} holds negative zeros, which compress badly and compare oddly")
    facts = {"zeros": int(gone.sum()), "of": weight.numel(), "pattern": "unstructured"}
    if m is not None:
        kept = m - int((gone.T if transposed else gone).reshape(-1, m).sum(1).min())
        facts["pattern"] = f"{kept}:{m}" if kept < m else "unstructured"
    return facts | {"mask": digest(pack(gone).numpy().tobytes())}
