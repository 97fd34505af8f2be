"""Checkpoints half of zeros, packed and unpacked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from kit.tiny import make_model, make_tokenizer
from sned.checkpoint.shards import ShardWriter
from sned.jobs.pack import pack, unpack
from sned.progress import SILENT

if TYPE_CHECKING:
    from pathlib import Path

HALF = torch.tensor([0.0, 1.5] * 512).to(torch.bfloat16).reshape(32, 32)
"""A matrix half of zeros, large enough that its mask is worth while."""


def folder_of(folder: Path, tensors: dict[str, torch.Tensor], **options: int) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    with ShardWriter(folder, **options) as writer:
        for name, tensor in tensors.items():
            writer.add(name, tensor)
    return folder


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def there(folder: Path) -> dict[str, Any]:
    return pack(folder, folder.with_name("packed"), overwrite=True, progress=SILENT)


def back(folder: Path) -> Path:
    unpack(folder.with_name("packed"), folder.with_name("again"), overwrite=True, progress=SILENT)
    return folder.with_name("again")


def halved(folder: Path) -> Path:
    """Write two shards, each with a matrix half of zeros and a norm."""
    tensors = {"a": HALF, "a.norm": torch.ones(32), "b": HALF.float(), "b.norm": torch.ones(32)}
    return folder_of(folder, tensors, max_shard_bytes=4300)


def save_zeroed(folder: Path, name: str, dtype: torch.dtype = torch.float32, *, max_shard_size: str = "5GB") -> Path:
    """Write a model with about half of the weights in its layers' matrices zero, as Hugging Face does."""
    model, generator = make_model(name).to(dtype), torch.Generator().manual_seed(7)
    for key, param in model.named_parameters():
        if "proj" in key and param.dim() == 2:
            param.data[torch.rand(param.shape, generator=generator) < 0.5] = 0.0
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    make_tokenizer().save_pretrained(folder)
    return folder
