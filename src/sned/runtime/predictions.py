"""What a model predicts, to go back through: layers one at a time, and few logits.

May import `models`, `score` and its neighbours in `runtime`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch.utils.checkpoint import checkpoint

from sned.models.forward import LayerRunner
from sned.runtime.objective import head_is_plain
from sned.runtime.sweep import Sweep
from sned.score.losses import cross_entropy

if TYPE_CHECKING:
    from collections.abc import Collection

    from sned.models.view import View
    from sned.runtime.sweep import Cost
    from sned.score.losses import Pieces

_PIECE = 256
"""Tokens whose logits exist at a time."""


class Trained(Protocol):
    """What runs in place of some layers' own weights."""

    @property
    def layers(self) -> Collection[int]:
        """Those layers."""
        ...

    def run(self, runner: LayerRunner, layer: int, hidden: torch.Tensor) -> torch.Tensor:
        """Return what any layer makes of hidden states, with what runs in place of its weights if something does."""
        ...


class Predictions:
    """What a model predicts, differentiably, of which few logits exist at a time."""

    def __init__(self, view: View, cost: Cost, trained: Trained | None = None, *, recompute: bool = False) -> None:
        """Prepare to run it.

        Args:
            view: The model.
            cost: Counts the layers run.
            trained: What stands for the weights of some layers.
            recompute: Keep for the way back only what enters each layer, and run it again; where layers are read from
                somewhere when their turn comes, they are read again, too.
        """
        self.runner, self._cost, self._trained = LayerRunner(view), cost, trained
        self._recompute = recompute or view.streamed
        self._plain: bool | None = None

    def hidden(self, ids: torch.Tensor) -> torch.Tensor:
        """Return what the last layer returns for `[windows, tokens]`."""
        states = self.runner.enter(ids)
        for layer in self.runner.view.active:
            moves = states.requires_grad or (self._trained is not None and layer in self._trained.layers)
            if self._recompute and moves and torch.is_grad_enabled():
                states = checkpoint(self._run, layer, states, use_reentrant=False, preserve_rng_state=False)
            else:
                states = self._run(layer, states)
        return states

    def _run(self, layer: int, states: torch.Tensor) -> torch.Tensor:
        self._cost.forward_layer_tokens += states.shape[0] * states.shape[1]
        if self._trained is not None:
            return self._trained.run(self.runner, layer, states)
        with self.runner.view.materialised(layer):
            return self.runner.layer(layer, states)

    def cross_entropy(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the mean loss per token of windows `[windows, tokens]`, in nats."""
        return cross_entropy(self.pieces(ids, self.hidden(ids)), ids)

    def pieces(self, ids: torch.Tensor, hidden: torch.Tensor, runner: LayerRunner | None = None) -> Pieces:
        """Return what makes the logits of all tokens, a few at a time where the head is a plain matrix.

        Args:
            ids: The tokens.
            hidden: What the last layer returned for them.
            runner: That of another model of the same kind, if it is not this one's.
        """
        runner = runner or self.runner
        if self._plain is None:
            self._plain = head_is_plain(Sweep(self.runner.view), ids, hidden.detach())
        if self._plain:
            head: Any = runner.view.model.get_output_embeddings()
            return [(head, states) for states in runner.before_head(ids, hidden).flatten(0, 1).split(_PIECE)]

        def make(window: torch.Tensor) -> Any:
            return lambda states: runner.leave(window, states)[0]

        return [(make(w), states) for w, states in zip(ids.split(1), hidden.split(1), strict=True)]
