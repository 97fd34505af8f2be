"""Models in which the right answer is known, and a layer source that holds everything in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from kit.tiny import make_model
from sned.canon import sample_indices
from sned.models.view import View

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from transformers import PreTrainedModel


def idle_layers(model: PreTrainedModel, layers: Iterable[int]) -> PreTrainedModel:
    """Let some layers add nothing to the stream: zero what writes to it."""
    view = View(model)
    outs = {view.family.o, view.family.down}
    for i in layers:
        for name, param in view.layer(i).named_parameters():
            if outs & set(name.split(".")):
                param.data.zero_()
    return model


def dead_units(model: PreTrainedModel, axis: str, units: Sequence[int]) -> PreTrainedModel:
    """Zero every parameter that some units of an axis own."""
    view = View(model)
    found = view.axis(axis)
    for slot in found.slots:
        tensor = view.layer(found.layer).get_parameter(slot.param).data
        for unit in units:
            tensor.narrow(slot.dim, slot.offset + unit * slot.block, slot.block).zero_()
    return model


class MemorySource:
    """Supplies the layers of a model that stays in memory, and counts how often each is read."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._layers = [dict(layer.named_parameters()) for layer in View(model).layers.values()]
        self.reads = [0] * len(self._layers)

    def layer(self, index: int) -> dict[str, torch.Tensor]:
        self.reads[index] += 1
        return {name: param.detach().clone() for name, param in self._layers[index].items()}

    def sample(self, index: int, name: str, count: int) -> torch.Tensor:
        param = self._layers[index][name].detach().flatten()
        return param[torch.tensor(sample_indices(param.numel(), count))]


def streamed_view(name: str, seed: int = 0) -> View:
    """Return a view whose layers live on meta and are read from memory one at a time."""
    source, hollow = MemorySource(make_model(name, seed)), make_model(name, seed)
    for layer in View(hollow).layers.values():
        layer.to("meta")
    return View(hollow, source=source)
