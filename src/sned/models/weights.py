"""The tensors of one layer by name, live or freshly read, so that one edit serves both. May import `geometry`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, MutableMapping
from typing import Any, Protocol

import torch
from torch import nn

from sned.models.geometry import is_conv1d

Weights = MutableMapping[str, torch.Tensor]
"""The tensors of one layer by layer-relative name."""
Edit = Callable[[Weights], None]
"""A change of one layer's tensors, valid on live, meta and freshly read ones."""


class LiveWeights(MutableMapping[str, torch.Tensor]):
    """The parameters of a live layer; assigning one may change its shape, and keeps the sizes of its module true."""

    def __init__(self, layer: nn.Module) -> None:
        self._layer = layer

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._layer.get_parameter(name).data

    def __setitem__(self, name: str, value: torch.Tensor) -> None:
        owner, _, leaf = name.rpartition(".")
        module: Any = self._layer.get_submodule(owner)
        old: nn.Parameter | None = getattr(module, leaf)  # None for a bias that a linear module lacks
        setattr(module, leaf, nn.Parameter(value, requires_grad=old is not None and old.requires_grad))
        if leaf == "weight" and isinstance(module, nn.Linear):
            module.out_features, module.in_features = value.shape
        elif leaf == "weight" and is_conv1d(module):
            module.nx, module.nf = value.shape

    def __contains__(self, name: object) -> bool:
        return any(name == own for own in self)

    def __delitem__(self, name: str) -> None:
        raise KeyError(f"{name}: a live layer loses parameters only with their module")

    def __iter__(self) -> Iterator[str]:
        return (name for name, _ in self._layer.named_parameters())

    def __len__(self) -> int:
        return sum(1 for _ in self)


class LayerSource(Protocol):
    """Supplies the base tensors of layers that are not kept in memory."""

    def layer(self, index: int) -> dict[str, torch.Tensor]:
        """Return all tensors of a base layer by layer-relative name, in the dtype and on the device to run in."""
        ...

    def sample(self, index: int, name: str, count: int) -> torch.Tensor:
        """Return elements `sample_indices(numel, count)` of one flattened base tensor."""
        ...


def read_layer(source: LayerSource, index: int, edits: Iterable[Edit]) -> dict[str, torch.Tensor]:
    """Read the base tensors of a layer, and repeat what was done to them."""
    weights = dict(source.layer(index))
    for edit in edits:
        edit(weights)
    return weights
