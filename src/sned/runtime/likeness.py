"""How far a model's final states have moved from those of the dense model: what LaCo judges merges by.

May import `models`, `data`, `score` and `sweep`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from sned.runtime.sweep import Sweep
from sned.score.similarity import cosine_windows

if TYPE_CHECKING:
    from sned.data.tokens import Tokens
    from sned.runtime.context import Context


class Likeness:
    """One minus the cosine of all final states of a window, in one vector, and those of the dense model.

    Final states are what the output head receives. The dense ones are computed once, when they are first needed.
    """

    name = "likeness"

    def __init__(self, ctx: Context, tokens: Tokens) -> None:
        self._sweep, self._reference = Sweep(ctx.view, ctx.cost), Sweep(ctx.dense, ctx.cost)
        self._tokens = tokens
        self._targets: dict[bytes, torch.Tensor] = {}

    @torch.no_grad()
    def per_token(self, ids: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """Return the value of each window at each of its next tokens, `[batch, tokens - 1]` in float64."""
        targets = torch.stack([self._target(window) for window in ids])
        moved = 1 - cosine_windows(self._sweep.before_head(ids, hidden), targets)
        return moved.clamp_min(0)[:, None].expand(-1, ids.shape[1] - 1)

    def _target(self, window: torch.Tensor) -> torch.Tensor:
        if not self._targets:
            for chunk in self._reference.chunks(self._tokens.ids):
                for ids, hidden in self._reference.final(chunk):
                    states = self._reference.before_head(ids, hidden)
                    self._targets |= {_key(one): state for one, state in zip(ids, states, strict=True)}
        return self._targets[_key(window)]


def _key(window: torch.Tensor) -> bytes:
    return window.cpu().numpy().tobytes()
