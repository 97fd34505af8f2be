"""What is trained on a batch: a span of layers towards what the dense model makes of it, or a whole model.

May import `runtime` and its neighbours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol

import torch

from sned.models.forward import LayerRunner
from sned.runtime.predictions import Predictions
from sned.runtime.sweep import Cost, Site, Sweep
from sned.score.losses import StateLoss, divergence, states_apart

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import nn

    from sned.models.view import View
    from sned.score.losses import Pieces
    from sned.training.masters import Masters

ModelLoss = Literal["kl", "ce", "states"]


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
