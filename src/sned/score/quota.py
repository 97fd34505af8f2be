"""How many weights of a matrix go, and within what: the matrix, each of its rows, or each run of m in a row.

Pure functions of tensors. May import its neighbours in `score`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sned.errors import ConfigError
from sned.score.masks import matrix_lowest, n_of_m, rows_lowest

if TYPE_CHECKING:
    import torch

_N_OF_M = re.compile(r"(\d+):(\d+)")


@dataclass(frozen=True)
class MatrixQuota:
    """So many weights of the whole matrix."""

    count: int

    @property
    def label(self) -> list[Any]:
        """What tells it from other quotas; JSON."""
        return ["matrix", self.count]

    def select(self, scores: torch.Tensor) -> torch.Tensor:
        """Return the mask of the weights that go, those with the lowest scores `[rows, columns]`."""
        return matrix_lowest(scores, self.count)

    @property
    def total(self) -> int:
        """How many weights go."""
        return self.count


@dataclass(frozen=True)
class RowQuota:
    """So many weights of each row, `[rows]`."""

    counts: torch.Tensor

    @property
    def label(self) -> list[Any]:
        """What tells it from other quotas; JSON."""
        return [
            "row",
            *map(list, zip(*(x.tolist() for x in self.counts.unique_consecutive(return_counts=True)), strict=True)),
        ]

    def select(self, scores: torch.Tensor) -> torch.Tensor:
        """Return the mask of the weights that go, those with the lowest scores `[rows, columns]` of their row."""
        return rows_lowest(scores, self.counts)

    @property
    def total(self) -> int:
        """How many weights go."""
        return int(self.counts.sum())


@dataclass(frozen=True)
class RunQuota:
    """All but `keep` of every `m` weights that follow each other in a row."""

    keep: int
    m: int
    size: int
    """Of the matrix."""

    @property
    def label(self) -> list[Any]:
        """What tells it from other quotas; JSON."""
        return ["run", self.keep, self.m]

    def select(self, scores: torch.Tensor) -> torch.Tensor:
        """Return the mask of the weights that go, those with the lowest scores `[rows, columns]` of their run."""
        return n_of_m(scores, self.keep, self.m)

    @property
    def total(self) -> int:
        """How many weights go."""
        return self.size // self.m * (self.m - self.keep)


Quota = MatrixQuota | RowQuota | RunQuota


def parse_n_of_m(text: str) -> tuple[int, int] | None:
    """Return `(n, m)` of a pattern that keeps n of m weights, such as ``2:4``, or None if it is none.

    Raises:
        ConfigError: it keeps none or all of them.
    """
    match = _N_OF_M.fullmatch(text)
    if match is None:
        return None
    keep, m = int(match[1]), int(match[2])
    if not 0 < keep < m:
        raise ConfigError(f"the pattern {text} keeps {keep} of every {m} weights", hint="2:4 keeps two of four")
    return keep, m
