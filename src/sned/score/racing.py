"""Choosing the best of many candidates from partial, paired measurements. Pure functions of tensors."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

LAZY_SHARE = 0.5
"""Until falls are known, a candidate may cost this share of what it did: costs mostly grow as more is removed."""
FEW_FALLS = 20
"""Falls that have to be known before they say what others will do."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What is known of a candidate's score, lower being better, on the first units of a finite number of them.

    Attributes:
        values: Its score on each unit, measured or carried over from an earlier step, `[units]`.
        measured: On how many of these units it was measured in this step.
        error: Standard error of the mean of the values, as far as they are carried over.
        fall: By how much lower the score may be than the values say, for want of any measurement in this step.
    """

    values: torch.Tensor
    measured: int
    error: float = 0.0
    fall: float = 0.0

    @property
    def mean(self) -> float:
        """The mean of the values."""
        return float(self.values.mean())

    def doubt(self, confidence: float, total: int) -> float:
        """Return by how much the mean over all `total` units may be lower than that of the values."""
        if self.measured >= total:
            return 0.0
        if not self.measured:
            return self.fall
        return _slack(confidence, self.measured, (_unseen(self.values, total) + self.error**2) ** 0.5)


def carry_over(known: torch.Tensor, now: torch.Tensor) -> Estimate:
    """Return an estimate from scores on many units in an earlier step, and on the first of them now.

    What changed between the steps on the units of now is taken to have changed on the others as well: a control
    variate. Changes vary far less from unit to unit than scores do.

    Args:
        known: Scores of the earlier step, `[units]`.
        now: Scores now, `[fewer units]`; with as many or more, they alone count.
    """
    n = len(now)
    if n >= len(known):
        return Estimate(now, n)
    change = now - known[:n]
    values = torch.cat([now, known[n:] + change.mean()])
    return Estimate(values, n, _unseen(change, len(known)) ** 0.5)


def still_racing(estimates: Sequence[Estimate], confidence: float, total: int) -> list[bool]:
    """Tell which candidates may still be the best: those that no one-sided paired t-test rules out.

    All are compared with the one that is sure to be lowest among those that were measured. One is ruled out when its
    mean difference to that leader exceeds zero at this confidence. Only units that are not seen yet are uncertain
    (correction for finite populations). Who was not measured in this step was ruled out in an earlier one, and stays so
    unless it may have fallen below where the leader may be.

    Args:
        estimates: One of each candidate.
        confidence: Of ruling out one candidate, such as 0.999.
        total: Number of units on which the best of all is to be found.
    """
    finite = [e for e in estimates if torch.isfinite(e.values).all()]
    if not finite:
        return [i == 0 for i in range(len(estimates))]
    leaders = [e for e in finite if e.measured] or finite
    leader = min(leaders, key=lambda e: e.mean + e.doubt(confidence, total))
    rivals = {id(e) for e in finite if e is leader or not _is_worse(e, leader, confidence, total)}
    return [id(e) in rivals for e in estimates]


def _is_worse(one: Estimate, leader: Estimate, confidence: float, total: int) -> bool:
    n = min(len(one.values), len(leader.values))
    difference = one.values[:n] - leader.values[:n]
    margin = float(difference.mean())
    if min(one.measured, leader.measured) >= total:
        return margin > 0
    if not one.measured:  # ruled out before: what is uncertain is the leader, and how far this one may have fallen
        doubt = _slack(confidence, leader.measured, leader.error) if leader.error else 0.0
        return margin - doubt - one.fall > 0
    error = (_unseen(difference, total) + one.error**2 + leader.error**2) ** 0.5
    return margin - _slack(confidence, min(n, one.measured, leader.measured), error) > 0


def _unseen(values: torch.Tensor, total: int) -> float:
    """Return the variance of the mean of some units as an estimate of the mean over `total` of them."""
    n = len(values)
    if n >= total:
        return 0.0
    return float(values.var()) / n * (1 - n / total) if n > 1 else float("inf")


def _slack(confidence: float, units: int, error: float) -> float:
    quantile = student_quantile(confidence, units - 1)
    return quantile * error if quantile < float("inf") else quantile


@dataclass(frozen=True, slots=True)
class Fall:
    """By how much a candidate became cheaper per step, and what it cost before; negative if it became dearer."""

    cost: float
    per_step: float


def most_fallen(cost: float, age: int, falls: Sequence[Fall], confidence: float) -> float:
    """Return by how much less a candidate may cost now than it did some steps ago.

    Dear candidates fall by more, cheap ones by a greater share: the lesser of the two is allowed for.

    Args:
        cost: Its increase in loss when it was measured.
        age: Steps since then.
        falls: Of candidates that were measured again.
        confidence: Share of the falls that are to be no greater than what is allowed for.
    """
    if len(falls) < FEW_FALLS:
        return (1 - LAZY_SHARE) * abs(cost)
    rows = torch.tensor([[f.per_step, f.per_step / abs(f.cost) if f.cost else 0] for f in falls], dtype=torch.float64)
    by_amount, by_share = rows.quantile((1 + confidence) / 2, dim=0).clamp(min=0).tolist()
    return age * min(by_amount, by_share * abs(cost))


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
