"""Which single weights go, exactly as many as asked: a threshold would take every tie. Pure functions of tensors.

In every mask True means that the weight goes. May import torch, numpy and `sned.errors`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from sned.errors import ConfigError, NumericalError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_FEW = 4
"""Places that partitioning finds in less time than sorting takes."""


def rows_lowest(scores: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Mark the lowest scores of every row, `[rows, columns]`; ties go to the lower column.

    Args:
        scores: `[rows, columns]`.
        counts: How many to mark in each row, `[rows]`, int64, each from 0 to `columns`.

    Raises:
        NumericalError: a score is NaN.
    """
    _refuse_nan(scores)
    counts = counts.to(scores.device)[:, None]
    border = _ordered(scores, counts)
    found = scores <= border
    if int(found.count_nonzero()) == int(counts.sum()):
        return found
    lowest = scores < border  # some row has more scores as large as its last one that goes, or none is to go
    ties = found & ~lowest
    return (lowest | (ties & (ties.cumsum(1) <= counts - lowest.sum(1, keepdim=True)))) & (counts > 0)


def matrix_lowest(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Mark the `count` lowest scores of the whole matrix, `[rows, columns]`; ties go to the lower flat index.

    Args:
        scores: `[rows, columns]`.
        count: From 0 to the number of scores.

    Raises:
        NumericalError: a score is NaN.
    """
    return rows_lowest(scores.reshape(1, -1), torch.tensor([count])).view(scores.shape)


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
    _refuse_nan(scores)
    runs = scores.reshape(-1, m)
    # a weight goes if few enough of its run are lower, or equal and before it; runs are too short to be worth sorting
    ahead = torch.zeros(runs.shape, dtype=torch.int16, device=runs.device)
    for i in range(m):
        for j in range(m):
            if i != j:
                ahead[:, i] += (runs[:, j] < runs[:, i]) if j > i else (runs[:, j] <= runs[:, i])
    return (ahead < m - keep).view(scores.shape)


def _ordered(scores: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Return the score of each row that `counts` `[rows, 1]` scores do not exceed, itself included, `[rows, 1]`.

    numpy partitions on a CPU, many times faster than any sort of torch.
    """
    wanted = (counts - 1).clamp_min(0)
    if scores.device.type != "cpu":
        return scores.sort(dim=1).values.gather(1, wanted)
    places = wanted.unique().tolist()
    half = scores.dtype in (torch.bfloat16, torch.float16)
    values = (scores.float() if half else scores).detach().numpy()
    ordered = np.partition(values, places, axis=1) if len(places) <= _FEW else np.sort(values, axis=1)
    return torch.from_numpy(ordered).gather(1, wanted)


def _refuse_nan(scores: torch.Tensor) -> None:
    if scores.sum().isnan() and scores.isnan().any():  # the sum is quick, but infinities may cancel in it
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
