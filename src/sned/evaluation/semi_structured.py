"""Running 2:4 matrices on the sparse kernels of NVIDIA GPUs, through PyTorch's semi-structured tensors.

For a model in memory only: nothing of it can be saved, and only a measurement says whether it pays. May import
`models`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from sned.errors import ConfigError

if TYPE_CHECKING:
    from sned.models.view import View

KEEP, M = 2, 4
ROWS, COLUMNS = 32, 64
"""What the kernels for 16-bit weights take comes in multiples of these."""
AMPERE = (8, 0)


@dataclass(frozen=True, slots=True)
class Conversion:
    """What became of the matrices of a model: how many run on sparse kernels, and how many cannot."""

    converted: int
    left: int


def convert(view: View) -> Conversion:
    """Let every 2:4 matrix of a loaded model, in place, run on sparse kernels.

    Raises:
        ConfigError: the device or the dtype has no such kernels, or no matrix is 2:4.
    """
    require_kernels(view.device, view.dtype)
    linears = [m for layer in view.layers.values() for m in layer.modules() if isinstance(m, nn.Linear)]
    fit = [linear for linear in linears if fits(linear.weight)]
    if not fit:
        raise ConfigError(
            f"none of the {len(linears)} matrices keeps to 2:4 in a size that sparse kernels take",
            hint="prune with --pattern 2:4",
        )
    for linear in fit:
        sparse = torch.sparse.to_sparse_semi_structured(linear.weight.detach().contiguous())
        linear.weight = nn.Parameter(sparse, requires_grad=False)
    return Conversion(len(fit), len(linears) - len(fit))


def require_kernels(device: torch.device, dtype: torch.dtype) -> None:
    """Refuse a device or a dtype without kernels for 2:4 matrices.

    Raises:
        ConfigError: it has none.
    """
    if device.type != "cuda":
        raise ConfigError(
            f"the model is on the {device.type}, where zeros make nothing faster",
            hint="sparse kernels for 2:4 matrices need an NVIDIA GPU of the Ampere generation or later",
        )
    if torch.cuda.get_device_capability(device) < AMPERE:
        raise ConfigError(
            f"{torch.cuda.get_device_name(device)} has no sparse kernels", hint="they came with the Ampere generation"
        )
    if dtype not in (torch.float16, torch.bfloat16):
        raise ConfigError(f"sparse kernels take 16-bit weights, not {dtype}", hint="use --dtype bf16 or fp16")


def fits(weight: torch.Tensor) -> bool:
    """Tell whether a matrix `[out, in]` keeps at most two of every four weights, in a size that kernels take."""
    if weight.dim() != 2 or weight.shape[0] % ROWS or weight.shape[1] % COLUMNS:
        return False
    return bool(((weight != 0).view(-1, M).sum(1) <= KEEP).all())
