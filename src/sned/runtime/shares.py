"""A model that several processes hold together: each some of the layers, which it sends to the others as they run.

May import `models` and `crew`.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sned.models.view import View
    from sned.models.weights import LayerSource
    from sned.runtime.crew import Crew


class SharedSource:
    """Layers by turns in the memory of each process; all of them must ask for the same layers in the same order."""

    def __init__(self, source: LayerSource, crew: Crew, device: torch.device) -> None:
        """Begin with nothing in memory.

        Args:
            source: Where a layer comes from the first time.
            crew: The processes.
            device: Where layers run.
        """
        self._source, self._crew, self._device = source, crew, device
        self._held: dict[int, dict[str, torch.Tensor]] = {}
        self._known: dict[int, list[tuple[str, torch.Size, torch.dtype]]] = {}

    @property
    def held(self) -> int:
        """Bytes that this process holds for all."""
        return sum(tensor.nbytes for tensors in self._held.values() for tensor in tensors.values())

    def layer(self, index: int) -> dict[str, torch.Tensor]:
        """Return all tensors of a base layer, from the memory of the process that has it."""
        owner = index % self._crew.size
        mine = owner == self._crew.rank
        if mine and index not in self._held:
            self._held[index] = self._source.layer(index)
        tensors = self._held[index] if mine else {}
        if index not in self._known:
            self._known[index] = self._crew.heed([(n, t.shape, t.dtype) for n, t in tensors.items()], owner)
        for name, shape, dtype in () if mine else self._known[index]:
            tensors[name] = torch.empty(shape, dtype=dtype, device=self._device)
        for name, _, _ in self._known[index]:
            self._crew.send(tensors[name], owner)
        return tensors

    def sample(self, index: int, name: str, count: int) -> torch.Tensor:
        """Return elements of a base tensor, from where it came from."""
        return self._source.sample(index, name, count)


@contextmanager
def shared(crew: Crew, *views: View) -> Iterator[None]:
    """Let the processes of a crew hold streamed views of one model together for the duration of the context."""
    source = views[0].source
    if source is None:
        raise ValueError("only what is read layer by layer can be held in shares")
    held = SharedSource(source, crew, views[0].device)
    with ExitStack() as stack:
        for view in views:
            stack.enter_context(view.supplied(held))
        yield
