"""Running a decoder layer by layer, without tracing: record what the model passes to each layer, then replay it.

Windows are packed and never padded, so what a layer receives besides the stream depends on the shape of a batch
alone, and is recorded once per shape. May import `view`.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import torch
    from torch import nn

    from sned.models.view import View


@dataclass(frozen=True, slots=True)
class Call:
    """The arguments of one decoder layer besides the hidden states."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class LayerRunner:
    """Runs the parts of a view's model one at a time, under no gradient unless the caller enables it."""

    def __init__(self, view: View) -> None:
        self.view = view
        self._calls: dict[tuple[int, ...], dict[int, Call]] = {}

    def enter(self, ids: torch.Tensor) -> torch.Tensor:
        """Embed token ids `[batch, tokens]` into what the first layer receives, `[batch, tokens, hidden]`."""
        calls: dict[int, Call] = {}
        first: list[torch.Tensor] = []

        def record(index: int, hidden: torch.Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
            calls[index] = Call(args, kwargs)
            first.append(hidden)
            return hidden

        with _instead_of_layers(self.view, record):
            self.view.model.base_model(ids, use_cache=False)
        self._calls.setdefault(tuple(ids.shape), calls)
        return first[0]

    def layer(self, index: int, hidden: torch.Tensor) -> torch.Tensor:
        """Run one present layer on hidden states of a shape that `enter` has seen."""
        call = self._calls[tuple(hidden.shape[:2])][index]
        out = self.view.layer(index)(hidden, *call.args, **call.kwargs)
        return out[0] if isinstance(out, tuple) else out

    def before_head(self, ids: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """Turn what the last layer returned into what the output head receives, `[batch, tokens, hidden]`."""
        caught: list[torch.Tensor] = []

        def catch(normed: torch.Tensor) -> torch.Tensor:
            caught.append(normed)
            return normed

        head: Any = self.view.model.get_output_embeddings()
        with answering(head, catch):
            self.leave(ids, hidden)
        return caught[0]

    def leave(self, ids: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """Turn what the last layer returned into logits `[batch, tokens, vocab]`, as the model itself does."""
        with _instead_of_layers(self.view, lambda *_: hidden):
            return self.view.model(ids, use_cache=False).logits


@contextmanager
def _instead_of_layers(view: View, handle: Callable[..., torch.Tensor]) -> Iterator[None]:
    """Let `handle(index, hidden, args, kwargs)` answer for every decoder layer."""

    def forward_of(index: int) -> Callable[..., Any]:
        def forward(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            out = handle(index, hidden_states, args, kwargs)
            return (out, None) if view.family.returns_tuple else out

        return forward

    with ExitStack() as stack:
        for index, layer in view.layers.items():
            stack.enter_context(answering(layer, forward_of(index)))
        yield


@contextmanager
def answering(layer: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Let `forward` answer in the place of a module's own, which may itself be a stand-in."""
    before = vars(layer).get("forward")
    layer.forward = forward
    try:
        yield
    finally:
        if before is None:
            del layer.forward
        else:
            layer.forward = before
