"""Models in which the right answer is known, and a layer source that holds everything in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from kit.tiny import VOCAB, make_model
from sned.canon import sample_indices
from sned.data.tokens import Tokens
from sned.models.families import FAMILIES
from sned.models.view import View

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import nn
    from transformers import PreTrainedModel


def layers_of(model: PreTrainedModel) -> nn.ModuleList:
    """Return the decoder layers of a model."""
    return model.get_submodule(FAMILIES[model.config.model_type].layers)


def idle_layers(model: PreTrainedModel, layers: Iterable[int]) -> PreTrainedModel:
    """Let some layers add nothing to the stream: zero what writes to it."""
    return quiet_layers(model, layers, 0.0)


def quiet_layers(model: PreTrainedModel, layers: Iterable[int], scale: float = 0.1) -> PreTrainedModel:
    """Let some layers add little to the stream: scale what writes to it."""
    row, stack = FAMILIES[model.config.model_type], layers_of(model)
    for i in layers:
        for name, param in stack[i].named_parameters():
            if {row.o, row.down} & set(name.split(".")):
                param.data.mul_(scale)
    return model


def quiet_but_vital_layer(model: PreTrainedModel, layer: int) -> PreTrainedModel:
    """Let the head of a Llama read a few features only, into which one layer alone writes, and softly.

    That layer turns the stream least of all, and without it nothing is left to say.
    """
    read = torch.zeros(model.config.hidden_size, 1)
    read[:8] = 1.0
    model.get_input_embeddings().weight.data *= 1 - read.T
    model.get_output_embeddings().weight.data *= 20 * read.T
    for i, block in enumerate(layers_of(model)):
        writes = 0.05 * read if i == layer else 1 - read
        block.self_attn.o_proj.weight.data *= writes
        block.mlp.down_proj.weight.data *= writes
        block.mlp.down_proj.bias.data *= writes[:, 0]
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


@torch.no_grad()
def spoken_by(model: PreTrainedModel, windows: int = 48, length: int = 12) -> Tokens:
    """Return tokens drawn from a model's own distribution, on which no other model has a lower expected loss."""
    generator = torch.Generator().manual_seed(6)
    ids = torch.randint(3, VOCAB, (windows, 1), generator=generator)
    while ids.shape[1] < length:
        chances = model(ids, use_cache=False).logits[:, -1].softmax(-1)
        ids = torch.cat([ids, torch.multinomial(chances, 1, generator=generator)], dim=1)
    return Tokens(ids, "spoken")


class MemorySource:
    """Supplies the layers of a model that stays in memory, and counts how often each is read."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._layers = [dict(layer.named_parameters()) for layer in layers_of(model)]
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
    for layer in layers_of(hollow):
        layer.to("meta")
    return View(hollow, source=source)
