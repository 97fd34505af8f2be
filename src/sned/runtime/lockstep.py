"""The residual streams of all calibration batches, held while a model is walked through layer by layer.

Pruning single weights walks through one model whose layers change on the way; a repair compares two, of the model
before its cuts and after. Places in the stream are numbered so
that both models share them: `2 * layer` enters a layer, `2 * layer + 1` has its attention added. May import `sweep`.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from sned.models.folding import output_projection
from sned.models.forward import answering
from sned.runtime.sweep import Sweep, contributions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import torch
    from torch import nn

    from sned.models.family import Sublayer
    from sned.models.view import View
    from sned.runtime.sweep import Cost


class Stream:
    """The stream of one model, moved deeper when something there is asked for, and never before."""

    def __init__(self, view: View, ids: torch.Tensor, cost: Cost) -> None:
        self.view, self._ids = view, ids
        self._sweep = Sweep(view, cost)
        self._hidden = view.geometry.hidden
        self._layer = 0
        self._batches: list[torch.Tensor] = []
        self._after: list[torch.Tensor] = []
        """What leaves the layer, where it had to be run already for the sake of what is inside."""

    def at(self, place: int) -> list[torch.Tensor]:
        """Return the stream `[batch, tokens, hidden]` of every batch at a place that lies beyond the last one."""
        layer, inside = divmod(place, 2)
        self._advance(layer)
        if not inside:
            return list(self._batches)
        states = list(self._run(layer))
        self._after = [after for _, after in states]
        return [between for between, _ in states]

    def around(self, layer: int, which: Sublayer) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield, batch by batch, what a sublayer's output projection receives, and the stream with its output added.

        The stream stays where it is, so that the layer may change before it is passed.
        """
        self._advance(layer)
        received: list[torch.Tensor] = []
        projection = self.view.layer(layer).get_submodule(output_projection(self.view, which))
        handle = projection.register_forward_pre_hook(lambda _module, args: received.append(args[0]))
        try:
            for between, after in self._run(layer):
                yield received.pop(), between if which == "attn" else after
        finally:
            handle.remove()

    def inputs(
        self, layer: int, modules: Sequence[str], *, stay: bool
    ) -> Iterator[tuple[dict[str, tuple[torch.Tensor, ...]], int]]:
        """Yield, batch by batch, what some modules of a layer are called with, by name, and how many tokens that is.

        With `stay` the stream is left where it is, so that the layer may change before it is passed; then the last
        projection of the MLP, whose product nobody would read, is left out. Otherwise what leaves the layer now is what
        enters the next one.
        """
        self._advance(layer)
        received: dict[str, tuple[torch.Tensor, ...]] = {}
        after: list[torch.Tensor] = []

        def catch(name: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
            return lambda _module, args: received.update({name: args})

        with ExitStack() as stack, self.view.materialised(layer) as block:
            for name in modules:
                handle = block.get_submodule(name).register_forward_pre_hook(catch(name))
                stack.callback(handle.remove)
            if stay and self.view.has_branch(layer, "mlp") and not self.view.family.experts:
                last = block.get_submodule(output_projection(self.view, "mlp"))
                stack.enter_context(answering(last, lambda states: states.new_zeros(*states.shape[:-1], self._hidden)))
            for hidden in self._batches:
                left = self._sweep.step(layer, hidden)
                if not stay:
                    after.append(left)
                yield dict(received), hidden.shape[:2].numel()
                received.clear()
        if not stay:
            self._after = after

    def _advance(self, layer: int) -> None:
        """Move the stream to where it enters a layer."""
        if not self._batches:
            batches = [ids for chunk in self._sweep.chunks(self._ids) for ids in chunk]
            self._batches = [self._sweep.enter(ids.to(self.view.device)) for ids in batches]
        for index in range(self._layer, layer):
            if self._after:
                self._batches, self._after = self._after, []
            elif index in self.view.layers:
                with self.view.materialised(index):
                    for number, hidden in enumerate(self._batches):
                        self._batches[number] = self._sweep.step(index, hidden)
        self._layer = layer

    def _run(self, layer: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Run a layer over all batches, yielding the stream between its attention and its MLP, and after both."""
        wanted: list[Sublayer] = ["attn"] if self.view.has_branch(layer, "attn") else []
        with self.view.materialised(layer), contributions(self.view, layer, wanted) as caught:
            for hidden in self._batches:
                after = self._sweep.step(layer, hidden)
                yield hidden + caught.pop("attn").reshape(hidden.shape) if wanted else hidden, after
