"""Simple maps that do to the residual stream about what layers did: a shift, a scale, a low-rank update.

All in closed form, in float64, from weighted sums over tokens of the stream `x` that enters the layers and of the
update `y` that they add to it. Pure functions of tensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from sned.score.linear_map import Moments, fit_low_rank, relative_error

Kind = Literal["shift", "scale", "lowrank"]


@dataclass(frozen=True, slots=True)
class Update:
    """What the closed forms need to know of `x` and `y`, both `[tokens, hidden]`: sums in which tokens have weights."""

    tokens: int
    weight: float
    """Of all tokens together."""
    added: torch.Tensor
    """Sum of `y` `[hidden]`."""
    before: torch.Tensor
    """Sum of `|x|` `[hidden]`."""
    after: torch.Tensor
    """Sum of `|x + y|` `[hidden]`."""
    square: torch.Tensor
    """Sum of `x²` `[hidden]`."""
    product: torch.Tensor
    """Sum of `x y`, channel by channel `[hidden]`."""
    added_square: float
    """Sum of `‖y‖²`."""
    moments: Moments | None = None
    """Of `x` and `y`, for a low-rank update alone."""


def shift(update: Update) -> torch.Tensor:
    """Return the mean update `[hidden]`: of all constants the one that leaves the least squared error.

    The emulated update of "A deeper look at depth pruning" (arXiv 2407.16286).
    """
    return update.added / update.weight


def scale(update: Update) -> torch.Tensor:
    """Return the mean magnitude of each channel after the layers, as a multiple of that before them, `[hidden]`.

    LinearPatch (arXiv 2505.24680) without its rotation. A channel that was silent before stays as it is.
    """
    return torch.where(update.before > 0, update.after / update.before, 1.0)


def low_rank(moments: Moments, rank: int) -> torch.Tensor:
    """Return the rows of `A` transposed and those of `B` `[2 * rank, hidden]`, of the best update `x A B` of this rank.

    Raises:
        NumericalError: the moments are not finite.
    """
    down, up = fit_low_rank(moments, rank)
    return torch.cat([down.T, up])


def error_left(update: Update, kind: Kind, tensor: torch.Tensor) -> float:
    """Return the size of the error that a map leaves, as a share of that which plain removal leaves."""
    if kind == "lowrank":
        down, up = tensor.chunk(2)
        return 0.0 if update.moments is None else relative_error(update.moments, down.T @ up)
    if kind == "shift":
        change = update.weight * tensor.square().sum() - 2 * (tensor * update.added).sum()
    else:
        more = tensor - 1
        change = (more.square() * update.square - 2 * more * update.product).sum()
    left = max(0.0, update.added_square + float(change))
    return (left / update.added_square) ** 0.5 if update.added_square else 0.0
