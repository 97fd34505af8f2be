"""Masks: against sorting in plain Python, with many ties, and packed as numpy packs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sned.errors import ConfigError, NumericalError
from sned.models.bits import pack, unpack
from sned.score.masks import lowest_counts, matrix_lowest, n_of_m, rows_lowest

SHAPES = [(1, 1), (1, 12), (5, 8), (7, 4), (16, 20)]
shapes = pytest.mark.parametrize("shape", SHAPES)
values = pytest.mark.parametrize("levels", [1, 2, 5, None])


def draw(shape: tuple[int, int], levels: int | None = None, seed: int = 0) -> torch.Tensor:
    """Random scores; of a few levels, and so with ties, where levels are given."""
    generator = torch.Generator().manual_seed(seed)
    if levels is None:
        return torch.randn(*shape, generator=generator)
    return torch.randint(levels, shape, generator=generator).float()


def marked(scores: list[float], count: int) -> list[bool]:
    chosen = sorted(range(len(scores)), key=lambda i: (scores[i], i))[:count]
    return [i in chosen for i in range(len(scores))]


@shapes
@values
def test_each_row_loses_its_lowest(shape: tuple[int, int], levels: int | None) -> None:
    scores = draw(shape, levels)
    counts = torch.randint(shape[1] + 1, (shape[0],), generator=torch.Generator().manual_seed(1))
    counts[0], counts[-1] = 0, shape[1]
    got = rows_lowest(scores, counts)
    assert got.dtype == torch.bool
    assert got.tolist() == [marked(row, n) for row, n in zip(scores.tolist(), counts.tolist(), strict=True)]


@shapes
@values
def test_the_matrix_loses_its_lowest(shape: tuple[int, int], levels: int | None) -> None:
    scores = draw(shape, levels)
    n = scores.numel()
    for count in {0, 1, n // 3, n // 2, n - 1, n}:
        got = matrix_lowest(scores, count)
        assert got.shape == shape
        assert got.flatten().tolist() == marked(scores.flatten().tolist(), count)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_infinite_scores_and_both_zeros_count(dtype: torch.dtype) -> None:
    scores = torch.tensor([[0.0, -0.0, torch.inf], [-torch.inf, 0.0, torch.inf]], dtype=dtype)
    wanted = [[[0, 0, 0], [1, 0, 0]], [[1, 0, 0], [1, 0, 0]], [[1, 1, 0], [1, 0, 0]], [[1, 1, 0], [1, 1, 0]]]
    assert [matrix_lowest(scores, n + 1).int().tolist() for n in range(4)] == wanted
    assert rows_lowest(scores, torch.tensor([1, 1])).int().tolist() == wanted[1]


def test_a_transposed_matrix_is_read_by_its_own_rows() -> None:
    scores = draw((6, 10), 3).T
    assert matrix_lowest(scores, 25).flatten().tolist() == marked(scores.flatten().tolist(), 25)
    assert torch.equal(n_of_m(scores, 1, 2), n_of_m(scores.contiguous(), 1, 2))
    mask = scores > 1
    assert torch.equal(unpack(pack(mask), mask.shape), mask)


def test_a_permutation_permutes_and_a_scale_changes_nothing() -> None:
    scores = draw((9, 14))
    rows, columns = (torch.randperm(n, generator=torch.Generator().manual_seed(n)) for n in scores.shape)
    mask = matrix_lowest(scores, 50)
    assert torch.equal(matrix_lowest(scores[rows][:, columns], 50), mask[rows][:, columns])
    assert torch.equal(matrix_lowest(4 * scores, 50), mask)


@pytest.mark.parametrize(("keep", "m"), [(0, 4), (1, 4), (2, 4), (4, 4), (4, 8), (3, 8), (1, 1), (1, 3)])
@values
def test_every_run_keeps_its_highest(keep: int, m: int, levels: int | None) -> None:
    scores = draw((6, 24), levels)
    got = n_of_m(scores, keep, m)
    assert got.shape == scores.shape
    want = [marked(run, m - keep) for run in scores.view(-1, m).tolist()]
    assert got.view(-1, m).tolist() == want


def test_of_equal_scores_the_first_go() -> None:
    assert n_of_m(torch.ones(1, 8), 1, 4).int().tolist() == [[1, 1, 1, 0] * 2]


def test_rows_that_do_not_divide_are_told() -> None:
    with pytest.raises(ConfigError, match="10 columns do not divide into runs of 4"):
        n_of_m(draw((2, 10)), 2, 4)


def test_a_score_that_is_nan_is_told() -> None:
    scores = draw((3, 8))
    scores[1, 2] = torch.nan
    for mark in (
        lambda: rows_lowest(scores, torch.zeros(3, dtype=torch.int64)),
        lambda: matrix_lowest(scores, 0),
        lambda: n_of_m(scores, 4, 4),
    ):
        with pytest.raises(NumericalError, match="a score is NaN"):
            mark()


def counted(matrices: list[torch.Tensor], count: int) -> list[int]:
    """Sort all scores of all matrices, and see where the lowest came from."""
    owners = [i for i, scores in enumerate(matrices) for _ in range(scores.numel())]
    scores = [score for matrix in matrices for score in matrix.flatten().tolist()]
    lowest = sorted(range(len(scores)), key=lambda i: (scores[i], i))[:count]
    return [sum(owners[i] == number for i in lowest) for number in range(len(matrices))]


def near_ties() -> list[torch.Tensor]:
    """Scores of which many share their first 16 bits, and differ in the others."""
    return [1 + draw((7, 9), 40, seed) * 2**-21 for seed in range(3)]


@pytest.mark.parametrize(
    "matrices",
    [
        [draw((6, 7), None, seed).abs() for seed in range(4)],
        [draw((5, 4 + seed), 3, seed) for seed in range(4)],
        [torch.zeros(3, 4), draw((4, 4), 2), torch.zeros(2, 5)],
        near_ties(),
        [draw((6, 10), 3).T, draw((4, 4)).abs() * 1e-42, torch.full((2, 3), torch.inf), torch.full((1, 2), 3e38)],
        [draw((8, 8)).bfloat16().float().abs(), torch.zeros(0, 3), draw((8, 8), 4)],
        [torch.ones(1, 1)],
    ],
    ids=["random", "ties", "zeros", "near ties", "extremes", "coarse", "one"],
)
def test_the_lowest_of_all_are_counted_by_matrix(matrices: list[torch.Tensor]) -> None:
    n = sum(scores.numel() for scores in matrices)
    for count in range(n + 1):
        assert lowest_counts(lambda: matrices, count) == counted(matrices, count)


def test_a_score_that_is_nan_is_told_of_all_matrices() -> None:
    with pytest.raises(NumericalError, match="a score is NaN"):
        lowest_counts(lambda: [torch.ones(2, 2), torch.tensor([[1.0, torch.nan]])], 3)


@pytest.mark.parametrize("shape", [(1, 1), (1, 8), (3, 3), (5, 16), (7, 9), (2, 3, 5), (0, 4)])
def test_packed_bits_are_those_of_numpy_and_come_back(shape: tuple[int, ...]) -> None:
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 0.4
    bits = pack(mask)
    assert bits.dtype == torch.uint8
    assert bits.numpy().tolist() == np.packbits(mask.numpy()).tolist()
    back = unpack(bits, shape)
    assert back.dtype == torch.bool
    assert torch.equal(back, mask)
