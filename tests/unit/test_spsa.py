"""Gradients from losses alone: unbiased, better with more directions, and the same each time."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from sned.score.spsa import direction, estimate, rank_correlation, sizes, slope

SIZE = 40
GENERATOR = torch.Generator().manual_seed(0)
GRADIENT = torch.randn(SIZE, generator=GENERATOR)
CURVED = torch.randn(SIZE, SIZE, generator=GENERATOR)


def loss(x: torch.Tensor) -> float:
    """A quadratic loss whose gradient at zero is known."""
    x = x.double()
    return float(GRADIENT.double() @ x + 0.5 * x @ (CURVED @ CURVED.T).double() @ x)


def slopes(n: int, seed: int = 0, step: float = 1e-3) -> list[float]:
    moves = [step * direction(seed, number, "x", [SIZE]) for number in range(n)]
    return [slope(loss(move), loss(-move), step) for move in moves]


def cosine(n: int, seed: int) -> float:
    return float(torch.cosine_similarity(estimate(slopes(n, seed), seed, "x", [SIZE]), GRADIENT, dim=0))


def test_a_slope_is_the_derivative_along_its_direction() -> None:
    found = slopes(5)
    wanted = [float(GRADIENT @ direction(0, number, "x", [SIZE])) for number in range(5)]
    assert found == pytest.approx(wanted, rel=1e-4), "curvature drops out of a central difference"


def test_the_mean_estimate_is_the_gradient() -> None:
    many = 20_000
    error = (estimate(slopes(many), 0, "x", [SIZE]) - GRADIENT).norm() / GRADIENT.norm()
    assert float(error) < 3 * (SIZE / many) ** 0.5


def test_the_cosine_grows_as_the_square_root_of_the_directions() -> None:
    """As long as these are few beside the dimensions."""
    means = [sum(cosine(n, seed) for seed in range(60)) / 60 for n in (1, 4, 16)]
    for fewer, more in pairwise(means):
        assert more / fewer == pytest.approx(2, rel=0.3)


def test_a_direction_is_made_again_by_its_name_alone() -> None:
    whole = {name: direction(3, 7, name, [4, 5]) for name in ("a", "b", "c")}
    assert torch.equal(direction(3, 7, "b", [4, 5]), whole["b"])
    others = [direction(4, 7, "b", [4, 5]), direction(3, 8, "b", [4, 5]), whole["a"], whole["c"]]
    assert not any(torch.equal(whole["b"], other) for other in others)
    assert float(direction(0, 0, "large", [100_000]).std()) == pytest.approx(1, abs=0.01)


def test_a_size_is_what_is_to_be_believed() -> None:
    """By numerical integration over all that a part could be, before and after it was estimated."""
    found, expected, gradient = [0.5, -1.0, 2.0], torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.1, -2.0, 1.0])
    square = sum(s * s for s in found) / 3
    before, off = square * expected.double() ** 2 / 14, square / 3
    could = torch.linspace(-20, 20, 400_001, dtype=torch.float64)
    for variance, seen, size in zip(before, gradient, sizes(gradient, found, expected), strict=True):
        likely = torch.exp(-(could**2) / (2 * variance) - (seen - could) ** 2 / (2 * off))
        assert float(size) == pytest.approx(float(((could**2 * likely).sum() / likely.sum()).sqrt()), rel=1e-6)


def test_sizes_are_as_expected_until_many_slopes_say_otherwise() -> None:
    expected = torch.rand(SIZE, generator=torch.Generator().manual_seed(1)) + 0.5

    def correlations(n: int) -> tuple[float, float]:
        found = slopes(n)
        size = sizes(estimate(found, 0, "x", [SIZE]), found, expected)
        return rank_correlation(size, expected), rank_correlation(size, GRADIENT.abs())

    few, many = correlations(1), correlations(4000)
    assert few[0] > 0.9 > few[1]
    assert many[1] > 0.9 > many[0]
    flat = sizes(torch.zeros(3), [0.0, 0.0], torch.ones(3))
    assert torch.equal(flat, torch.zeros(3, dtype=torch.float64)), "where nothing changes the loss, nothing matters"


def test_ranks_correlate() -> None:
    values = torch.tensor([0.1, 5.0, -3.0, 2.0])
    assert rank_correlation(values, values.exp()) == pytest.approx(1)
    assert rank_correlation(values, -values) == pytest.approx(-1)
    assert rank_correlation(torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([2.0, 1.0, 4.0, 3.0])) == pytest.approx(
        0.6
    )
