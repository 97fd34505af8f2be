"""The layers of a model on disk, read one at a time. May import `models` and its neighbours in `checkpoint`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sned.errors import UnsupportedModelError
from sned.models.infer import resolve_family

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel

    from sned.checkpoint.shards import ShardReader


class FolderSource:
    """Reads the layers of a safetensors folder, under the names that the model's own modules have.

    Raises:
        UnsupportedModelError: the file names its tensors otherwise than the model does, beyond a missing prefix.
    """

    def __init__(self, reader: ShardReader, model: PreTrainedModel, dtype: torch.dtype, device: torch.device) -> None:
        self._reader, self._dtype, self._device = reader, dtype, device
        self.layers_path = resolve_family(model, trust_inferred=True).layers
        stored = set(reader.names)
        prefix = f"{model.base_model_prefix}."
        self._files: dict[str, str] = {}
        for name in [n for n, _ in model.named_parameters()]:
            candidates = (name, name.removeprefix(prefix))
            found = next((c for c in candidates if c in stored), None)
            if found is None:
                raise UnsupportedModelError(
                    f"{reader.folder} stores {name!r} in a form that cannot be read layer by layer.",
                    hint="use --stream off",
                )
            self._files[name] = found
        layers: nn.ModuleList = model.get_submodule(self.layers_path)  # pyright: ignore[reportAssignmentType]
        self._names = [[name for name, _ in layer.named_parameters()] for layer in layers]

    def tensor(self, name: str) -> torch.Tensor:
        """Return a parameter by its full name in the model, ready to run."""
        return self._reader.tensor(self._files[name]).to(self._device, self._dtype)

    def layer(self, index: int) -> dict[str, torch.Tensor]:
        """Return all tensors of a layer by layer-relative name, ready to run."""
        return {name: self.tensor(self._full(index, name)) for name in self._names[index]}

    def sample(self, index: int, name: str, count: int) -> torch.Tensor:
        """Return elements `sample_indices(numel, count)` of a flattened layer tensor."""
        return self._reader.sample(self._files[self._full(index, name)], count)

    def _full(self, index: int, name: str) -> str:
        return f"{self.layers_path}.{index}.{name}"
