"""Which single weights go, exactly as many as asked: a threshold would take every tie. Pure functions of tensors.

In every mask True means that the weight goes. May import torch and `sned.errors`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from sned.errors import ConfigError, NumericalError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


def rows_lowest(scores: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Mark the lowest scores of every row, `[rows, columns]`; ties go to the lower column.

    Args:
        scores: `[rows, columns]`.
        counts: How many to mark in each row, `[rows]`, int64, each from 0 to `columns`.

    Raises:
        NumericalError: a score is NaN.
    """
    _refuse_nan(scores)
    ascending = scores.sort(dim=1, stable=True).indices
    first = torch.arange(scores.shape[1], device=scores.device) < counts.to(scores.device)[:, None]
    return torch.zeros_like(first).scatter_(1, ascending, first)


def matrix_lowest(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Mark the `count` lowest scores of the whole matrix, `[rows, columns]`; ties go to the lower flat index.

    Args:
        scores: `[rows, columns]`.
        count: From 0 to the number of scores.

    Raises:
        NumericalError: a score is NaN.
    """
    _refuse_nan(scores)
    if count == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    flat = scores.reshape(-1)
    threshold = flat.kthvalue(count).values
    lowest = flat < threshold
    ties = (flat == threshold).nonzero()[:, 0]
    lowest[ties[: count - int(lowest.sum())]] = True
    return lowest.view(scores.shape)


def n_of_m(scores: torch.Tensor, keep: int, m: int) -> torch.Tensor:
    """Mark all but the `keep` highest of every `m` consecutive scores of a row; of equal ones the first go.

    Args:
        scores: `[rows, columns]`.
        keep: How many stay, 0 to `m`.
        m: Length of a run; runs start at column 0.

    Raises:
        ConfigError: rows do not divide into runs.
        NumericalError: a score is NaN.
    """
    columns = scores.shape[1]
    if columns % m:
        raise ConfigError(
            f"{keep} of every {m} weights cannot stay: {columns} columns do not divide into runs of {m}",
            hint="leave such matrices out, or prune to a share instead of a pattern",
        )
    runs = scores.reshape(-1, m)
    return rows_lowest(runs, torch.full((len(runs),), m - keep)).view(scores.shape)


def _refuse_nan(scores: torch.Tensor) -> None:
    if scores.isnan().any():
        raise NumericalError("a score is NaN", hint="see whether the weights and the calibration states are finite")


def lowest_counts(matrices: Callable[[], Iterable[torch.Tensor]], count: int) -> list[int]:
    """Return how many scores of each matrix are among the `count` lowest of all; ties go to the first.

    Looks at the matrices twice: once to sort scores by their first 16 bits, once at those that share the first bits of
    the last score that goes. Never are all scores in memory.

    Args:
        matrices: Gives the scores of one matrix after the other, float32, none negative.
        count: From 0 to the number of scores.

    Raises:
        NumericalError: a score is NaN.
    """
    bins = torch.zeros(2**15, dtype=torch.int64)
    for scores in matrices():
        _refuse_nan(scores)
        bins += _prefix(scores).bincount(minlength=len(bins)).cpu()
    border = int((bins.cumsum(0) < count).sum())
    room = count - int(bins[:border].sum())
    below: list[int] = []
    inside: list[torch.Tensor] = []
    for scores in matrices():
        prefix = _prefix(scores)
        below.append(int((prefix < border).sum()))
        inside.append(scores.flatten()[prefix == border].cpu())
    chosen = (
        matrix_lowest(torch.cat(inside)[None], room)[0]
        if room
        else torch.zeros(sum(map(len, inside)), dtype=torch.bool)
    )
    return [n + int(part.sum()) for n, part in zip(below, chosen.split([len(part) for part in inside]), strict=True)]


def _prefix(scores: torch.Tensor) -> torch.Tensor:
    """Return the first bits of each score as a number; those of floats that are not negative are in the same order."""
    return scores.float().flatten().view(torch.int32) >> 16
