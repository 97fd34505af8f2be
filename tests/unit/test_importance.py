"""Scores of weights: their identities and invariances, and the masks that follow from them."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch

from sned.score.importance import cumulative, magnitude, multiflow, wanda
from sned.score.masks import matrix_lowest, rows_lowest

Score = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

OUT, IN = 12, 20
GENERATOR = torch.Generator().manual_seed(0)
WEIGHT = torch.randn(OUT, IN, generator=GENERATOR) * torch.rand(OUT, 1, generator=GENERATOR)
NORM = torch.rand(IN, generator=GENERATOR) * 5 + 0.1
HALF = torch.full((OUT,), IN // 2)


def flow_in_full(weight: torch.Tensor, norm: torch.Tensor) -> torch.Tensor:
    """MultiFlow's score as the paper writes it, in float64."""
    size = weight.double().abs()
    flow = size * norm.double()
    return torch.stack(
        [torch.stack([size[i, j] * flow[i].mean() * flow[:, j].mean() for j in range(IN)]) for i in range(OUT)]
    )


def test_magnitude_and_wanda_are_products() -> None:
    assert magnitude(WEIGHT).tolist() == [[abs(w) for w in row] for row in WEIGHT.tolist()]
    got = wanda(WEIGHT, NORM)
    for i, j in itertools.product(range(OUT), range(IN)):
        assert float(got[i, j]) == pytest.approx(abs(float(WEIGHT[i, j])) * float(NORM[j]), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_scored_in_float32(dtype: torch.dtype) -> None:
    weight, norm = WEIGHT.to(dtype), (NORM * 1000).to(dtype)
    assert magnitude(weight).dtype == torch.float32
    assert torch.equal(magnitude(weight), magnitude(weight.float()))
    for score in (wanda, multiflow):
        got = score(weight, norm)
        assert got.dtype == torch.float32
        assert torch.equal(got, score(weight.float(), norm.float()))
        assert score(weight, norm.double()).dtype == torch.float32


@pytest.mark.parametrize("score", [wanda, multiflow])
class TestOfInputs:
    def test_scaling_the_inputs_changes_no_mask(self, score: Score) -> None:
        want = matrix_lowest(score(WEIGHT, NORM), 100)
        assert torch.equal(matrix_lowest(score(WEIGHT, 8 * NORM), 100), want)
        assert torch.equal(matrix_lowest(score(4 * WEIGHT, NORM), 100), want)

    def test_permuted_inputs_permute_the_scores(self, score: Score) -> None:
        order = torch.randperm(IN, generator=torch.Generator().manual_seed(1))
        got = score(WEIGHT[:, order], NORM[order])
        torch.testing.assert_close(got, score(WEIGHT, NORM)[:, order])

    def test_the_inputs_matter(self, score: Score) -> None:
        assert not torch.equal(rows_lowest(score(WEIGHT, NORM), HALF), rows_lowest(magnitude(WEIGHT), HALF))


def test_equal_norms_make_wanda_the_magnitude_within_rows() -> None:
    got = rows_lowest(wanda(WEIGHT, torch.full((IN,), 2.0)), HALF)
    assert torch.equal(got, rows_lowest(magnitude(WEIGHT), HALF))


def test_wanda_loses_the_least_energy_of_a_row() -> None:
    row, norm, n = WEIGHT[:1, :8], NORM[:8], 3
    energy = (row[0] * norm).square()
    least = min(itertools.combinations(range(8), n), key=lambda gone: float(energy[list(gone)].sum()))
    assert tuple(rows_lowest(wanda(row, norm), torch.tensor([n]))[0].nonzero()[:, 0].tolist()) == least


class TestMultiflow:
    def test_it_is_the_paper_s_up_to_one_factor(self) -> None:
        want = flow_in_full(WEIGHT, NORM)
        got = multiflow(WEIGHT, NORM).double()
        torch.testing.assert_close(got * (want.sum() / got.sum()), want, rtol=1e-5, atol=0)
        assert torch.equal(got.flatten().argsort(), want.flatten().argsort())

    def test_within_rows_what_is_emitted_does_not_matter(self) -> None:
        received = NORM * WEIGHT.abs().mean(0)
        got = rows_lowest(multiflow(WEIGHT, NORM), HALF)
        assert torch.equal(got, rows_lowest(WEIGHT.abs() * received, HALF))

    def test_over_the_matrix_it_does(self) -> None:
        received = NORM * WEIGHT.abs().mean(0)
        got = matrix_lowest(multiflow(WEIGHT, NORM), 120)
        assert not torch.equal(got, matrix_lowest(WEIGHT.abs() * received, 120))

    def test_huge_and_tiny_values_do_not_overflow_or_vanish(self) -> None:
        want = multiflow(WEIGHT, NORM).flatten().argsort()
        for scale in (2.0**30, 2.0**-30):
            got = multiflow(scale * WEIGHT, scale**3 * NORM)
            assert got.isfinite().all()
            assert torch.equal(got.flatten().argsort(), want)

    def test_nothing_flows_through_zeros(self) -> None:
        assert multiflow(WEIGHT, torch.zeros(IN)).eq(0).all()
        assert multiflow(torch.zeros(OUT, IN), NORM).eq(0).all()


class TestCumulative:
    def test_it_adds_up_all_that_is_lower(self) -> None:
        scores = torch.randint(4, (OUT, IN), generator=torch.Generator().manual_seed(2)).float()
        got = cumulative(scores)
        for row, shares in zip(scores.tolist(), got.tolist(), strict=True):
            for j, share in enumerate(shares):
                upto = sum(s for i, s in enumerate(row) if (s, i) <= (row[j], j))
                assert share == pytest.approx(upto / sum(row), abs=1e-12)

    def test_by_hand(self) -> None:
        assert cumulative(torch.tensor([[4.0, 1.0, 1.0, 2.0]])).tolist() == [[1.0, 0.125, 0.25, 0.5]]

    def test_a_row_of_zeros_gets_zeros(self) -> None:
        assert cumulative(torch.tensor([[0.0, 0.0], [1.0, 3.0]])).tolist() == [[0, 0], [0.25, 1]]

    @pytest.mark.parametrize("count", [0, 1, 77, 120, OUT * IN])
    def test_its_lowest_are_those_within_one_share_of_every_row(self, count: int) -> None:
        scores = wanda(WEIGHT, NORM)
        mask = matrix_lowest(cumulative(scores), count)
        assert int(mask.sum()) == count
        assert torch.equal(mask, rows_lowest(scores, mask.sum(1)))
        total = scores.double().sum(1)
        gone = (scores.double() * mask).sum(1) / total
        next_one = torch.where(mask, torch.inf, scores.double()).min(1).values / total
        # one alpha lies between what every row has lost and what it would lose with one more
        assert gone.max() <= (gone + next_one).min() + 1e-12

    def test_scaling_a_row_changes_nothing(self) -> None:
        scale = 2.0 ** torch.arange(OUT)[:, None]
        assert torch.equal(cumulative(scale * WEIGHT.abs()), cumulative(WEIGHT.abs()))

    def test_scores_of_very_different_size_stay_in_order(self) -> None:
        scores = torch.cat([torch.full((1, 1), 1e9), torch.linspace(3, 1, 30)[None]], 1)
        for n in range(32):
            got = matrix_lowest(cumulative(scores), n)
            assert torch.equal(got, rows_lowest(scores, torch.tensor([n])))
