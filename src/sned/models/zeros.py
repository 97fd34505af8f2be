"""Counting the zeros of a model, matrix by matrix. May import its neighbours in `models`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sned.models.matrices import matrices

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sned.models.matrices import Matrix
    from sned.models.view import View


@dataclass(frozen=True, slots=True)
class Zeros:
    """How many weights of a matrix are zero."""

    matrix: Matrix
    zeros: int

    @property
    def of(self) -> int:
        """How many weights it has."""
        return self.matrix.size


def count_zeros(view: View) -> Iterator[Zeros]:
    """Yield the zeros of every matrix, from the first layer to the last."""
    for layer in view.layers:
        with view.materialised(layer) as block:
            for matrix in matrices(view, layer):
                weight = matrix.read(block.get_parameter(matrix.param).detach())
                yield Zeros(matrix, weight.numel() - int(weight.count_nonzero()))
