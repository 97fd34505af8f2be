"""Modules that stand where pruning removed something, and the classes that rebuild such a model.

This file is shipped beside the weights of models that stock classes cannot hold. It needs only torch and
transformers, and never imports sned.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


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
