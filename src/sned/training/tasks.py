"""What is trained on a batch: a span of layers towards what the dense model makes of it, or a whole model.

May import `runtime` and its neighbours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from torch.utils.checkpoint import checkpoint

from sned.errors import ConfigError
from sned.models.forward import LayerRunner
from sned.runtime.objective import head_is_plain
from sned.runtime.sweep import Cost, Site, Sweep
from sned.training.losses import StateLoss, cross_entropy, divergence, states_apart

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import nn

    from sned.models.view import View
    from sned.training.losses import Pieces
    from sned.training.masters import Masters

ModelLoss = Literal["kl", "ce", "states"]
_PIECE = 256
"""Tokens whose logits exist at a time."""


class Task(Protocol):
    """Judges batches of windows, differentiably in what is trained."""

    parameters: dict[str, nn.Parameter]
    """What the optimiser moves, by name."""

    def losses(self, batches: Sequence[torch.Tensor], step: int | None) -> Iterator[torch.Tensor]:
        """Yield the mean loss per token of each batch `[windows, tokens]`.

        Args:
            batches: The text.
            step: Which step of the optimiser it is for, from which all chance must follow; None to judge, by which
                nothing is left to chance.
        """
        ...


class SpanTask:
    """Layers that are to turn what enters a span of the dense model into what leaves it; only they are trained.

    Nothing is stored: the dense model runs up to the end of the span for every batch, without gradients.
    """

    def __init__(
        self,
        masters: Masters,
        dense: View,
        student: View,
        span: tuple[int, int],
        layers: Sequence[int],
        loss: StateLoss,
        cost: Cost,
    ) -> None:
        """Prepare to train.

        Args:
            masters: Of the layers to train.
            dense: The model to learn from; its part before the span must be that of the student.
            student: The view that has the layers.
            span: First layer of the dense model's span, and the first after it, in base coordinates.
            layers: Those of the student that stand for the span, in order.
            loss: How far states are apart.
            cost: Counts the layers run.
        """
        self.masters, self.parameters = masters, masters.parameters
        self._dense, self._student = Sweep(dense, cost), LayerRunner(student)
        self._sites = tuple(Site("resid", boundary) for boundary in span)
        self._layers, self._cost = list(layers), cost
        self._loss: StateLoss = loss

    def losses(self, batches: Sequence[torch.Tensor], step: int | None) -> Iterator[torch.Tensor]:
        """Yield the mean loss per token of each batch `[windows, tokens]`."""
        for ids in {tuple(ids.shape): ids for ids in batches}.values():
            self._student.enter(ids.to(self._student.view.device))  # learns what layers receive for this shape
        for _, (entering, leaving) in self._dense.activations(batches, [self._sites]):
            self._cost.forward_layer_tokens += len(self._layers) * entering.shape[0] * entering.shape[1]
            hidden = entering
            for layer in self._layers:
                hidden = self.masters.run(self._student, layer, hidden)
            yield states_apart(self._loss, hidden, leaving)


def require_loaded(view: View) -> None:
    """Make sure that all layers of a model are in memory, since training goes back through them.

    Raises:
        ConfigError: the model is streamed.
    """
    if view.streamed:
        raise ConfigError("training through a whole model needs it in memory", hint="give --stream off")


class Predictions:
    """What a model predicts, differentiably, of which few logits exist at a time."""

    def __init__(self, view: View, cost: Cost, masters: Masters | None = None, *, recompute: bool = False) -> None:
        """Prepare to run it.

        Args:
            view: The model.
            cost: Counts the layers run.
            masters: Of weights that are trained.
            recompute: Keep for the way back only what enters each layer, and run it again; where layers are read from
                somewhere when their turn comes, they are read again, too.
        """
        self.runner, self._cost, self._masters = LayerRunner(view), cost, masters
        self._recompute = recompute or view.streamed
        self._plain: bool | None = None

    def hidden(self, ids: torch.Tensor) -> torch.Tensor:
        """Return what the last layer returns for `[windows, tokens]`."""
        states = self.runner.enter(ids)
        for layer in self.runner.view.active:
            moves = states.requires_grad or (self._masters is not None and layer in self._masters.layers)
            if self._recompute and moves and torch.is_grad_enabled():
                states = checkpoint(self._run, layer, states, use_reentrant=False, preserve_rng_state=False)
            else:
                states = self._run(layer, states)
        return states

    def _run(self, layer: int, states: torch.Tensor) -> torch.Tensor:
        self._cost.forward_layer_tokens += states.shape[0] * states.shape[1]
        if self._masters is not None:
            return self._masters.run(self.runner, layer, states)
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


class ModelTask:
    """A whole model, some of whose weights are trained on what it predicts."""

    def __init__(
        self,
        masters: Masters,
        student: View,
        loss: ModelLoss,
        teacher: View | None,
        cost: Cost,
        *,
        recompute: bool = False,
    ) -> None:
        """Prepare to train.

        Args:
            masters: Of the weights to train.
            student: The model that has them.
            loss: What is made small.
            teacher: The dense model; not needed for the cross-entropy.
            cost: Counts the layers run.
            recompute: Run layers again on the way back, and keep less until then.
        """
        self.parameters, self._loss = masters.parameters, loss
        self._student = Predictions(student, cost, masters, recompute=recompute)
        self._teacher = None if teacher is None or loss == "ce" else Sweep(teacher, cost)

    def losses(self, batches: Sequence[torch.Tensor], step: int | None) -> Iterator[torch.Tensor]:
        """Yield the mean loss per token of each batch `[windows, tokens]`."""
        taught = None if self._teacher is None else self._teacher.final(batches)
        for ids in batches:
            target = None if taught is None else next(taught)[1]
            moved = ids.to(self._student.runner.view.device)
            yield self._judge(moved, target)

    def _judge(self, ids: torch.Tensor, target: torch.Tensor | None) -> torch.Tensor:
        if target is None:
            return self._student.cross_entropy(ids)
        hidden = self._student.hidden(ids)
        if self._loss == "states":
            ours, theirs = self._student.runner.before_head(ids, hidden), self._before_head(ids, target)
            return states_apart("nmse", ours, theirs)
        return divergence(self._student.pieces(ids, hidden), self._their_pieces(ids, target), ids)

    @torch.no_grad()
    def _before_head(self, ids: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return self._taught.before_head(ids, target)

    @torch.no_grad()
    def _their_pieces(self, ids: torch.Tensor, target: torch.Tensor) -> Pieces:
        return self._student.pieces(ids, target, self._taught)

    @property
    def _taught(self) -> LayerRunner:
        assert self._teacher is not None  # noqa: S101 - states of a teacher are there only if it is
        return self._teacher.runner
