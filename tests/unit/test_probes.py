"""Probes against brute force: every text left out in turn, and the conditions of a minimum; the choice of a depth."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy, one_hot

from sned.score.probes import PENALTIES, accuracy, shallowest, solve_probe, standard_error, train_probe

CLASSES = 3


def problem(n: int = 40, hidden: int = 12, noise: float = 1.0, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Clouds around a centre per class, in float64."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(CLASSES, hidden, generator=torch.Generator().manual_seed(99), dtype=torch.float64)
    labels = torch.arange(n) % CLASSES
    return centres[labels] + noise * torch.randn(n, hidden, generator=generator, dtype=torch.float64), labels


def ridge(states: torch.Tensor, targets: torch.Tensor, penalty: float) -> torch.Tensor:
    """``[hidden, classes]``, by the normal equations."""
    return torch.linalg.solve(states.T @ states + penalty * torch.eye(states.shape[1]).double(), states.T @ targets)


@pytest.mark.parametrize("n", [40, 8], ids=["many", "fewer-than-directions"])
def test_the_penalty_is_the_best_when_each_text_is_left_out(n: int) -> None:
    states, labels = problem(n, noise=3.0)
    targets = one_hot(labels, CLASSES).double() - 1 / CLASSES
    size = float(states.square().sum()) / states.shape[1]
    errors = []
    for penalty in PENALTIES:
        predicted = []
        for i in range(n):
            others = [j for j in range(n) if j != i]
            predicted.append(states[i] @ ridge(states[others], targets[others], penalty * size))
        errors.append(float((torch.stack(predicted) - targets).square().mean()))
    probe = solve_probe(states, labels, CLASSES)
    assert probe.penalty == PENALTIES[errors.index(min(errors))]
    solved = ridge(states, targets, probe.penalty * size).T
    ratio = probe.weight / solved
    assert ratio.std() < 1e-6 * ratio.mean()  # the same but for the scale
    assert ratio.mean() > 0


def test_scores_of_a_solved_probe_are_logits() -> None:
    """On texts that it has not seen, no other scale does much better."""
    probe = solve_probe(*problem(400, noise=2.0), CLASSES)
    others, theirs = problem(400, noise=2.0, seed=1)
    losses = {scale: float(cross_entropy(scale * others @ probe.weight.T, theirs)) for scale in (0.5, 1.0, 2.0)}
    assert losses[1.0] == min(losses.values())


def test_a_trained_probe_is_at_the_minimum() -> None:
    states, labels = problem(60, noise=2.0)
    others, theirs = problem(60, noise=2.0, seed=1)
    probe = train_probe(states, labels, CLASSES, (others, theirs))
    size = float(states.square().mean().sqrt())
    weight = (probe.weight * size).requires_grad_()
    (cross_entropy(states / size @ weight.T, labels) + probe.penalty * weight.square().sum() / 2).backward()
    assert weight.grad is not None
    assert weight.grad.abs().max() < 1e-5
    assert accuracy(probe.weight, others, theirs) > 0.8


def test_both_tell_apart_what_a_line_divides() -> None:
    states, labels = problem(90, noise=0.05)
    for probe in (solve_probe(states, labels, CLASSES), train_probe(states, labels, CLASSES, (states, labels))):
        assert accuracy(probe.weight, states, labels) == 1.0


def test_the_first_depth_within_one_standard_error_is_taken() -> None:
    assert standard_error(0.9, 100) == pytest.approx(0.03)
    assert shallowest([0.5, 0.86, 0.875, 0.9, 0.88], 100) == 2
    assert shallowest([0.5, 0.86, 0.875, 0.9, 0.88], 10_000) == 3
    assert shallowest([1.0, 1.0], 5) == 0
