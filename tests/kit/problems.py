"""Least-squares problems `M T ≈ Z` with known properties, for the tests of linear maps."""

from __future__ import annotations

from typing import get_args

import torch

from sned.score.linear_map import Moments, Structure

D, T = 10, 400
STRUCTURES: tuple[Structure, ...] = get_args(Structure)


def problem(seed: int = 0, *, noise: float = 0.5, rank: int = D) -> tuple[torch.Tensor, torch.Tensor]:
    """Correlated states `M`, and targets `Z` that are partly linear in them; float64."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    states = draw(T, rank) @ draw(rank, D) / rank**0.5 * torch.linspace(0.5, 2.0, D, dtype=torch.float64)
    target = states + 0.4 * states @ draw(D, D) + noise * draw(T, D)
    return states, target


def easy_problem() -> tuple[torch.Tensor, torch.Tensor]:
    """Uncorrelated states, on which Adam arrives within a test."""
    generator = torch.Generator().manual_seed(0)
    states, turn, rest = (torch.randn(*shape, generator=generator).double() for shape in ((T, D), (D, D), (T, D)))
    return states, states + 0.4 * states @ turn + 0.1 * rest


def moments_of(states: torch.Tensor, target: torch.Tensor) -> Moments:
    return Moments(states.T @ states, states.T @ target, float(target.square().sum()), len(states))


def error(states: torch.Tensor, target: torch.Tensor, matrix: torch.Tensor) -> float:
    return float((states @ matrix - target).square().sum())


def close(got: torch.Tensor, want: torch.Tensor, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(got, want, atol=tolerance, rtol=tolerance)
