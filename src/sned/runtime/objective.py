"""Losses per token from a final residual stream, window by window, so that few logits exist at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from sned.runtime.sweep import Sweep


def token_nll(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Return `-log p` of each next token, `[batch, tokens - 1]` in float32, from logits `[batch, tokens, vocab]`."""
    flat = logits[:, :-1].float().flatten(0, 1)
    nll = torch.nn.functional.cross_entropy(flat, ids[:, 1:].flatten(), reduction="none")
    return nll.view(len(ids), -1)


def window_nll(sweep: Sweep, ids: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """Return `-log p` of each next token of a batch, `[batch, tokens - 1]` in float32."""
    pairs = zip(ids.split(1), hidden.split(1), strict=True)
    return torch.cat([token_nll(sweep.logits(window, state), window) for window, state in pairs])
