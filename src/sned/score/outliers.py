"""How many scores of a block stand out from the rest (OWL, arXiv 2310.05175). Pure functions of tensors."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from sned.errors import NumericalError

if TYPE_CHECKING:
    from collections.abc import Iterable


def outlier_ratio(scores: Iterable[torch.Tensor], multiple: float) -> float:
    """Return how many scores exceed `multiple` times the mean of all of them, in percent.

    Args:
        scores: Of the weights of each matrix of a block, at least one; any shapes, any float dtype, none negative.
        multiple: Above how many times the mean a score is an outlier.

    Raises:
        NumericalError: the scores are not finite.
    """
    parts = list(scores)
    count = sum(part.numel() for part in parts)
    total = sum(float(part.sum(dtype=torch.float64)) for part in parts)
    if not math.isfinite(total):
        raise NumericalError("the scores of a block's weights hold NaN or infinity", hint="try --dtype fp32")
    threshold = multiple * total / count
    return 100 * sum(int((part.float() > threshold).sum()) for part in parts) / count
