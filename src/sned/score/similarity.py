"""How alike two states of the residual stream are. Pure functions of tensors."""

from __future__ import annotations

import math

import torch


def cosine_triangle(states: torch.Tensor) -> torch.Tensor:
    """Return the cosine between every two boundary states of each token.

    Args:
        states: `[boundaries, tokens, hidden]`, any float dtype; computed in float32.

    Returns:
        `[tokens, boundaries, boundaries]`, float32, within [-1, 1].
    """
    unit = torch.nn.functional.normalize(states.float(), dim=-1, eps=1e-12).transpose(0, 1)
    return (unit @ unit.transpose(1, 2)).clamp_(-1.0, 1.0)


def angular(cosine: torch.Tensor) -> torch.Tensor:
    """Return the angle of a cosine as a share of half a turn, within [0, 1] (UIDL, arXiv 2403.17887, eq. 6)."""
    return torch.acos(cosine) / math.pi


def cosine_windows(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return the cosine of two runs of states, each taken as one vector: `[n, tokens, hidden]` twice to `[n]`, float64.

    Positions with long states weigh most (LaCo, arXiv 2402.11187, compares final states in this way).
    """
    return torch.nn.functional.cosine_similarity(a.double().flatten(1), b.double().flatten(1), dim=1, eps=1e-12)


def cosine_rows(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return the cosine of each token's two states: `[..., hidden]` twice to `[...]`, in float32."""
    return torch.nn.functional.cosine_similarity(a.float(), b.float(), dim=-1, eps=1e-12)
