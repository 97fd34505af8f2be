"""Mixtures of experts whose weights are stacked: what each expert receives, and what its down projection does.

A token runs through the few experts that its router picks, so that each expert sees inputs of its own. May import its
neighbours in `models`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Iterator

EXPERTS = "experts"
"""Name of the module that holds the stacked weights, within the MLP."""
GATE_UP, DOWN = "gate_up_proj", "down_proj"
"""Its parameters: `[experts, 2 * width, hidden]`, gate rows before up rows, and `[experts, hidden, width]`."""


def stacked(mlp: nn.Module) -> nn.Module | None:
    """Return the module of an MLP that holds stacked experts, or None where the MLP has none."""
    found = getattr(mlp, EXPERTS, None)
    return found if isinstance(getattr(found, GATE_UP, None), nn.Parameter) else None


def received(experts: Any, args: tuple[Any, ...]) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """Yield each expert that tokens were sent to, what its gate and up projections receive, and what its down does.

    Args:
        experts: The module.
        args: What its forward was called with: states `[tokens, hidden]` and the experts picked `[tokens, top]` first.
    """
    states, picked = args[0], args[1]
    for expert in picked.unique().tolist():
        if expert < len(experts.gate_up_proj):  # beyond it are tokens sent nowhere
            mine = states[(picked == expert).any(-1)]
            gate, up = nn.functional.linear(mine, experts.gate_up_proj[expert]).chunk(2, dim=-1)
            yield expert, mine, experts.act_fn(gate) * up
