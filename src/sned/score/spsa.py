"""Gradients from losses alone: what a step along a random direction changes says how steep it is there.

Pure functions of tensors and numbers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from sned.canon import digest

if TYPE_CHECKING:
    from collections.abc import Sequence


def direction(seed: int, number: int, name: str, shape: Sequence[int]) -> torch.Tensor:
    """Return the part of a random direction that belongs to a name: standard normal, float32, the same each time.

    Every name has a stream of its own, so that one part can be made again without the others.
    """
    generator = torch.Generator().manual_seed(int(digest([seed, number, name])[:15], 16))
    return torch.randn(tuple(shape), generator=generator)


def slope(above: float, below: float, step: float) -> float:
    """Return the derivative along a direction from the losses a step ahead and a step behind."""
    return (above - below) / (2 * step)


def estimate(slopes: Sequence[float], seed: int, name: str, shape: Sequence[int]) -> torch.Tensor:
    """Return the gradient by what belongs to a name, float32: the mean of slopes times directions (SPSA).

    Its mean over directions is the gradient; one estimate points mostly elsewhere, for its cosine with the gradient is
    about the square root of directions over dimensions.
    """
    total = torch.zeros(tuple(shape))
    for number, value in enumerate(slopes):
        total += value * direction(seed, number, name, shape)
    return total / len(slopes)


def sizes(gradient: torch.Tensor, slopes: Sequence[float], expected: torch.Tensor) -> torch.Tensor:
    """Return how large each part of a gradient is likely to be, given what slopes say of it, `[n]`, float64.

    A part is taken to be normal around zero, as large as expected; an estimate from few slopes is normal around what it
    is, and off by the whole gradient's norm over the root of their number. The root of the mean square of what is then
    left to believe is the expectation where slopes say nothing, and the estimate's size where they say all.

    Args:
        gradient: What `estimate` returns, `[n]`.
        slopes: From which it was made.
        expected: How large the parts are to each other, before anything was tried, `[n]`.
    """
    square = sum(slope**2 for slope in slopes) / len(slopes)  # the mean of it is the gradient's own
    before = square * expected.double().square() / expected.double().square().sum().clamp_min(1e-300)
    off = square / len(slopes)
    trust = before / (before + off) if square else torch.zeros_like(before)
    return ((trust * gradient.double()).square() + trust * off).sqrt()


def rank_correlation(one: torch.Tensor, other: torch.Tensor) -> float:
    """Return Spearman's correlation of two scores of the same things, `[n]`; 0 where either does not vary."""
    ranks = [scores.double().argsort(stable=True).argsort(stable=True).double() for scores in (one, other)]
    a, b = (r - r.mean() for r in ranks)
    spread = float((a.square().sum() * b.square().sum()).sqrt())
    return float(a @ b) / spread if spread else 0.0
