"""How far the activations of a sparse model are from those of the dense one, for shares that are only tried.

What NeuroAL (arXiv:2411.07066) minimises. Masks are made and taken back layer by layer, on a few windows of text; the
weights are the same bits afterwards. May import its neighbours in `runtime`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal

import torch

from sned.models.matrices import by_row, reader_of
from sned.runtime.inputs import gather
from sned.runtime.lockstep import Stream
from sned.runtime.quotas import quotas
from sned.runtime.sparsify import editing, prune_layer

if TYPE_CHECKING:
    from sned.runtime.allocator import Task
    from sned.runtime.context import Context
    from sned.runtime.inputs import Inputs, Needs
    from sned.runtime.quotas import Shares
    from sned.score.quota import Quota

Reference = Literal["global", "local"]
Norms = dict[str, torch.Tensor]
"""Root mean square of what each module of a layer receives, `[columns]`."""


class Alignment:
    """Judges shares by what the model computes with them.

    Attributes:
        work: Tokens times layers that judging one candidate takes at most.
    """

    def __init__(self, ctx: Context, task: Task, reference: Reference, windows: int) -> None:
        self._ctx, self._task, self._reference = ctx, task, reference
        self._tokens = ctx.calibration.take(windows)
        self._dense: dict[int, Norms] = {}
        self._first: dict[str, Inputs] = {}
        self.work = len(task.layers) * self._tokens.n_tokens

    def judge(self, shares: Shares, bound: float, advance: Callable[[int], None]) -> float:
        """Return how far the activations move with these shares, or infinity as soon as it is more than the bound.

        The sum over all matrices of the distance between the norms of their inputs, each relative to their sum, in
        the dense and in the sparse model, divided by the number of inputs (equation 3).
        """
        key = self._key(shares)
        found, whole = self._ctx.journal.lookup("alignment", key) or (0.0, False)
        if whole or found > bound:
            advance(self.work)
        else:
            found, whole = self._measure(shares, bound, advance)
            self._ctx.journal.keep("alignment", key, [found, whole])
        return found if found <= bound else float("inf")

    def drops(self, shares: Shares) -> dict[str, torch.Tensor]:
        """Return how much less the reader of each row receives with these shares, `[rows]` by matrix.

        Matrices whose rows have no reader of their own, such as queries, are left out.
        """
        lost = self._ctx.journal.load_tensors("drops", self._key(shares))
        if lost is None:
            lost = self._lost(shares)
            self._ctx.journal.save_tensors("drops", self._key(shares), lost)
        readers = {matrix: reader_of(self._ctx.view, matrix) for matrix in self._task.matrices}
        return {
            matrix.name: by_row(self._ctx.view, matrix, lost[_place(*reader)])
            for matrix, reader in readers.items()
            if reader is not None
        }

    def _lost(self, shares: Shares) -> Norms:
        """Return how much less every module of every layer receives, `[columns]` by its place."""
        lost: Norms = {}
        with self._ctx.progress.task("see what rows lose", self.work) as advance:
            for layer, before, after in self._walk(shares):
                lost |= {_place(layer, module): before[module] - after[module] for module in before}
                advance(self._tokens.n_tokens)
        return lost

    def _measure(self, shares: Shares, bound: float, advance: Callable[[int], None]) -> tuple[float, bool]:
        """Return how far the activations move, and whether that is all of it: past the bound nobody looks further."""
        found, left = 0.0, self.work
        for layer, before, after in self._walk(shares):
            found += sum(_distance(before[m.reads], after[m.reads]) for m in self._task.of(layer))
            if found > bound:
                break
            left -= self._tokens.n_tokens
            advance(self._tokens.n_tokens)
        advance(left)
        return found, found <= bound

    def _walk(self, shares: Shares) -> Iterator[tuple[int, Norms, Norms]]:
        """Yield every layer with what its modules receive in the dense model, or layer, and in the sparse one."""
        view, task = self._ctx.view, self._task
        wanted = self._quotas(shares)
        stream = Stream(view, self._tokens.ids, self._ctx.cost)
        for layer in task.layers:
            inputs = self._inputs(stream, layer)
            before = self._reference_norms(layer) if self._reference == "global" else _norms(inputs)
            pruned = list(prune_layer(view, layer, task.of(layer), inputs, wanted, task.sparsifier))
            with view.edited(layer, editing(pruned)):
                after = gather(stream, layer, task.of(layer), "norms", stay=False)
            yield layer, before, _norms(after)

    def _inputs(self, stream: Stream, layer: int) -> dict[str, Inputs]:
        """Return what a layer's matrices receive before it is pruned; for the first one that is always the same."""
        if layer == self._task.layers[0] and self._first:
            return self._first
        needs: Needs = self._task.sparsifier.needs
        if needs == "nothing" and self._reference == "local":
            needs = "norms"
        found = gather(stream, layer, self._task.of(layer), needs)
        if layer == self._task.layers[0]:
            self._first = found
        return found

    def _reference_norms(self, layer: int) -> Norms:
        if not self._dense:
            stream = Stream(self._ctx.view, self._tokens.ids, self._ctx.cost)
            with self._ctx.progress.task("look at the dense model", self.work) as advance:
                for index in self._task.layers:
                    found = gather(stream, index, self._task.of(index), "norms", advance, stay=False)
                    self._dense[index] = _norms(found)
        return self._dense[layer]

    def _key(self, shares: Shares) -> list[Any]:
        """Return all that what is found with these shares depends on."""
        labels = [quota.label for quota in self._quotas(shares).values()]
        return [*self._ctx.state(self._tokens), self._task.sparsifier.name, self._reference, labels]

    def _quotas(self, shares: Shares) -> dict[str, Quota]:
        return quotas(self._task.matrices, shares, self._task.sparsity, self._task.pattern)


def _place(layer: int, module: str) -> str:
    return f"{layer}.{module}"


def _norms(inputs: dict[str, Inputs]) -> Norms:
    return {module: sums.squares.sqrt() for module, sums in inputs.items()}


def _distance(before: torch.Tensor, after: torch.Tensor) -> float:
    """Return the distance between two sets of norms `[columns]`, each relative to its sum, per column."""
    relative = [norms / norms.sum().clamp_min(torch.finfo(norms.dtype).tiny) for norms in (before, after)]
    return float((relative[0] - relative[1]).norm()) / len(before)
