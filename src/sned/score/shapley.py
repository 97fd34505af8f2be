"""Shapley values from sampled orders: what each of several parts is worth when all of them go, one after the other.

A part's value is by how much the loss rises when it goes, on average over all orders in which the parts can go: each
meets every set of those gone before it with a fair chance. Pure functions of numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch

Coalition = frozenset[int]
"""The parts that are gone."""


@dataclass(frozen=True, slots=True)
class ShapleyValues:
    """What parts are worth, and how far that can be trusted."""

    values: list[float]
    errors: list[float] | None
    """Standard errors of the values; None from a single pair of orders."""
    agreement: float | None
    """Kendall's tau between the values from the first half of the orders and those from the second."""
    gap: float
    """The sum of the values less what all parts together are worth: only rounding, since the axiom holds exactly."""


def antithetic_orders(n: int, count: int, generator: torch.Generator) -> list[list[int]]:
    """Return `count` orders of `n` parts, an even number: each drawn one is followed by its reverse.

    A part that goes early in the one goes late in the other, so that their mean varies less than that of two draws.
    More orders begin with the same ones.
    """
    drawn = [torch.randperm(n, generator=generator).tolist() for _ in range(count // 2)]
    return [order for one in drawn for order in (one, one[::-1])]


def coalitions(orders: Sequence[Sequence[int]], sizes: range | None = None) -> list[Coalition]:
    """Return what is gone at any moment of any order, or at those when so many parts are, each set once.

    Sets that agree on the first parts stand together, so that runs through a model can share what they have in common.
    """
    met = {gone for order in orders for gone in _steps(order) if sizes is None or len(gone) in sizes}
    return sorted(met, key=lambda gone: [part not in gone for part in range(len(orders[0]))])


def shapley_values(orders: Sequence[Sequence[int]], losses: Mapping[Coalition, float]) -> ShapleyValues:
    """Return the Shapley values of the parts of antithetic orders, from the loss of each of their coalitions.

    Args:
        orders: From `antithetic_orders`.
        losses: Finite ones of all that `coalitions` returns for these orders.
    """
    n = len(orders[0])
    increases = torch.zeros(len(orders), n, dtype=torch.float64)
    for row, order in enumerate(orders):
        for part, (before, after) in zip(order, pairwise(_steps(order)), strict=True):
            increases[row, part] = losses[after] - losses[before]
    pairs = (increases[0::2] + increases[1::2]) / 2  # the two of a pair depend on each other, pairs do not
    values, (half, rest) = pairs.mean(0), divmod(len(pairs), 2)
    # of an odd number of pairs the one in the middle is in neither half
    halves = [pairs[:half].mean(0).tolist(), pairs[half + rest :].mean(0).tolist()] if half else None
    return ShapleyValues(
        values=values.tolist(),
        errors=(pairs.std(0) / math.sqrt(len(pairs))).tolist() if len(pairs) > 1 else None,
        agreement=kendall_tau(*halves) if halves else None,
        gap=efficiency_gap(values.tolist(), losses[Coalition()], losses[Coalition(range(n))]),
    )


def efficiency_gap(values: Sequence[float], none_gone: float, all_gone: float) -> float:
    """Return by how much values add up to more than removing all parts costs; Shapley values leave only rounding."""
    return math.fsum(values) - (all_gone - none_gone)


def kendall_tau(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Return Kendall's rank correlation of two scores of the same things, ties allowed (tau-b): 1 for the same order.

    None where one of them ranks nothing.
    """
    left, right = torch.triu_indices(len(first), len(first), offset=1)
    signs = [torch.sign(scores[left] - scores[right]) for scores in map(_as_tensor, (first, second))]
    scale = math.sqrt(signs[0].square().sum() * signs[1].square().sum())
    return float((signs[0] * signs[1]).sum()) / scale if scale else None


def _as_tensor(scores: Sequence[float]) -> torch.Tensor:
    return torch.tensor(list(scores), dtype=torch.float64)


def _steps(order: Sequence[int]) -> list[Coalition]:
    """Return what is gone before the first step of an order and after each."""
    return list(accumulate(order, lambda gone, part: gone | {part}, initial=Coalition()))
