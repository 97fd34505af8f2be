"""One pass of tokens through the layers, handing out activations as they appear.

The same loop serves a loaded and a streamed model: tokens move in chunks, and within a chunk each layer is
materialised once and run over every batch. A loaded model has chunks of one batch. Results do not depend on the
size of a chunk, since every consumer sees the same batches in the same order. May import `models`.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch

from sned.errors import NumericalError
from sned.models.folding import output_projection
from sned.models.forward import LayerRunner

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import nn

    from sned.models.family import Sublayer
    from sned.models.view import View

SUBLAYERS: tuple[Sublayer, ...] = ("attn", "mlp")
Inside = Literal["heads", "attn", "channels", "mlp"]
INSIDE: tuple[Inside, ...] = get_args(Inside)
"""The kinds of sites within a layer, in the order in which a pass meets them."""
BATCH_TOKENS = 1024
"""Tokens that run together through a layer."""
STREAM_CHUNK_TOKENS = 4096
"""Tokens for which a streamed layer is read once; bounds the activations held."""


def windows_together(length: int) -> int:
    """Return how many windows of `length` tokens run together through a layer."""
    return max(1, BATCH_TOKENS // length)


@dataclass(frozen=True, slots=True)
class Site:
    """A place in the model where activations `[batch, tokens, hidden]` can be had.

    `resid` is the residual stream entering a layer (one past the last layer: leaving it). `attn` and `mlp` are
    what that sublayer adds to the stream, norms and multipliers included. `heads` and `channels` are what their output
    projections receive, `[batch, tokens, units]`.
    """

    kind: Literal["resid"] | Inside
    layer: int


Group = tuple[Site, ...]
"""Sites whose activations a consumer wants together, for the same batch."""


@dataclass(slots=True)
class Cost:
    """What planning has spent: decoder-layer evaluations times tokens, a measure no machine changes."""

    forward_layer_tokens: int = 0


@dataclass(slots=True)
class _Batch:
    ids: torch.Tensor
    hidden: torch.Tensor
    held: dict[Site, torch.Tensor] = field(default_factory=dict)


class Sweep:
    """Runs token batches through a view and yields the activations that groups of sites ask for."""

    def __init__(self, view: View, cost: Cost | None = None) -> None:
        self.view = view
        self.cost = cost or Cost()
        self.runner = LayerRunner(view)

    def chunks(self, ids: torch.Tensor) -> Iterator[list[torch.Tensor]]:
        """Cut windows `[n, tokens]` into chunks of batches."""
        windows = windows_together(ids.shape[1])
        batches = list(ids.split(windows))
        size = max(1, STREAM_CHUNK_TOKENS // (windows * ids.shape[1])) if self.view.streamed else 1
        for start in range(0, len(batches), size):
            yield batches[start : start + size]

    @torch.no_grad()
    def activations(
        self, chunk: Sequence[torch.Tensor], groups: Sequence[Group]
    ) -> Iterator[tuple[int, tuple[torch.Tensor, ...]]]:
        """Yield `(number of a group, its activations)` for every batch of a chunk, as soon as they are complete.

        Stops at the last layer that any group needs, and holds no activation longer than its last use.

        Raises:
            NumericalError: a layer returns NaN or infinity.
            PlanError: a site names a layer that is not there any more.
        """
        uses: dict[Site, list[int]] = {}
        for number, group in enumerate(groups):
            for site in group:
                uses.setdefault(site, []).append(number)
        end = self.view.geometry.n_layers
        for site in uses:
            if site != Site("resid", end):
                self.view.layer(site.layer)
        deepest = max((end if s.kind == "resid" and s.layer == end else s.layer) for s in uses)
        batches = self._enter(chunk)
        for index in self.view.active:
            if index > deepest:
                return
            for batch in batches:
                yield from _offer(batch, Site("resid", index), batch.hidden, uses, groups)
            stop_here = index == deepest and not any(s.kind != "resid" for s in uses if s.layer == index)
            if stop_here:
                return
            wanted: list[Inside] = [kind for kind in INSIDE if Site(kind, index) in uses]
            with self.view.materialised(index), contributions(self.view, index, wanted) as caught:
                for batch in batches:
                    batch.hidden = self.step(index, batch.hidden)
                    for kind in wanted:
                        value = caught.pop(kind).reshape(*batch.hidden.shape[:2], -1)
                        yield from _offer(batch, Site(kind, index), value, uses, groups)
        for batch in batches:
            yield from _offer(batch, Site("resid", end), batch.hidden, uses, groups)

    @torch.no_grad()
    def final(self, chunk: Sequence[torch.Tensor]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield `(ids, hidden)` of every batch of a chunk, `hidden` being what the last layer returns."""
        batches = self._enter(chunk)
        for index in self.view.active:
            with self.view.materialised(index):
                for batch in batches:
                    batch.hidden = self.step(index, batch.hidden)
        for batch in batches:
            yield batch.ids, batch.hidden

    @torch.no_grad()
    def logits(self, ids: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """Return the logits `[batch, tokens, vocab]` in the model's dtype that follow from a final stream."""
        return self.runner.leave(ids, hidden)

    @torch.no_grad()
    def before_head(self, ids: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """Return what the output head receives, `[batch, tokens, hidden]`, for a final stream."""
        return self.runner.before_head(ids, hidden)

    @torch.no_grad()
    def enter(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the stream `[batch, tokens, hidden]` that enters the first layer."""
        return self.runner.enter(ids)

    def _enter(self, chunk: Sequence[torch.Tensor]) -> list[_Batch]:
        moved = [ids.to(self.view.device) for ids in chunk]
        return [_Batch(ids, self.runner.enter(ids)) for ids in moved]

    @torch.no_grad()
    def step(self, index: int, hidden: torch.Tensor) -> torch.Tensor:
        """Return the stream after a layer, whose weights are in memory.

        Raises:
            NumericalError: the layer returns NaN or infinity.
        """
        out = self.runner.layer(index, hidden)
        self.cost.forward_layer_tokens += hidden.shape[0] * hidden.shape[1]
        if not torch.isfinite(out.sum(dtype=torch.float32)):
            raise NumericalError(
                f"layer {index} returns NaN or infinity", hint="check the checkpoint, or try --dtype fp32"
            )
        return out


def _offer(
    batch: _Batch, site: Site, value: torch.Tensor, uses: dict[Site, list[int]], groups: Sequence[Group]
) -> Iterator[tuple[int, tuple[torch.Tensor, ...]]]:
    """Hold a value if a group needs it, and yield the groups that it completes."""
    if site not in uses:
        return
    batch.held[site] = value
    for number in uses[site]:
        if all(s in batch.held for s in groups[number]):
            yield number, tuple(batch.held[s] for s in groups[number])
    for held in list(batch.held):
        if all(_complete(groups[number], batch, site) for number in uses[held]):
            del batch.held[held]


def _complete(group: Group, batch: _Batch, latest: Site) -> bool:
    """Tell whether a group was served for this batch: its last site, in order of appearance, has passed."""
    return max(map(_order, group)) <= _order(latest)


def _order(site: Site) -> tuple[int, int]:
    return site.layer, ("resid", *INSIDE).index(site.kind)


@contextmanager
def contributions(view: View, index: int, wanted: Sequence[Inside]) -> Iterator[dict[str, torch.Tensor]]:
    """Catch what the wanted sublayers of a layer add to the stream, or what their output projections receive.

    What they add is copied, since some models add in place.
    """
    caught: dict[str, torch.Tensor] = {}

    def catch(kind: Inside) -> Any:
        def added(_module: nn.Module, _args: Any, out: Any) -> None:
            caught[kind] = (out[0] if isinstance(out, tuple) else out) * view.multiplier

        def received(_module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            caught[kind] = args[0]

        if kind in ("attn", "mlp"):
            return view.contribution(index, kind).register_forward_hook(added)
        projection = output_projection(view, "attn" if kind == "heads" else "mlp")
        return view.layer(index).get_submodule(projection).register_forward_pre_hook(received)

    with ExitStack() as stack:
        for kind in wanted:
            stack.callback(catch(kind).remove)
        yield caught
