"""Choosing the best of many candidates from partial, paired measurements. Pure functions of tensors."""

from __future__ import annotations

from statistics import NormalDist

import torch

LAZY_SHARE = 0.5
"""Until falls are known, a candidate may cost this share of what it did: costs mostly grow as more is removed."""
FEW_UNITS = 7
"""Degrees of freedom below which a standard error is too rough to say what a mistake would cost."""
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


def still_racing(values: torch.Tensor, confidence: float, regret: float = 0.0) -> torch.Tensor:
    """Tell which candidates may still be the best, `[candidates]`.

    The leader is the one with the lowest mean. A candidate is out when a one-sided paired t-test says that its mean
    difference to the leader exceeds zero; or when the leader may be taken in its place at little expected cost.

    Args:
        values: Score of each candidate on each unit, `[candidates, units]`; lower is better.
        confidence: Of ruling out one candidate by the test, such as 0.999.
        regret: What taking the leader may cost on average, in units of the scores; 0 settles for nothing.
    """
    finite = torch.isfinite(values).all(1)
    means = torch.where(finite, values.mean(1), torch.inf)
    leader = int(means.argmin())
    mean, error = paired_margin(values, values[leader])
    freedom = values.shape[1] - 1
    slack = student_quantile(confidence, freedom) * error
    alive = finite & ~(mean - slack > 0)
    if regret and freedom >= FEW_UNITS:
        alive &= expected_regret(mean, error) > regret
    alive[leader] = True
    return alive


def expected_regret(mean: torch.Tensor, error: torch.Tensor) -> torch.Tensor:
    """Return what taking the leader in the place of each candidate costs on average.

    The true difference is taken to be normal around the measured one; the mean of its negative part, in closed form.

    Args:
        mean: By how much each candidate's mean exceeds the leader's, `[candidates]`.
        error: Standard errors of that.
    """
    normal = torch.distributions.Normal(0.0, 1.0)
    z = mean / error.clamp_min(torch.finfo(error.dtype).tiny)
    return error * (normal.log_prob(z).exp() - z * (1 - normal.cdf(z)))


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
