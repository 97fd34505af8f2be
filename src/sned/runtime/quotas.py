"""From the shares that an allocator proposes to whole numbers of weights that meet the budget to the last one.

Every allocator goes through here, so that none of them has to clamp or to round. May import `score` and `models`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from sned.errors import BudgetError, ConfigError
from sned.score.apportion import apportion, choose_zeros_of_m, project
from sned.score.quota import MatrixQuota, Quota, RowQuota, RunQuota, parse_n_of_m

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from sned.models.matrices import Matrix

MOST = 0.99
"""No allocator may empty more of a matrix; of an n:m pattern it leaves one weight in each run."""


@dataclass(frozen=True)
class Shares:
    """What share of its weights each matrix is to lose, before the budget is met.

    Attributes:
        matrices: By name, such as ``layers.3.attn.q``; None where all are to lose the same.
        rows: By name, the share of each row `[rows]`, where the rows of a matrix are to differ.
    """

    matrices: dict[str, float] | None = None
    rows: dict[str, torch.Tensor] = field(default_factory=dict)


UNIFORM = Shares()


def by_layer(matrices: Iterable[Matrix], shares: Mapping[int, float]) -> Shares:
    """Return shares that are the same for all matrices of a layer."""
    return Shares({matrix.name: shares[matrix.layer] for matrix in matrices})


def quotas(matrices: Sequence[Matrix], shares: Shares, sparsity: float, pattern: str) -> dict[str, Quota]:
    """Return how many weights of each matrix go, by name: together `round(sparsity * weights)`.

    Args:
        matrices: All that are pruned.
        shares: As proposed.
        sparsity: Share of zeros in all matrices together.
        pattern: ``row``, ``matrix`` or ``n:m``.

    Raises:
        BudgetError: bounds or pattern cannot meet the sparsity; the closest that can is named.
        ConfigError: rows are to differ, but the pattern is not ``row``; or n:m does not fit a matrix.
    """
    if shares.rows and pattern != "row":
        raise ConfigError(f"shares that differ by row need the pattern row, not {pattern}", hint="use --pattern row")
    if (runs := parse_n_of_m(pattern)) is not None:
        return _runs(matrices, shares, sparsity, *runs)
    counts = dict(zip((m.name for m in matrices), matrix_counts(matrices, shares, sparsity), strict=True))
    if pattern == "matrix":
        return {name: MatrixQuota(count) for name, count in counts.items()}
    return {m.name: RowQuota(_row_counts(m, counts[m.name], shares.rows.get(m.name))) for m in matrices}


def matrix_counts(matrices: Sequence[Matrix], shares: Shares, sparsity: float) -> list[int]:
    """Return how many weights of each matrix go, in order.

    Raises:
        BudgetError: no matrix may lose as many as the sparsity asks for.
    """
    sizes = _sizes(matrices)
    total = round(sparsity * int(sizes.sum()))
    if shares.matrices is None:
        fitting = torch.full((len(sizes),), sparsity, dtype=torch.float64)
    else:
        fitting = project(_raw(matrices, shares.matrices), sizes, sparsity, 0.0, MOST)
    return apportion(fitting, sizes, total).tolist()


def _row_counts(matrix: Matrix, count: int, raw: torch.Tensor | None) -> torch.Tensor:
    """Return how many weights of each row go, `[rows]`; together `count`."""
    sizes = torch.full((matrix.rows,), matrix.columns)
    share = count / matrix.size
    if raw is None:
        fitting = torch.full((matrix.rows,), share, dtype=torch.float64)
    else:
        fitting = project(raw, sizes, share, 0.0, max(MOST, share))
    return apportion(fitting, sizes, count)


def _runs(matrices: Sequence[Matrix], shares: Shares, sparsity: float, keep: int, m: int) -> dict[str, Quota]:
    if shares.matrices is None:
        return {matrix.name: RunQuota(keep, m, matrix.size) for matrix in matrices}
    layers = sorted({matrix.layer for matrix in matrices})
    members = {layer: [matrix for matrix in matrices if matrix.layer == layer] for layer in layers}
    sizes = torch.tensor([sum(matrix.size for matrix in members[layer]) for layer in layers])
    raw = torch.tensor([_mean_share(members[layer], shares.matrices) for layer in layers], dtype=torch.float64)
    total = int(sizes.sum()) // m * (m - keep)
    zeros = choose_zeros_of_m(project(raw, sizes, sparsity, 0.0, MOST), sizes, m, total, m - 1)
    return {
        matrix.name: RunQuota(m - int(z), m, matrix.size)
        for layer, z in zip(layers, zeros, strict=True)
        for matrix in members[layer]
    }


def _mean_share(matrices: Sequence[Matrix], shares: dict[str, float]) -> float:
    return sum(matrix.size * shares[matrix.name] for matrix in matrices) / sum(matrix.size for matrix in matrices)


def require_pattern(matrices: Iterable[Matrix], sparsity: float, pattern: str) -> None:
    """Refuse an n:m pattern that does not fit the matrices, or another sparsity.

    Raises:
        ConfigError: the columns of a matrix do not divide into runs, or the pattern stands for another sparsity.
    """
    if (runs := parse_n_of_m(pattern)) is None:
        return
    keep, m = runs
    if abs(sparsity - (1 - keep / m)) > 1e-9:
        raise ConfigError(
            f"the pattern {pattern} sets {1 - keep / m:.4g} of the weights to zero, not {sparsity:.4g}",
            hint=f"leave the sparsity out, or give {1 - keep / m:.4g}",
        )
    if odd := [matrix for matrix in matrices if matrix.columns % m]:
        raise ConfigError(
            f"{odd[0].name} has {odd[0].columns} columns, which are no whole number of runs of {m}",
            hint="choose an m that divides the widths, or a pattern without runs",
        )


def require_room(sparsity: float, pattern: str) -> None:
    """Refuse a sparsity or a pattern with which shares cannot differ.

    Raises:
        BudgetError: the sparsity is more than any matrix may lose.
        ConfigError: the pattern keeps one weight of each run, so that none may lose more.
    """
    if (runs := parse_n_of_m(pattern)) is not None and runs[0] == 1:
        raise ConfigError(
            f"the pattern {pattern} leaves an allocator no room: one weight of each run has to stay",
            hint="use --allocate uniform, or a pattern that keeps more",
        )
    if sparsity > MOST:
        raise BudgetError(
            f"--sparsity {sparsity:g} leaves an allocator no room: at most {MOST:g} of a matrix may go",
            hint=f"give {MOST:g} or less, or --allocate uniform",
        )


def _sizes(matrices: Sequence[Matrix]) -> torch.Tensor:
    return torch.tensor([matrix.size for matrix in matrices], dtype=torch.int64)


def _raw(matrices: Sequence[Matrix], shares: dict[str, float]) -> torch.Tensor:
    return torch.tensor([shares[matrix.name] for matrix in matrices], dtype=torch.float64)
