"""Pruning with compensation: against brute force, and on problems whose answer is known."""

from __future__ import annotations

import pytest
import torch

from sned.errors import BudgetError, ConfigError, NumericalError
from sned.score.masks import matrix_lowest, n_of_m, rows_lowest
from sned.score.obs import Factor, factor, metric, prune
from sned.score.quota import MatrixQuota, Quota, RowQuota, RunQuota

OUT, IN, TOKENS = 12, 48, 400
SIZE = OUT * IN
WHOLE = MatrixQuota(SIZE // 2)
ROWS = RowQuota(torch.arange(OUT) * 4)
RUNS = RunQuota(2, 4, SIZE)
goals = pytest.mark.parametrize("goal", [WHOLE, ROWS, RUNS], ids=["matrix", "rows", "runs"])


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


MIX = torch.eye(IN, dtype=torch.float64) + 0.3 * draw(0, IN, IN)
INPUTS = draw(1, TOKENS, IN) * torch.linspace(0.3, 3, IN, dtype=torch.float64) @ MIX + 0.5
GRAM, SINGULAR = (x.T @ x for x in (INPUTS, INPUTS[: IN // 4]))
WEIGHT = draw(2, OUT, IN)
MASK = draw(3, OUT, IN) > 0


def damped(gram: torch.Tensor, made: Factor) -> torch.Tensor:
    return gram + made.damping * made.scale * torch.eye(len(gram), dtype=gram.dtype)


def lost(change: torch.Tensor, gram: torch.Tensor) -> float:
    return 0.5 * float((change @ gram * change).sum())


def one_by_one(weight: torch.Tensor, gram: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The surgeon's rule itself, with a fresh inverse for every column."""
    weight = weight.clone()
    for j in range(len(gram)):
        inverse = torch.linalg.inv(gram[j:, j:])
        leaving = torch.where(mask[:, j], weight[:, j], 0.0)
        weight[:, j:] -= torch.outer(leaving / inverse[0, 0], inverse[0])
    return weight.masked_fill(mask, 0.0)


def least_squares(weight: torch.Tensor, gram: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The best that the weights which stay can do, each row on its own."""
    best = torch.zeros_like(weight)
    for row, (w, gone) in enumerate(zip(weight, mask, strict=True)):
        best[row, ~gone] = torch.linalg.solve(gram[~gone][:, ~gone], gram[~gone] @ w)
    return best


class TestFactor:
    def test_it_is_a_root_of_the_damped_inverse(self) -> None:
        made = factor(GRAM)
        assert made.damping == 0.01
        assert not made.diagonal
        assert made.scale == pytest.approx(float(GRAM.diagonal().mean()))
        torch.testing.assert_close(made.upper, made.upper.triu())
        inverse = torch.linalg.inv(damped(GRAM, made)) * made.scale
        torch.testing.assert_close(made.upper.T @ made.upper, inverse)

    def test_damping_is_relative_to_inputs_that_are_alive(self) -> None:
        made = factor(torch.diag(torch.tensor([2.0, 0.0, 6.0, 0.0])), 0.1)
        assert made.dead.tolist() == [False, True, False, True]
        assert made.scale == 4
        torch.testing.assert_close(made.upper.diagonal()[[0, 2]] ** -2, torch.tensor([0.6, 1.6]).double())

    def test_the_damping_grows_tenfold_until_it_is_enough(self) -> None:
        nearly = torch.tensor([[1, 1], [1, 1 + 2**-51]], dtype=torch.float64)
        assert factor(SINGULAR, 0.0).damping == factor(nearly, 0.0).damping == 0.01
        basis = torch.linalg.qr(draw(4, 8, 8)).Q
        broken = basis * torch.linspace(-0.05, 2, 8) @ basis.T  # 0.0513 of the mean of the diagonal
        for start, enough in ((1e-4, 0.1), (0.01, 0.1), (0.02, 0.2), (0.06, 0.06)):
            assert factor(broken, start).damping == pytest.approx(enough)

    def test_the_correlations_are_given_up_last(self) -> None:
        made = factor(torch.tensor([[1.0, 3.0], [3.0, 1.0]]))
        assert made.diagonal
        torch.testing.assert_close(made.upper, torch.eye(2).double() / 1.01**0.5)
        found = prune(WEIGHT[:, :2], made, MASK[:, :2])
        assert torch.equal(found.weight, WEIGHT[:, :2].masked_fill(MASK[:, :2], 0.0))

    @pytest.mark.parametrize("broken", [float("nan"), float("inf"), -1.0])
    def test_what_is_no_gram_matrix_is_told(self, broken: float) -> None:
        with pytest.raises(NumericalError, match="Gram matrix"):
            factor(GRAM * broken)


class TestUpdate:
    @goals
    @pytest.mark.parametrize("block", [5, 16, 128])
    def test_the_loss_is_that_of_the_change(self, goal: Quota, block: int) -> None:
        for gram, what in ((GRAM, goal), (GRAM, MASK), (SINGULAR, goal)):
            made = factor(gram, 0.0)
            found = prune(WEIGHT, made, what, block=block)
            assert found.loss == pytest.approx(lost(WEIGHT - found.weight, damped(gram, made)), rel=1e-10)

    @goals
    def test_it_is_better_than_a_mask_and_not_than_least_squares(self, goal: Quota) -> None:
        found, gram = prune(WEIGHT, factor(GRAM), goal, block=16), damped(GRAM, factor(GRAM))
        best = lost(WEIGHT - least_squares(WEIGHT, gram, found.mask), gram)
        assert best <= found.loss < 0.8 * lost(WEIGHT * found.mask, gram)

    def test_it_is_least_squares_where_all_that_stays_comes_later(self) -> None:
        made, first = factor(GRAM), torch.arange(IN) < torch.arange(OUT)[:, None] * 4
        want = least_squares(WEIGHT, damped(GRAM, made), first)
        torch.testing.assert_close(prune(WEIGHT, made, first, block=16).weight, want)

    @pytest.mark.parametrize("size", [1, 2, 3, 6])
    def test_it_is_the_surgeons_rule(self, size: int) -> None:
        gram, weight, mask = GRAM[:size, :size], WEIGHT[:, :size], MASK[:, :size]
        made = factor(gram, 0.02)
        want = one_by_one(weight, damped(gram, made), mask)
        for block in (1, 2, 4, 128):
            torch.testing.assert_close(prune(weight, made, mask, block=block).weight, want)

    @pytest.mark.parametrize("size", [2, 4, 6])
    def test_it_chooses_by_the_surgeons_rule(self, size: int) -> None:
        gram, weight = GRAM[:size, :size], WEIGHT[:, :size]
        made = factor(gram)
        inverses = torch.stack([torch.linalg.inv(damped(gram, made)[j:, j:])[0, 0] for j in range(size)])
        costs = weight.square() / inverses
        torch.testing.assert_close(metric(weight, made), costs)
        assert torch.equal(prune(weight, made, MatrixQuota(2 * size)).mask, matrix_lowest(costs, 2 * size))
        counts = torch.arange(OUT) % (size + 1)
        assert torch.equal(prune(weight, made, RowQuota(counts)).mask, rows_lowest(costs, counts))

    def test_runs_are_chosen_from_weights_as_they_are_by_then(self) -> None:
        made = factor(GRAM)
        mask, weight = torch.zeros_like(MASK), WEIGHT
        for start in range(0, IN, 4):
            mask[:, start : start + 4] = n_of_m(metric(weight, made)[:, start : start + 4], 1, 4)
            weight = prune(WEIGHT, made, mask).weight
        for block in (4, 10, 128):
            found = prune(WEIGHT, made, RunQuota(1, 4, SIZE), block=block)
            assert torch.equal(found.mask, mask)
            torch.testing.assert_close(found.weight, weight)
        assert not torch.equal(mask, n_of_m(metric(WEIGHT, made), 1, 4))

    def test_blocks_do_not_matter_to_a_mask(self) -> None:
        made = factor(GRAM)
        want = prune(WEIGHT, made, MASK, block=1)
        for block in (7, 8, 24, 64):
            found = prune(WEIGHT, made, MASK, block=block)
            torch.testing.assert_close(found.weight, want.weight, rtol=1e-12, atol=1e-12)
            assert found.loss == pytest.approx(want.loss, rel=1e-12)

    @goals
    @pytest.mark.parametrize("factor_of", [2.0**-40, 1e-9, 2 / 128, 1e9])
    def test_the_scale_of_the_gram_matrix_does_not_matter(self, goal: Quota, factor_of: float) -> None:
        one, other = (prune(WEIGHT.float(), factor(gram), goal) for gram in (GRAM, GRAM * factor_of))
        assert torch.equal(one.mask, other.mask)
        torch.testing.assert_close(one.weight, other.weight)
        assert other.loss == pytest.approx(one.loss * factor_of, rel=1e-5)


class TestUncorrelated:
    """Nothing can be made up for, so that weights which stay must not change by a bit."""

    def test_equal_inputs_give_magnitude(self) -> None:
        found = prune(WEIGHT, factor(torch.eye(IN) * 7, 0.0), WHOLE, block=IN)
        assert torch.equal(found.mask, matrix_lowest(WEIGHT.abs(), WHOLE.count))
        assert torch.equal(found.weight, WEIGHT.masked_fill(found.mask, 0.0))
        tied = prune(torch.ones(2, 4), factor(torch.eye(4)), MatrixQuota(5))
        assert tied.mask.tolist() == [[True] * 4, [True, False, False, False]]

    def test_inputs_of_any_norm_give_weight_times_norm(self) -> None:
        squares = draw(5, IN).square() + 0.01
        made, wanda = factor(torch.diag(squares), 0.0), WEIGHT.abs() * squares.sqrt()
        blocks = torch.cat([matrix_lowest(part, WHOLE.count // 3) for part in wanda.split(16, 1)], 1)
        cases = [(WHOLE, IN, matrix_lowest(wanda, WHOLE.count)), (WHOLE, 16, blocks)]
        cases += [(ROWS, IN, rows_lowest(wanda, ROWS.counts)), (RUNS, 16, n_of_m(wanda, 2, 4))]
        for goal, block, mask in cases:
            found = prune(WEIGHT, made, goal, block=block)
            assert torch.equal(found.mask, mask)
            assert torch.equal(found.weight, WEIGHT.masked_fill(mask, 0.0))


class TestCounts:
    @pytest.mark.parametrize("block", [1, 7, 16, 128])
    @pytest.mark.parametrize("count", [0, 1, 100, 101, SIZE - 1, SIZE])
    def test_matrices_and_rows_lose_as_many_as_asked_in_even_shares(self, count: int, block: int) -> None:
        found = prune(WEIGHT, factor(GRAM), MatrixQuota(count), block=block)
        assert int(found.mask.sum()) == count
        assert count or torch.equal(found.weight, WEIGHT)
        counts = (torch.arange(OUT) * count) % (IN + 1)
        mask = prune(WEIGHT, factor(GRAM), RowQuota(counts), block=block).mask
        assert torch.equal(mask.sum(1), counts)
        for whole, rows in zip(found.mask.split(block, 1), mask.split(block, 1), strict=True):
            assert abs(float(whole.sum()) - count * whole.numel() / SIZE) <= 1
            assert ((rows.sum(1) - counts * rows.shape[1] / IN).abs() <= 1).all()

    @pytest.mark.parametrize("block", [1, 6, 16, 18, 128])
    @pytest.mark.parametrize(("keep", "m"), [(2, 4), (3, 8), (1, 12)])
    def test_each_run_keeps_as_many_as_asked(self, keep: int, m: int, block: int) -> None:
        mask = prune(WEIGHT, factor(GRAM), RunQuota(keep, m, SIZE), block=block).mask
        assert (mask.view(OUT, -1, m).sum(2) == m - keep).all()

    @pytest.mark.parametrize("goal", [MatrixQuota(SIZE + 1), RowQuota(torch.full((OUT,), 50)), RunQuota(2, 5, SIZE)])
    def test_what_cannot_be_is_told(self, goal: Quota) -> None:
        with pytest.raises((BudgetError, ConfigError), match=r"than it has|do not divide"):
            prune(WEIGHT, factor(GRAM), goal)


class TestDead:
    dead = torch.isin(torch.arange(IN), torch.tensor([0, 1, 17, 30, 31, 32, 47]))
    gram = GRAM.masked_fill(dead[:, None] | dead, 0.0)

    @pytest.mark.parametrize("block", [5, 16, 128])
    def test_their_weights_go_first_but_for_zeros(self, block: int) -> None:
        made, n = factor(self.gram), int(self.dead.sum())
        zeros = torch.arange(IN) % 5 == torch.arange(OUT)[:, None] % 5
        assert torch.equal(prune(WEIGHT, made, MatrixQuota(int(zeros.sum())), frozen=zeros, block=block).mask, zeros)
        weight = WEIGHT.masked_fill(zeros, 0.0)
        few, many = (prune(weight, made, MatrixQuota(n * OUT + more), block=block).mask for more in (-30, 30))
        assert few[:, self.dead].sum() == few.sum() == n * OUT - 30
        assert many[:, self.dead].all()
        assert many.sum() == n * OUT + 30
        mask = prune(weight, made, ROWS, block=block).mask
        assert torch.equal(mask.sum(1), ROWS.counts)
        assert torch.equal(mask[:, self.dead].sum(1), ROWS.counts.clamp_max(n))

    def test_runs_lose_them_first_and_keep_their_number(self) -> None:
        mask = prune(WEIGHT.masked_fill(MASK, 0.0), factor(self.gram), RUNS).mask.view(OUT, -1, 4)
        assert (mask.sum(2) == 2).all()
        assert ((mask & self.dead.view(-1, 4)).sum(2) == self.dead.view(-1, 4).sum(1).clamp_max(2)).all()

    def test_they_change_nothing_and_cost_nothing(self) -> None:
        found = prune(WEIGHT, factor(self.gram), MASK, block=16)
        alone = prune(WEIGHT[:, ~self.dead], factor(GRAM[~self.dead][:, ~self.dead]), MASK[:, ~self.dead])
        torch.testing.assert_close(found.weight[:, ~self.dead], alone.weight)
        assert torch.equal(found.weight[:, self.dead], WEIGHT[:, self.dead].masked_fill(MASK[:, self.dead], 0.0))
        assert found.loss == pytest.approx(alone.loss, rel=1e-10)
        assert not metric(WEIGHT, factor(self.gram))[:, self.dead].any()

    def test_a_projection_that_never_receives_anything_can_be_pruned(self) -> None:
        found = prune(WEIGHT, factor(torch.zeros(IN, IN)), WHOLE)
        assert int(found.mask.sum()) == WHOLE.count
        assert torch.equal(found.weight, WEIGHT.masked_fill(found.mask, 0.0))
        assert found.loss == 0


class TestFrozen:
    frozen = (draw(6, OUT, IN) > 1) | ((torch.arange(IN) < 10) & (draw(7, OUT, IN) > -1))
    weight = WEIGHT.masked_fill(frozen, 0.0)

    @goals
    @pytest.mark.parametrize("block", [5, 16, 128])
    def test_zeros_stay_and_count(self, goal: Quota, block: int) -> None:
        before = self.frozen
        if isinstance(goal, RowQuota):
            goal = RowQuota(before.sum(1) + torch.arange(OUT))
        found = prune(self.weight, factor(GRAM), goal, frozen=before, block=block)
        assert found.mask[before].all()
        assert not found.weight[before].any()
        if isinstance(goal, RunQuota):
            now, first = (mask.view(OUT, -1, 4).sum(2) for mask in (found.mask, before))
            assert torch.equal(now, first.clamp_min(2))
        else:
            assert int(found.mask.sum()) == goal.total
            assert not isinstance(goal, RowQuota) or torch.equal(found.mask.sum(1), goal.counts)

    def test_they_are_like_a_part_of_a_mask(self) -> None:
        one = prune(self.weight, factor(GRAM), MASK, frozen=self.frozen)
        other = prune(self.weight, factor(GRAM), MASK | self.frozen)
        assert torch.equal(one.weight, other.weight)
        assert torch.equal(one.mask, other.mask)

    def test_too_many_are_told(self) -> None:
        for goal in (MatrixQuota(int(self.frozen.sum()) - 1), RowQuota(self.frozen.sum(1) - torch.eye(OUT)[3].long())):
            with pytest.raises(BudgetError, match="zero already"):
                prune(self.weight, factor(GRAM), goal, frozen=self.frozen)


@goals
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_zeros_are_positive_and_the_input_is_left_alone(goal: Quota, dtype: torch.dtype) -> None:
    weight = torch.nn.Parameter(WEIGHT.to(dtype))
    found = prune(weight, factor(GRAM.float()), goal, block=16)
    assert torch.equal(weight, WEIGHT.to(dtype))
    assert found.weight.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert not found.weight.requires_grad
    assert torch.equal(found.weight == 0, found.mask)
    assert not torch.signbit(found.weight[found.mask]).any()
    exact = prune(weight.double(), factor(GRAM.float()), found.mask)
    torch.testing.assert_close(found.weight.double(), exact.weight, rtol=1e-4, atol=1e-4)


def test_weights_that_are_not_finite_are_told() -> None:
    with pytest.raises(NumericalError, match="infinite"):
        prune(WEIGHT.masked_fill(MASK, torch.inf), factor(GRAM), MASK)
