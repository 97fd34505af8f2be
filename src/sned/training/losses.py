"""What training makes small. Pure functions of tensors; every loss is a mean over tokens, in float32."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.utils.checkpoint import checkpoint

StateLoss = Literal["nmse", "mse", "cosine"]
_NONE = -100
"""Target of a token that is followed by nothing."""


def states_apart(name: StateLoss, states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return how far states `[..., hidden]` are from what they should be, a mean over tokens.

    `mse` is the mean square over all entries, in which the few tokens of huge states count for almost everything;
    `nmse` is each token's squared distance relative to the square of its target; `cosine` is one minus the cosine.
    """
    states, targets = states.float(), targets.float()
    if name == "mse":
        return (states - targets).square().mean()
    if name == "cosine":
        return (1 - torch.cosine_similarity(states, targets, dim=-1)).mean()
    square = targets.square().sum(-1).clamp_min(torch.finfo(torch.float32).tiny)
    return ((states - targets).square().sum(-1) / square).mean()


Pieces = list[tuple[Any, torch.Tensor]]
"""What makes the logits `[rows, vocab]` of some tokens, and the states that it makes them of; all tokens in order."""


def cross_entropy(pieces: Pieces, ids: torch.Tensor) -> torch.Tensor:
    """Return the mean `-log p` of each next token of windows `[batch, tokens]`; logits are made again going back."""
    following = ids.roll(-1, 1)
    following[:, -1] = _NONE
    n = ids.numel() - len(ids)

    def piece(states: torch.Tensor, make: Any, targets: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(make(states).float(), targets, ignore_index=_NONE, reduction="sum")

    return _sum(piece, pieces, _alike(following.flatten(), pieces)) / n


def divergence(pieces: Pieces, theirs: Pieces, ids: torch.Tensor) -> torch.Tensor:
    """Return the mean `KL(theirs ‖ ours)` of the distributions of each next token of windows `[batch, tokens]`."""
    counts = torch.ones_like(ids, dtype=torch.float32)
    counts[:, -1] = 0
    targets = [
        _Target(make, states, weight)
        for (make, states), weight in zip(theirs, _alike(counts.flatten(), pieces), strict=True)
    ]

    def piece(states: torch.Tensor, make: Any, target: _Target) -> torch.Tensor:
        log_q = make(states).float().log_softmax(-1)
        with torch.no_grad():
            log_p = target.make(target.states).float().log_softmax(-1)
        return ((log_p.exp() * (log_p - log_q)).sum(-1) * target.weight).sum()

    return _sum(piece, pieces, targets) / counts.sum()


@dataclass(frozen=True, slots=True)
class _Target:
    make: Any
    states: torch.Tensor
    weight: torch.Tensor


def _alike(values: torch.Tensor, pieces: Pieces) -> Sequence[torch.Tensor]:
    """Split one value per token as the pieces are."""
    return values.split([math.prod(states.shape[:-1]) for _, states in pieces])


def _sum(piece: Any, pieces: Pieces, others: Sequence[Any]) -> torch.Tensor:
    parts: list[Any] = [
        checkpoint(piece, states, make, other, use_reentrant=False)
        for (make, states), other in zip(pieces, others, strict=True)
    ]
    return torch.stack(parts).sum()
