"""Masks as bits: one per weight, eight to a byte. May import torch alone."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch


def pack(mask: torch.Tensor) -> torch.Tensor:
    """Return a mask at one bit per weight, `[ceil(numel / 8)]`, uint8: row-major, the first weight in the highest bit.

    Bits that are left over are 0, as those of `numpy.packbits`.
    """
    flat = mask.reshape(-1).to(torch.uint8)
    whole = torch.nn.functional.pad(flat, (0, -len(flat) % 8)).view(-1, 8)
    return (whole << _shifts(mask.device)).sum(1, dtype=torch.uint8)


def unpack(bits: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Return the mask of this shape that `pack` made `bits` of."""
    flat = (bits[:, None] >> _shifts(bits.device) & 1).bool().view(-1)
    return flat[: math.prod(shape)].view(*shape)


def _shifts(device: torch.device) -> torch.Tensor:
    return torch.arange(7, -1, -1, dtype=torch.uint8, device=device)
