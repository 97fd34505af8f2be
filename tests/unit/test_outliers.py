"""Outliers among the scores of a block, against a single long list and a distribution whose tail is known."""

from __future__ import annotations

import math

import pytest
import torch

from sned.errors import NumericalError
from sned.score.outliers import outlier_ratio

SHAPES = ((8, 12), (5, 8), (30,))


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def block(seed: int) -> list[torch.Tensor]:
    """Scores of matrices of different shapes and scales."""
    return [(i + 1) * draw(seed + i, *shape).square() for i, shape in enumerate(SHAPES)]


@pytest.mark.parametrize("multiple", [1.0, 2.5, 5.0])
def test_it_is_the_share_in_one_long_list(multiple: float) -> None:
    scores = block(0)
    flat = [x for score in scores for x in score.flatten().tolist()]
    mean = sum(flat) / len(flat)
    want = 100 * sum(x > multiple * mean for x in flat) / len(flat)
    assert want > 0
    assert outlier_ratio(scores, multiple) == pytest.approx(want)
    assert outlier_ratio(iter(scores), multiple) == pytest.approx(want)


@pytest.mark.parametrize("multiple", [3.0, 5.0])
def test_gaussian_weights_have_the_outliers_of_their_distribution(multiple: float) -> None:
    n = 1_000_000
    share = math.erfc(multiple / math.sqrt(math.pi))
    error = math.sqrt(share / n)
    scores = [draw(seed, 1000, n // 4000).abs() for seed in range(4)]
    assert outlier_ratio(scores, multiple) == pytest.approx(100 * share, abs=100 * 4 * error)


@pytest.mark.parametrize("scale", [1e-8, 0.3, 1e8])
def test_the_scale_of_a_block_does_not_matter(scale: float) -> None:
    assert outlier_ratio([scale * score for score in block(1)], 3) == outlier_ratio(block(1), 3)


def test_scores_in_half_precision_do_not_overflow() -> None:
    scores = torch.full((300, 300), 6e4, dtype=torch.float16)
    scores[0, 0] = 100.0
    assert outlier_ratio([scores], 0.5) == pytest.approx(100 * (1 - 1 / 300**2))
    assert outlier_ratio([scores], 1.5) == 0  # the threshold is more than float16 holds


def test_the_threshold_is_not_rounded_to_the_precision_of_the_scores() -> None:
    scores = torch.ones(100, dtype=torch.bfloat16)
    scores[7] = 1.0078125  # the next number
    assert outlier_ratio([scores], 1.005) == 1


def test_scores_that_are_zero_have_no_outliers() -> None:
    assert outlier_ratio([torch.zeros(3, 4)], 5) == 0


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_scores_that_are_not_finite_are_told(bad: float) -> None:
    with pytest.raises(NumericalError, match="NaN or infinity"):
        outlier_ratio([torch.ones(3), torch.tensor([1.0, bad])], 5)
