"""Scores of single weights: the lowest go first. Pure functions of tensors, in float32; may import torch.

A `weight` is `[out, in]`. A `norm` `[in]` is the root of the mean over samples of each input channel's sum of squares.
"""

from __future__ import annotations

import torch


def magnitude(weight: torch.Tensor) -> torch.Tensor:
    """Return the magnitude of each weight, `[out, in]`, float32."""
    return weight.float().abs()


def wanda(weight: torch.Tensor, norm: torch.Tensor) -> torch.Tensor:
    """Return the magnitude of each weight times the norm of its input channel, `[out, in]`, float32.

    Wanda (arXiv 2306.11695), which compares these within each row. Departure: the scores are float32 whatever the
    weights are.
    """
    return magnitude(weight) * norm.float()


def unit_norms(weight: torch.Tensor, norm: torch.Tensor, n_units: int) -> torch.Tensor:
    """Return what each unit of a reader's input channels is worth, `[units]` in float64 (Wanda-sp).

    A channel has the mean over outputs of `|W| norm`; a unit of several channels, such as a head, has their mean.

    Args:
        weight: Of the reader, `[out, units * width]`.
        norm: Of its input channels, `[units * width]`.
        n_units: How many units the channels make.
    """
    channels = magnitude(weight).mean(0, dtype=torch.float64) * norm.double()
    return channels.view(n_units, -1).mean(1).cpu()


def unit_fluctuations(weight: torch.Tensor, variance: torch.Tensor, n_units: int) -> torch.Tensor:
    """Return by how much what each unit contributes to its reader's outputs varies, `[units]` in float64 (FLAP, WIFV).

    A channel has its variance times the sum over outputs of its squared weights, which is the mean squared change of
    the outputs if a constant takes its place; a unit of several channels, such as a head, has their mean.

    Args:
        weight: Of the reader, `[out, units * width]`.
        variance: Of its input channels, `[units * width]`.
        n_units: How many units the channels make.
    """
    channels = weight.float().square().sum(0, dtype=torch.float64).cpu() * variance.double().cpu()
    return channels.view(n_units, -1).mean(1)


def multiflow(weight: torch.Tensor, norm: torch.Tensor) -> torch.Tensor:
    """Return the magnitude of each weight times what its output emits and what its input receives, `[out, in]`.

    MultiFlow (arXiv 2404.05621): an output emits the mean over its row of `|W| norm`, an input receives the mean over
    its column. Departures: both means are relative to the largest of their kind, so that no product overflows, which
    changes no ranking; and how many weights of each matrix go is not decided here, where the paper takes the shares
    that the magnitudes of a whole modality give.
    """
    flow = wanda(weight, norm)
    emitted, received = _of_largest(flow.mean(1)), _of_largest(flow.mean(0))
    return magnitude(weight) * emitted[:, None] * received


def cumulative(scores: torch.Tensor) -> torch.Tensor:
    """Return the share of its row's total that each score and all lower ones of the row make up, `[rows, columns]`.

    Of equal scores the first counts as lower; rows that total 0 get 0. The result is float64, in which no score is too
    small to count, so that what is lowest over a matrix is the lowest scores of each row.

    Taking the lowest `k` of these is the variant of Wanda (arXiv 2306.11695, its code) that prunes each row as far as
    its pruned scores stay within a share `α` of the row's total. Departure: `α` is the one that gives exactly `k`,
    where the authors bisect it within 0 to 0.8, to 0.001.

    Args:
        scores: `[rows, columns]`, none negative.
    """
    ascending, order = scores.double().sort(dim=1, stable=True)
    sums = ascending.cumsum(1)
    total = sums[:, -1:]
    shares = sums / torch.where(total > 0, total, 1.0)
    return torch.empty_like(shares).scatter_(1, order, shares)


def _of_largest(values: torch.Tensor) -> torch.Tensor:
    """Return values relative to the largest of them, none of which is negative; zeros where all are."""
    return values / values.max().clamp_min(torch.finfo(values.dtype).tiny)
