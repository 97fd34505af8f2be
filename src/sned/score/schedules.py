"""From evidence about blocks, matrices or rows to the share of zeros that each should get.

Shares are as the papers have them: their mean is the sparsity, but nothing holds them within [0, 1]. Whoever uses them
projects them onto the exact budget. Pure functions of tensors; results are float64.
"""

from __future__ import annotations

import torch

from sned.errors import NumericalError

ROUNDING = 1e-9
"""Evidence that differs by less, relative to the largest, is equal."""


def outlier_shares(ratios: torch.Tensor, sparsity: float, spread: float) -> torch.Tensor:
    """Return the share of zeros of each block, `[blocks]`: fewer where there are more outliers (OWL, arXiv 2310.05175).

    The largest and the smallest share are `2 * spread` apart, and their mean over blocks is the sparsity. Skewed ratios
    put one end further than `spread` from it.

    Args:
        ratios: Of outliers in each block, `[blocks]`, in any unit.
        sparsity: The mean share.
        spread: Half the range of the shares.

    Raises:
        NumericalError: the ratios are not finite.
    """
    return _centred(ratios, sparsity, spread)


def row_shares(drops: torch.Tensor, sparsity: float, spread: float) -> torch.Tensor:
    """Return the share of zeros of each row of a matrix, `[rows]`: fewer where pruning silences the row's reader more.

    The largest and the smallest share are `2 * spread` apart, and their mean is the sparsity (NeuroAL, arXiv
    2411.07066).

    Args:
        drops: How much the activation that each row computes lost by pruning, `[rows]`, signed.
        sparsity: The mean share.
        spread: Half the range of the shares.

    Raises:
        NumericalError: the drops are not finite.
    """
    return _centred(drops, sparsity, spread)


def tail_shares(alphas: torch.Tensor, sizes: torch.Tensor, sparsity: float, spread: float) -> torch.Tensor:
    """Return the share of zeros of each part, `[parts]`: more where tails are lighter (AlphaPruning, arXiv 2410.10912).

    Shares are in proportion to numbers from `1 - spread` to `1 + spread`, and their mean over weights is the sparsity.

    Args:
        alphas: Exponent of the spectrum of each part, `[parts]`; an infinite one counts as the largest that is finite.
        sizes: Weights in each part, `[parts]`.
        sparsity: The mean share.
        spread: From 0, all shares equal, to 1.

    Raises:
        NumericalError: an exponent is NaN.
    """
    exact = alphas.double()
    infinite = torch.isposinf(exact)
    exact = torch.where(infinite, exact[~infinite].amax() if not infinite.all() else 0.0, exact)
    relative = _ranged(exact) * 2 * spread + (1 - spread)
    weights = sizes.double()
    return sparsity * weights.sum() / (weights @ relative) * relative


def ramp(n_blocks: int, sparsity: float, spread: float) -> torch.Tensor:
    """Return shares of zeros that rise evenly with depth, `[n_blocks]` (NeuroAL, arXiv 2411.07066).

    They go from `sparsity - spread` to `sparsity + spread`; a single block gets the sparsity itself.
    """
    if n_blocks == 1:
        return torch.tensor([sparsity], dtype=torch.float64)
    return sparsity + spread * torch.linspace(-1, 1, n_blocks, dtype=torch.float64)


def _centred(evidence: torch.Tensor, sparsity: float, spread: float) -> torch.Tensor:
    """Return shares that fall evenly with the evidence, over a range of `2 * spread` around a mean."""
    kept = _ranged(evidence.double()) * 2 * spread
    return sparsity - (kept - kept.mean())


def _ranged(values: torch.Tensor) -> torch.Tensor:
    """Return values moved and scaled to [0, 1]; 1/2 for each of values that are all equal."""
    if not torch.isfinite(values).all():
        raise NumericalError("what shares of zeros are decided by holds NaN or infinity", hint="try --dtype fp32")
    low, high = values.aminmax()
    if high - low <= ROUNDING * values.abs().amax():
        return torch.full_like(values, 0.5)
    return (values - low) / (high - low)
