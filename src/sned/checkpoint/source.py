"""The layers of a model on disk, read one at a time. May import `models` and its neighbours in `checkpoint`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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
        self._files = _names_in_files(reader, model)
        for name, _ in model.named_parameters():
            if name not in self._files:
                raise UnsupportedModelError(
                    f"{reader.folder} stores {name!r} in a form that cannot be read layer by layer.",
                    hint="use --stream off",
                )
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


def _names_in_files(reader: ShardReader, model: PreTrainedModel) -> dict[str, str]:
    """Return, by its name in the model, what each tensor is called in the files that hold it as it is.

    transformers renames the tensors of older checkpoints, and makes some out of several, which are left out.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    changes = get_model_conversion_mapping(model)
    renamings = [change for change in changes if isinstance(change, WeightRenaming)]
    converters = [change for change in changes if isinstance(change, WeightConverter)]
    known: dict[str, Any] = model.state_dict()
    found: dict[str, str] = {}
    for stored in reader.names:
        name, made = rename_source_key(stored, renamings, converters, model.base_model_prefix, known)
        if made is None:
            found[name] = stored
    return found
