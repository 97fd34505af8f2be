"""How heavy the tail of a weight matrix's spectrum is (AlphaPruning, arXiv 2410.10912). Pure functions of tensors.

Training makes the tail of a spectrum heavier, so that a small exponent marks a matrix with more to lose. An exponent
also depends on the aspect ratio of its matrix; square windows make different shapes comparable (FARMS, arXiv
2506.06280).
"""

from __future__ import annotations

import math
from typing import Literal

import torch

from sned.errors import NumericalError

Estimator = Literal["peak", "compat", "mid"]

ZERO = 1e-12
"""Eigenvalues below this share of the largest are rounding, and count as zero."""
EQUAL = 1e-5
"""A spectrum whose logarithms span less is flat: weights in float32 resolve no more."""
BINS = 100
LOWER, UPPER = math.log(0.95), math.log(1.5)
"""Where a tail may start, relative to the left edge of the fullest bin."""
CHUNK = 1 << 21
"""How many distances are in memory at once (16 MiB for each intermediate result)."""
SIDE = 1024
GRID = 4


def eigenvalues(weight: torch.Tensor) -> torch.Tensor:
    """Return the squared singular values of a matrix, ascending, `[min(out, in)]`, float64.

    Args:
        weight: `[out, in]`, any float dtype.

    Raises:
        NumericalError: the weights are not finite.
    """
    exact = weight.detach().double()
    if not torch.isfinite(exact).all():
        raise NumericalError(
            f"a weight matrix {list(weight.shape)} holds NaN or infinity", hint="check the checkpoint for damage"
        )
    gram = exact @ exact.T if len(exact) <= exact.shape[1] else exact.T @ exact
    return torch.linalg.eigvalsh(gram).clamp_min(0).cpu()


def windowed_eigenvalues(weight: torch.Tensor, side: int = SIDE, grid: int = GRID) -> torch.Tensor:
    """Return the eigenvalues of square windows of a matrix, pooled, ascending, `[windows * side]`, float64.

    Windows are as large as the matrix and `side` allow. They are evenly spaced from edge to edge, in each direction as
    few as cover it, but at most `grid`: a matrix larger than `grid * side` is sampled. The defaults cover 4096 by 4096
    in 16 windows without overlap; FARMS takes 15 by 15 that overlap.

    Args:
        weight: `[out, in]`, any float dtype.
        side: The most rows and columns of a window.
        grid: The most windows in each direction.

    Raises:
        NumericalError: the weights of a window are not finite.
    """
    side = min(side, *weight.shape)
    rows, columns = (_offsets(size, side, grid) for size in weight.shape)
    pooled = [eigenvalues(weight[row : row + side, column : column + side]) for row in rows for column in columns]
    return torch.cat(pooled).sort().values


def tail_index(eigenvalues: torch.Tensor, estimator: Estimator = "peak") -> float:
    """Return the exponent of the power law that the largest eigenvalues follow; infinite for a flat spectrum.

    Each start of the tail has an exponent, the most likely one (Hill); the start whose power law is nearest to the
    tail (Kolmogorov and Smirnov) is taken. Starts that are tried lie

    * `peak`: from 0.95 to 1.5 times the left edge of the fullest of 100 logarithmic bins, as AlphaPruning intends;
    * `compat`: anywhere below the upper end of that, which its release comes to by an error in the lower end;
    * `mid`: at the median alone.

    Args:
        eigenvalues: `[n]`, ascending. Zeros are left out; the scale does not matter.
        estimator: Which starts are tried.
    """
    kept = eigenvalues.double()
    kept = kept[kept > ZERO * kept.amax()] if len(kept) else kept
    if len(kept) < 2 or float(kept[-1] / kept[0]) < 1 + EQUAL:
        return math.inf
    logs = (kept / kept[-1]).log()
    exponents = _exponents(logs)
    first, last = _starts(logs, estimator)
    nearest = int(_distances(logs, exponents, first, last).argmin())
    return float(exponents[first + nearest])


def _offsets(size: int, side: int, grid: int) -> list[int]:
    """Return where windows start along one direction."""
    n = min(grid, -(-size // side))
    return [(size - side) * i // max(n - 1, 1) for i in range(n)]


def _exponents(logs: torch.Tensor) -> torch.Tensor:
    """Return Hill's exponent of the tail from each eigenvalue but the last, `[n - 1]`; infinite where it is flat.

    `Σ_{j≥i} (ln l_j - ln l_i)` is a suffix sum of the gaps between neighbours, each as often as it occurs. Its terms
    have one sign, so that nothing cancels.
    """
    sizes = torch.arange(len(logs), 0, -1, dtype=logs.dtype)
    excess = (sizes[1:] * logs.diff()).flip(0).cumsum(0).flip(0)
    return 1 + sizes[:-1] / excess


def _starts(logs: torch.Tensor, estimator: Estimator) -> tuple[int, int]:
    """Return the range of starts to try, half-open and never empty.

    A bin is at most `-ln ZERO / BINS` wide, which is less than `UPPER`: the window holds the whole fullest bin.
    """
    most = len(logs) - 1
    if estimator == "mid":
        start = min(len(logs) // 2, most - 1)
        return start, start + 1
    low, high = float(logs[0]), float(logs[-1])
    counts = torch.histc(logs, BINS, low, high)
    edge = low + int(counts.argmax()) * (high - low) / BINS
    first = 0 if estimator == "compat" else int((logs < edge + LOWER).sum())
    return first, min(int((logs <= edge + UPPER).sum()), most)


def _distances(logs: torch.Tensor, exponents: torch.Tensor, first: int, last: int) -> torch.Tensor:
    """Return how far each tail is from its power law at most, `[last - first]`; infinite where it is flat."""
    n = len(logs)
    rows = max(1, CHUNK // n)
    parts = []
    for begin in range(first, last, rows):
        start = torch.arange(begin, min(begin + rows, last))[:, None]
        position = torch.arange(begin, n)
        law = -torch.expm1((1 - exponents[start]) * (logs[position] - logs[start]))
        seen = (position - start) / (n - start).to(logs.dtype)
        parts.append((law - seen).abs().masked_fill(position < start, 0).amax(1))
    return torch.cat(parts).masked_fill(exponents[first:last].isinf(), torch.inf)
