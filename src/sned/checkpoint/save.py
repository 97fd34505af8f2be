"""Writing a model as a Hugging Face folder: weights shard by shard, config, and the files that stay as they were.

May import `models` and its neighbours in `checkpoint`.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sned.checkpoint.native import MODULE_FILE, Proposal, propose
from sned.checkpoint.pairing import paired
from sned.checkpoint.shards import ShardWriter
from sned.models import modeling_sned
from sned.progress import SILENT, Progress

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import torch

    from sned.checkpoint.model import Model
    from sned.models.view import View

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".msgpack", ".h5", ".onnx", ".py")
_OURS = ("config.json", "README.md", "model.safetensors.index.json", "pytorch_model.bin.index.json")


def save_model(model: Model, folder: Path, *, progress: Progress = SILENT) -> Proposal:
    """Write config, weights and side files of a model into an existing folder; tied weights once.

    Layers that were left with one sublayer each are paired up where that makes ordinary ones; the model stays as it is.

    Returns:
        What was decided about the class that loads it.

    Raises:
        CheckpointError: the disk is full or not writable.
    """
    view = paired(model.view)
    proposal = propose(view)
    write_checkpoint(model, proposal.config, tensors_of(view), view, folder, progress)
    if not proposal.stock:
        shutil.copyfile(Path(modeling_sned.__file__), folder / MODULE_FILE)
    return proposal


def write_checkpoint(
    model: Model,
    config: Any,
    tensors: Iterable[tuple[str, torch.Tensor]],
    view: View,
    folder: Path,
    progress: Progress = SILENT,
) -> None:
    """Write tensors, a config, and the side files of a model into an existing folder.

    Args:
        model: Whose tokenizer, template, generation config and licence to take.
        config: What describes the tensors; its dtype becomes the view's.
        tensors: Names and values.
        view: What they are of, about as large as they are.
        folder: Where to.
        progress: Told of the bytes written.

    Raises:
        CheckpointError: the disk is full or not writable.
    """
    config.dtype = view.dtype
    total = sum(p.numel() * p.element_size() for p in view.model.parameters())
    with ShardWriter(folder) as writer, progress.task("save", total) as advance:
        for name, tensor in tensors:
            writer.add(name, tensor.detach().cpu().contiguous())
            advance(tensor.numel() * tensor.element_size())
    config.save_pretrained(folder)
    _copy_side_files(model, folder)


def tensors_of(view: View) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every tensor of the model once, materialising one layer at a time."""
    path = view.family.layers
    seen: set[int] = set()
    for name, tensor in view.model.state_dict(keep_vars=True).items():
        if not name.startswith(f"{path}.") and id(tensor) not in seen:
            seen.add(id(tensor))
            yield name, tensor
    for position, index in enumerate(list(view.layers)):
        with view.materialised(index) as layer:
            for name, tensor in layer.state_dict().items():
                yield f"{path}.{position}.{name}", tensor


def _copy_side_files(model: Model, folder: Path) -> None:
    """Copy tokenizer, template, generation config and licence byte for byte; write what the source lacks."""
    for file in sorted(model.folder.iterdir()):
        if file.is_file() and file.suffix not in _WEIGHTS and file.name not in _OURS and not file.name.startswith("."):
            shutil.copyfile(file, folder / file.name)
    generation = model.view.model.generation_config
    if generation is not None and not (folder / "generation_config.json").exists():
        generation.save_pretrained(folder)
