"""Removing weights one column after the other, and letting the later columns make up for it (SparseGPT).

A projection `W` `[out, in]` receives inputs whose Gram matrix is `H` `[in, in]`. Once a column has lost weights, the
best the columns after it can do is known in closed form (the optimal brain surgeon), and for all rows it comes from one
matrix `U`: the upper Cholesky factor of the inverse of `H`. Pure functions of tensors.

SparseGPT is arXiv 2301.00774. Departures: counts are exact, ties go to the first; inputs that are never active take no
part in the damping, their weights go first but count like any other; the damping grows where `H` is singular, and the
result says so; blocks never split a run of an n:m pattern; weights that are zero already can be kept zero.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from sned.errors import BudgetError, NumericalError
from sned.score.masks import matrix_lowest, rows_lowest
from sned.score.quota import MatrixQuota, Quota, RunQuota

BLOCK = 128
"""Columns whose weights are chosen together, and between which updates are applied at once."""
DAMPING = 0.01
STRONGEST = 1.0
"""Damping beyond which the correlations are given up."""
Choose = Callable[[torch.Tensor, int], torch.Tensor]
"""Takes scores `[out, width]` and the index of their first column; returns which of the weights go, `[out, width]`."""


@dataclass(frozen=True, slots=True)
class Factor:
    """What the inputs of a projection say about its weights; one serves all projections with the same inputs.

    Attributes:
        upper: `U` `[in, in]`, float64, so that `UᵀU` is the inverse of `H / scale`, damped.
        dead: Inputs that are never active, `[in]`.
        scale: Mean of the diagonal of `H` over the inputs that are not dead.
        damping: What was added to the diagonal of `H / scale`.
        diagonal: Whether the correlations had to be given up: nothing is made up for then.
    """

    upper: torch.Tensor
    dead: torch.Tensor
    scale: float
    damping: float
    diagonal: bool

    def reach(self, like: torch.Tensor) -> torch.Tensor:
        """Return `1 / U_jj`, zero for dead inputs, `[in]`, in the dtype and on the device of a tensor."""
        return torch.where(self.dead, 0.0, 1 / self.upper.diagonal()).to(like)


@dataclass(frozen=True, slots=True)
class Pruned:
    """A pruned projection.

    Attributes:
        weight: `[out, in]`, float32 (float64 if that came in), `+0.0` where a weight went.
        mask: `[out, in]`, true where a weight went.
        loss: Half the squared change of the outputs: `½ tr(D H Dᵀ)` for the change `D` of the weights, with `H` damped
            as in the factor and without dead inputs.
    """

    weight: torch.Tensor
    mask: torch.Tensor
    loss: float


def factor(gram: torch.Tensor, damping: float = DAMPING) -> Factor:
    """Factor the inverse of a Gram matrix; where it is singular, with a damping that grows tenfold, up to 1.

    If that does not help either, only the diagonal is used. All of it is in float64.

    Args:
        gram: `H` `[in, in]`, of any scale.
        damping: Relative to the mean of the diagonal over the inputs that are not dead.

    Raises:
        NumericalError: the Gram matrix is not finite, or has a negative diagonal.
    """
    matrix = gram.detach().double()
    diagonal = matrix.diagonal()
    if not torch.isfinite(matrix).all() or (diagonal < 0).any():
        raise NumericalError(
            "the Gram matrix of a projection's inputs holds NaN, infinity or a negative square",
            hint="load the model in float32 or bfloat16",
        )
    dead = diagonal == 0
    scale = float(diagonal[~dead].mean()) if not dead.all() else 1.0
    matrix = (matrix + matrix.T) / (2 * scale)
    matrix.masked_fill_(dead[:, None] | dead, 0.0).diagonal().masked_fill_(dead, 1.0)
    tried = damping
    while (upper := _inverse_root(matrix, tried)) is None and tried < STRONGEST:
        tried = min(10 * tried or DAMPING, STRONGEST)
    if upper is not None:
        return Factor(upper, dead, scale, tried, diagonal=False)
    return Factor(torch.diag((matrix.diagonal() + damping).rsqrt()), dead, scale, damping, diagonal=True)


def _inverse_root(matrix: torch.Tensor, damping: float) -> torch.Tensor | None:
    """Return the upper `U` with `UᵀU` the inverse of a damped matrix, or None where that is singular to rounding.

    From `H = R Rᵀ` with `R` upper follows `U = R⁻¹`; and `R` is the Cholesky factor from the last column to the first.
    """
    damped = matrix.flip(0, 1)
    damped.diagonal().add_(damping)
    lower, info = torch.linalg.cholesky_ex(damped)
    noise = len(matrix) * torch.finfo(matrix.dtype).eps
    if int(info) or (lower.diagonal().square() <= noise * damped.diagonal()).any():
        return None
    eye = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    return torch.linalg.solve_triangular(lower.flip(0, 1), eye, upper=True)


def metric(weight: torch.Tensor, factor: Factor) -> torch.Tensor:
    """Return twice what removing each weight alone would cost if the columns after it made up for it, `[out, in]`.

    That is `W² / U_jj²`, in the units of the Gram matrix; zero for dead inputs.
    """
    weight = _working(weight)
    return (weight * factor.reach(weight)).square() * factor.scale


def prune(
    weight: torch.Tensor,
    factor: Factor,
    goal: Quota | torch.Tensor,
    *,
    frozen: torch.Tensor | None = None,
    block: int = BLOCK,
) -> Pruned:
    """Remove weights column by column, each time changing the later columns so that the outputs move least.

    Counts of a matrix or of rows are shared out over blocks of columns; runs of a pattern are chosen on arrival.

    Args:
        weight: `W` `[out, in]`.
        factor: Of the inputs of this projection.
        goal: How many weights go, or which: a mask `[out, in]`, true where a weight goes.
        frozen: Weights that are zero already, `[out, in]`: they stay zero, and count.
        block: Columns in a block; for a pattern, the nearest multiple of its `m` below, or `m` itself.

    Raises:
        BudgetError: more weights are frozen than may go, or more are to go than there are.
        ConfigError: the columns do not divide into runs of the pattern.
        NumericalError: a weight is not finite.
    """
    columns = _working(weight).T.clone(memory_format=torch.contiguous_format)
    if not torch.isfinite(columns).all():
        raise NumericalError("a weight is NaN or infinite", hint="see whether the checkpoint is damaged")
    frozen = torch.zeros_like(weight, dtype=torch.bool) if frozen is None else frozen
    step = block
    if isinstance(goal, RunQuota):
        step, block = goal.m, max(block // goal.m, 1) * goal.m
    dead = factor.dead.to(columns.device)
    choose = _chooser(goal, (frozen, dead & ~frozen, ~dead & ~frozen), block)
    gone = frozen.T.clone(memory_format=torch.contiguous_format)
    sweep = _Sweep(columns, factor.upper.to(columns), factor.reach(columns)[:, None], dead[:, None], gone)
    squares = [sweep.block(start, block, step, choose) for start in range(0, len(columns), block)]
    loss = 0.5 * factor.scale * float(torch.stack(squares).sum())
    return Pruned(columns.masked_fill_(gone, 0.0).T.contiguous(), gone.T.contiguous(), loss)


@dataclass(frozen=True, slots=True)
class _Sweep:
    """A matrix on its way, one of its columns per row.

    Attributes:
        columns: `Wᵀ` `[in, out]`, changed in place.
        upper: `U` `[in, in]`.
        reach: `1 / U_jj`, zero for dead inputs, `[in, 1]`.
        dead: `[in, 1]`.
        gone: True where a weight goes, `[in, out]`, changed in place.
    """

    columns: torch.Tensor
    upper: torch.Tensor
    reach: torch.Tensor
    dead: torch.Tensor
    gone: torch.Tensor

    def block(self, start: int, width: int, step: int, choose: Choose) -> torch.Tensor:
        """Do a block of columns, `step` of them at a time, and return `Σ (W_j / U_jj)²` over what went, float64."""
        here, after = slice(start, start + width), slice(start + width, None)
        block, upper = self.columns[here], self.upper[here, here]
        errors = torch.empty_like(block)
        for first in range(0, len(block), step):
            run = slice(start + first, start + min(first + step, len(block)))
            for j, share in enumerate(self._leaving(run, choose), first):
                torch.mul(block[j], share, out=errors[j])
                block[j + 1 :].addr_(upper[j, j + 1 :], errors[j], alpha=-1)
        self.columns[after].addmm_(self.upper[here, after].T, errors, alpha=-1)
        return errors.square().sum(dtype=torch.float64)

    def _leaving(self, run: slice, choose: Choose) -> torch.Tensor:
        """Choose weights of some columns; return `1 / U_jj` where one goes and zero elsewhere, `[width, out]`.

        Weights that are frozen come before all others, and those of dead inputs before the rest.
        """
        scores = (self.columns[run] * self.reach[run]).abs_()
        scores.masked_fill_(self.dead[run], -1.0).masked_fill_(self.gone[run], -2.0)
        self.gone[run] |= choose(scores.T, run.start).T
        return self.gone[run] * self.reach[run]


def _working(weight: torch.Tensor) -> torch.Tensor:
    return weight.detach().to(torch.float64 if weight.dtype == torch.float64 else torch.float32)


def _chooser(goal: Quota | torch.Tensor, tiers: tuple[torch.Tensor, ...], block: int) -> Choose:
    if isinstance(goal, torch.Tensor):
        return lambda scores, first: goal[:, first : first + scores.shape[1]]
    if isinstance(goal, RunQuota):
        return lambda scores, _: goal.select(scores)
    if isinstance(goal, MatrixQuota):
        counts = torch.tensor([goal.count], device=tiers[0].device)
        of_matrix = _shared_out(counts, tiers, block)[:, 0].tolist()
        return lambda scores, first: matrix_lowest(scores, of_matrix[first // block])
    of_rows = _shared_out(goal.counts.to(tiers[0].device), tiers, block)
    return lambda scores, first: rows_lowest(scores, of_rows[first // block])


def _shared_out(counts: torch.Tensor, tiers: tuple[torch.Tensor, ...], block: int) -> torch.Tensor:
    """Share counts out over blocks of columns, in proportion; what rounding leaves goes on to the next block.

    Args:
        counts: Of the rows `[out]`, or of the matrix `[1]`.
        tiers: Masks without overlap, `[out, in]`: one is used up before the next, the first in any case.
        block: Columns in a block.

    Returns:
        `[blocks, len(counts)]`.

    Raises:
        BudgetError: a count is below the size of the first tier, or above that of all.
    """
    left, shares = counts.long(), torch.zeros_like(counts, dtype=torch.int64)
    for i, tier in enumerate(tiers):
        sizes = torch.stack([part.sum(1) for part in tier.split(block, 1)])
        upto = (sizes.sum(1, keepdim=True) if len(counts) == 1 else sizes).cumsum(0)
        if i == 0 and (left < upto[-1]).any():
            raise BudgetError(
                "more weights of a projection are zero already than are to go from it",
                hint="ask for a higher sparsity, or start from the dense model",
            )
        taken = left.minimum(upto[-1])
        left = left - taken
        shares = shares + (2 * taken * upto + upto[-1]) // (2 * upto[-1]).clamp_min(1)
    if left.any():
        raise BudgetError("more weights are to go from a projection than it has", hint="ask for a lower sparsity")
    return shares.diff(dim=0, prepend=torch.zeros_like(shares[:1]))
