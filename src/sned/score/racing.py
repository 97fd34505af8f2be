"""Choosing the best of many candidates from partial, paired measurements. Pure functions of tensors."""

from __future__ import annotations

from statistics import NormalDist

import torch

LAZY_SHARE = 0.5
"""Until falls are known, a candidate may cost this share of what it did: costs mostly grow as more is removed."""
FEW_FALLS = 20
"""Falls that have to be known before they say what others will do."""


def least_now(cost: float, age: int, falls: list[float], confidence: float) -> float:
    """Return the least that a candidate may cost now, from what it cost some steps ago.

    Args:
        cost: Its increase in loss when it was measured.
        age: Steps since then.
        falls: By how much measured candidates became cheaper per step, on the same tokens; negative for dearer.
        confidence: Share of the falls that are to be no greater than what is allowed for.
    """
    if len(falls) < FEW_FALLS:
        return cost - (1 - LAZY_SHARE) * abs(cost)
    fall = float(torch.tensor(falls, dtype=torch.float64).quantile(confidence))
    return cost - age * max(0.0, fall)


def paired_margin(values: torch.Tensor, leader: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and standard error of `values - leader` over the units both were measured on.

    Args:
        values: Score of each candidate on each unit, `[candidates, units]`.
        leader: Score of the leader on the same units, `[units]`.
    """
    difference = values - leader
    n = difference.shape[1]
    error = difference.std(1) / n**0.5 if n > 1 else torch.full_like(difference[:, 0], torch.inf)
    return difference.mean(1), error


def still_racing(values: torch.Tensor, confidence: float, seen: float = 0.0) -> torch.Tensor:
    """Tell which candidates may still be the best, `[candidates]`: those that no one-sided paired t-test rules out.

    The leader is the one with the lowest mean; a candidate is ruled out when its mean difference to the leader exceeds
    zero at this confidence.

    Args:
        values: Score of each candidate on each unit, `[candidates, units]`; lower is better.
        confidence: Of ruling out one candidate, such as 0.999.
        seen: Share of the units, 0 to 1, on which the best of all is to be found. What is not seen yet is then all
            that is uncertain (correction for finite populations); 0 where there are more units without end.
    """
    finite = torch.isfinite(values).all(1)
    means = torch.where(finite, values.mean(1), torch.inf)
    leader = int(means.argmin())
    mean, error = paired_margin(values, values[leader])
    slack = student_quantile(confidence, values.shape[1] - 1) * error * (1 - seen) ** 0.5
    alive = finite & ~(mean - slack > 0)
    alive[leader] = True
    return alive


def student_quantile(confidence: float, freedom: int) -> float:
    """Return the quantile of Student's t, by the Cornish-Fisher expansion (to 2% from 7 degrees of freedom at 0.999).

    Infinite below three degrees of freedom, where nothing should be ruled out.
    """
    if freedom < 3:
        return float("inf")
    z = NormalDist().inv_cdf(confidence)
    v = float(freedom)
    terms = (
        (z**3 + z) / (4 * v),
        (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2),
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3),
    )
    return z + sum(terms)
