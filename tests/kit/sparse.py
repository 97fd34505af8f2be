"""Looking at the zeros of a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sned.models.matrices import all_matrices

if TYPE_CHECKING:
    import torch

    from sned.models.matrices import Matrix
    from sned.models.view import View


def weights_of(view: View) -> dict[Matrix, torch.Tensor]:
    """Return every prunable matrix of a view, `[out, in]`."""
    return {
        matrix: matrix.read(view.layer(matrix.layer).get_parameter(matrix.param).detach())
        for matrix in all_matrices(view)
    }


def count_zeros(view: View) -> tuple[int, int]:
    """Return how many weights of the prunable matrices are zero, and how many there are."""
    found = weights_of(view).values()
    return sum(int((w == 0).sum()) for w in found), sum(w.numel() for w in found)
