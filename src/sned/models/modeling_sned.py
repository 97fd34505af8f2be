"""Modules that stand where pruning removed something, and the classes that rebuild a model of uneven layers.

This file is shipped beside the weights of models that stock classes cannot hold. It needs only torch and
transformers, and never imports sned.
"""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import torch
import transformers
from torch import nn

PREFIX = "Sned"
RECIPE = "sned_layers"
"""Name of the config entry that says how the layers differ from stock ones."""


def _find_cache(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any | None:
    """Return the KV cache among a layer's arguments; families pass it under different names."""
    return next((a for a in (*kwargs.values(), *args) if hasattr(a, "get_seq_length")), None)


def _count_tokens(cache: Any | None, hidden: torch.Tensor, layer_idx: int) -> None:
    """Keep the length of a cache slot that holds no keys.

    The length of the whole cache, and with it positions and masks, is read from one slot, often the first. A
    one-wide zero key per token keeps that answer right; a slot that was allocated early has its own shape.
    """
    if cache is None:
        return
    slots = getattr(cache, "layers", [])
    keys = getattr(slots[layer_idx], "keys", None) if layer_idx < len(slots) else None
    heads, width = (1, 1) if keys is None else (keys.shape[1], keys.shape[-1])
    zeros = hidden.new_zeros(hidden.shape[0], heads, hidden.shape[1], width)
    cache.update(zeros, zeros, layer_idx)


class NoMixer(nn.Module):
    """Stands where an attention was removed: adds nothing to the residual stream.

    It must not be named after attention: transformers greps for such names when it switches kernels.
    """

    def __init__(self, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx = layer_idx

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, None]:
        """Return zeros `[batch, tokens, hidden]`, and count the tokens in the cache."""
        _count_tokens(_find_cache(args, kwargs), hidden_states, self.layer_idx)
        return torch.zeros_like(hidden_states), None


class NoMLP(nn.Module):
    """Stands where an MLP was removed: adds nothing to the residual stream."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return zeros `[..., hidden]`."""
        return torch.zeros_like(hidden_states)


class LinearLayer(nn.Module):
    """Stands where decoder layers were replaced by one linear map of the residual stream."""

    def __init__(self, hidden: int, layer_idx: int, *, returns_tuple: bool = False) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden, hidden, bias=False)
        self.layer_idx = layer_idx
        self.returns_tuple = returns_tuple

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Map `[batch, tokens, hidden]` to the same shape, and count the tokens in the cache."""
        _count_tokens(_find_cache(args, kwargs), hidden_states, self.layer_idx)
        mapped = self.linear(hidden_states)
        return (mapped, None) if self.returns_tuple else mapped


def rebuild(model: nn.Module, recipe: dict[str, Any]) -> None:
    """Give a freshly built stock model the layers that a recipe describes; parameters become empty.

    Args:
        model: A causal language model, or its bare decoder.
        recipe: `path` of the layer list, names of the sublayers, and `layers`: changes by layer position.
    """
    names = recipe["path"].split(".")
    while not hasattr(model, names[0]):
        names.pop(0)  # a bare decoder lacks the first step of the path
    layers: Any = model.get_submodule(".".join(names))
    for position, change in recipe["layers"].items():
        index = int(position)
        if change.get("linear"):
            layers[index] = LinearLayer(recipe["hidden"], index, returns_tuple=recipe["returns_tuple"])
        else:
            _reshape(layers[index], index, change, recipe)


def _reshape(layer: nn.Module, index: int, change: dict[str, Any], recipe: dict[str, Any]) -> None:
    for which in change.get("without", []):
        if which == "attn":
            setattr(layer, recipe["attn"], NoMixer(index))
        elif recipe["mlp"]:
            setattr(layer, recipe["mlp"], NoMLP())
        else:
            setattr(layer, recipe["up"], nn.Identity())
            setattr(layer, recipe["down"], NoMLP())
    for name, shape in change.get("shapes", {}).items():
        owner, _, leaf = name.rpartition(".")
        module = layer.get_submodule(owner)
        old = getattr(module, leaf)
        setattr(module, leaf, nn.Parameter(torch.empty(shape, dtype=old.dtype, device=old.device)))
    for name, values in change.get("attributes", {}).items():
        for key, value in values.items():
            setattr(layer.get_submodule(name), key, value)
    for name, values in change.get("config", {}).items():
        module: Any = layer.get_submodule(name)
        module.config = copy.copy(module.config)
        for key, value in values.items():
            setattr(module.config, key, value)


class _Uneven:
    """Builds the stock model, then gives it its own layers."""

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)  # pyright: ignore[reportCallIssue]
        rebuild(self, getattr(config, RECIPE))  # pyright: ignore[reportArgumentType]


@cache
def _make(name: str) -> type:
    """Return the uneven twin of a stock class: `SnedLlamaForCausalLM` of `LlamaForCausalLM`, and so on."""
    stock = getattr(transformers, name.removeprefix(PREFIX))
    if issubclass(stock, transformers.PretrainedConfig):
        return type(name, (stock,), {"model_type": f"sned_{stock.model_type}", "__module__": __name__})
    config = _make(f"{PREFIX}{stock.config_class.__name__}")
    return type(name, (_Uneven, stock), {"config_class": config, "__module__": __name__})


def __getattr__(name: str) -> Any:
    if name.startswith(PREFIX) and hasattr(transformers, name.removeprefix(PREFIX)):
        return _make(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
