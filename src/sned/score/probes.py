"""Linear probes that tell classes apart, solved or trained, and the choice among probes at several depths.

Pure functions of float64 states `[texts, hidden]`. A probe has no intercept, since the classification heads of
transformers have none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import cross_entropy, one_hot

if TYPE_CHECKING:
    from collections.abc import Sequence

PENALTIES = tuple(10.0**power for power in range(-5, 2))
"""What is tried, times the mean square of a state."""
_SCALES = torch.logspace(-1, 3, 81, dtype=torch.float64)
_STEPS = 200


@dataclass(frozen=True, slots=True)
class Probe:
    """A linear classifier."""

    weight: torch.Tensor
    """`[classes, hidden]`; `states @ weight.T` are logits."""
    penalty: float
    """Of the squared weights, chosen from `PENALTIES`."""


def solve_probe(states: torch.Tensor, labels: torch.Tensor, n_classes: int) -> Probe:
    """Return the ridge regression onto the classes, scaled so that its scores are logits.

    The penalty is the one with the least squared error when every text is left out in turn; the scale, the one with
    the least cross-entropy of those left-out scores. Both are exact, from one eigendecomposition.

    Args:
        states: `[texts, hidden]`, float64.
        labels: `[texts]`, the number of each text's class.
        n_classes: How many there are.
    """
    targets = one_hot(labels, n_classes).double() - 1 / n_classes
    values, vectors = torch.linalg.eigh(states.T @ states)
    values = values.clamp_min(0)
    turned = states @ vectors
    toward = turned.T @ targets
    best: tuple[float, float, torch.Tensor] | None = None
    for penalty in PENALTIES:
        shrunk = values + penalty * _mean_square(states)
        leverage = (turned.square() / shrunk).sum(dim=1, keepdim=True)
        left_out = targets - (targets - (turned / shrunk) @ toward) / (1 - leverage).clamp_min(1e-9)
        error = float((targets - left_out).square().mean())
        if best is None or error < best[0]:
            best = error, penalty, left_out
    assert best is not None  # noqa: S101 - there are penalties
    _, penalty, left_out = best
    weight = vectors @ (toward / (values + penalty * _mean_square(states))[:, None])
    return Probe(weight.T * _logit_scale(left_out, labels), penalty)


def train_probe(
    states: torch.Tensor,
    labels: torch.Tensor,
    n_classes: int,
    held_out: tuple[torch.Tensor, torch.Tensor],
) -> Probe:
    """Return the logistic regression with the penalty that has the least cross-entropy on held-out texts.

    Args:
        states: `[texts, hidden]`, float64.
        labels: `[texts]`, the number of each text's class.
        n_classes: How many there are.
        held_out: States and labels of other texts.
    """
    probes = [_logistic(states, labels, n_classes, penalty) for penalty in PENALTIES]
    other, theirs = held_out
    return min(probes, key=lambda probe: float(cross_entropy(other @ probe.weight.T, theirs)))


def accuracy(weight: torch.Tensor, states: torch.Tensor, labels: torch.Tensor) -> float:
    """Return the share of texts whose class has the largest logit."""
    return float(((states @ weight.T).argmax(dim=1) == labels).double().mean())


def standard_error(share: float, n: int) -> float:
    """Return the standard error of a share that was counted on `n` texts."""
    return math.sqrt(share * (1 - share) / n)


def shallowest(accuracies: Sequence[float], n: int) -> int:
    """Return the first place whose accuracy is within one standard error of the best one's.

    Args:
        accuracies: By depth, on the same `n` texts.
        n: How many texts.
    """
    best = max(accuracies)
    enough = best - standard_error(best, n)
    return next(place for place, value in enumerate(accuracies) if value >= enough)


def _mean_square(states: torch.Tensor) -> float:
    """Return the mean eigenvalue of the Gram matrix, so that a penalty means the same at every depth."""
    return float(states.square().sum()) / states.shape[1]


def _logit_scale(scores: torch.Tensor, labels: torch.Tensor) -> float:
    losses = [float(cross_entropy(scores * scale, labels)) for scale in _SCALES]
    return float(_SCALES[losses.index(min(losses))])


def _logistic(states: torch.Tensor, labels: torch.Tensor, n_classes: int, penalty: float) -> Probe:
    """Return the minimum of cross-entropy plus the penalty, which is convex, by L-BFGS from zero."""
    size = math.sqrt(float(states.square().mean()))
    scaled = states / size
    weight = torch.zeros(n_classes, states.shape[1], dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS([weight], max_iter=_STEPS, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        solver.zero_grad()
        value = cross_entropy(scaled @ weight.T, labels) + penalty * weight.square().sum() / 2
        value.backward()
        return value

    solver.step(loss)
    return Probe(weight.detach() / size, penalty)
