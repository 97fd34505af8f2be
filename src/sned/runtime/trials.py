"""Measuring many candidates over the same tokens at once.

Candidates travel through the layers together. Those that have not differed yet share one stream, so that the part
before a candidate's first change is computed once for all; they fork where an op touches a layer. When there are
enough streams to fill the memory, or to be worth keeping, those go on to the end while the stream of all others waits
where it is: nothing is computed twice for it, and a kill costs no more than the few that were under way. Every stream
runs in batches of its own, of the same shape as a plain run, so that sharing changes no bit of the result. May import
`plan`, `models` and its neighbours.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch

from sned.errors import NumericalError
from sned.runtime.sweep import windows_together

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from sned.plans.ops import Op, Tensors
    from sned.runtime.sweep import Sweep

HELD_BYTES = 2**28
"""Memory for the streams that are under way at a time."""
AT_ONCE = 8
"""Streams under way at a time where the layers stay in memory: what is finished is handed out, and kept, soon."""
SEGMENT_TOKENS = 128
"""Losses are kept per segment of a window: enough values for an honest error, few enough to write down."""
FAILED = float("inf")


class Judge(Protocol):
    """Says what a candidate loses, from its final residual stream."""

    def per_token(self, ids: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """Return the loss of each next token, `[batch, tokens - 1]`."""
        ...


@runtime_checkable
class LeastJudge(Judge, Protocol):
    """Says also what a candidate loses at least, at a fraction of the cost."""

    def least(self, ids: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """Return a bound below the loss of each next token, `[batch, tokens - 1]`."""
        ...


@dataclass(slots=True)
class _Stream:
    """The hidden states of one or more candidates that have been alike so far, batch by batch."""

    batches: list[torch.Tensor]
    members: list[int] = field(default_factory=list)


class Trials:
    """Runs candidates over windows of tokens and returns what each loses."""

    def __init__(self, sweep: Sweep, objective: Judge, tensors: Tensors, warn: Callable[[str], None]) -> None:
        self._sweep, self._view = sweep, sweep.view
        self._objective, self._tensors, self._warn = objective, tensors, warn
        self.reason = ""

    @property
    def knows_least(self) -> bool:
        """Whether it is known at a lower cost what a candidate loses at least."""
        return isinstance(self._objective, LeastJudge)

    def measure(
        self,
        candidates: Sequence[Sequence[Op]],
        ids: torch.Tensor,
        advance: Callable[[int], None] = lambda _: None,
        least: Collection[int] = (),
    ) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield `(candidate, sums)`: its loss summed over each segment of each window, `[windows, segments]`, float64.

        Each comes as soon as it is known. A candidate whose states are not finite yields infinities, and the reason is
        told.

        Args:
            candidates: Ops to try, each list on its own; an empty one is the view as it is.
            ids: Windows `[n, tokens]`.
            advance: Told layer after layer how many windows have met it, times the candidates on their own there.
            least: Candidates of which only what they lose at least is to be found.
        """
        pieces: list[list[torch.Tensor]] = [[] for _ in candidates]
        at_once = self._at_once(ids)
        for chunk in self._chunks(ids, min(len(candidates), at_once)):
            for c, sums in self._run(candidates, chunk, at_once, least, advance):
                pieces[c].append(sums)
                if sum(map(len, pieces[c])) == len(ids):
                    yield c, torch.cat(pieces[c])

    def portions(self, start: int, stop: int, length: int) -> Iterator[tuple[int, int]]:
        """Cut a range of windows into what is worth keeping on its own: batches, or all of it if layers are read."""
        size = stop - start if self._view.streamed else windows_together(length)
        yield from ((first, min(first + size, stop)) for first in range(start, stop, size))

    def plain(self, candidate: Sequence[Op], ids: torch.Tensor) -> torch.Tensor:
        """Measure one candidate the plain way: alone, from the first layer to the last."""
        sweep, pieces = self._sweep, []
        with ExitStack() as stack:
            for op in candidate:
                stack.enter_context(op.trial(self._view, self._tensors))
            try:
                for chunk in sweep.chunks(ids):
                    pieces += [self._sums(self._objective.per_token(*state)) for state in sweep.final(chunk)]
            except NumericalError as error:
                return self._failed(ids, error)
        return torch.cat(pieces)

    def _run(
        self,
        candidates: Sequence[Sequence[Op]],
        chunk: list[torch.Tensor],
        at_once: int,
        least: Collection[int],
        advance: Callable[[int], None],
    ) -> Iterator[tuple[int, torch.Tensor]]:
        """Run all candidates over a chunk, yielding `(candidate, sums)`."""
        sweep, active, whole = self._sweep, self._view.active, torch.cat(chunk)
        chunk = [ids.to(self._view.device) for ids in chunk]
        waiting = [(0, [_Stream([sweep.enter(ids) for ids in chunk], list(range(len(candidates))))])]
        while waiting:
            first, streams = waiting.pop()
            for place in range(first, len(active)):
                aside: list[_Stream] = []
                following: list[_Stream] = []
                with self._view.materialised(active[place]):
                    while streams:
                        stream = streams.pop(0)  # so that its states are freed as soon as all have left it
                        room = at_once - len(streams) - len(following)
                        forks, rest = _forks(candidates, stream.members, active[place], room)
                        aside += [_Stream(stream.batches, rest)] if rest else []
                        for ops, members in forks:
                            try:
                                following.append(_Stream(self._layer(active[place], ops, stream.batches), members))
                            except NumericalError as error:
                                yield from ((c, self._failed(whole, error)) for c in members)
                waiting += [(place, aside)] if aside else []
                streams = following
                advance(len(whole) * sum(len(stream.members) == 1 for stream in streams))
            # batch by batch, since an objective may hold what it compares a batch with
            judges = [self._judge(stream.members, least) for stream in streams]
            pairs = list(zip(judges, streams, strict=True))
            sums = [
                [self._sums(judge(ids, stream.batches[b])) for judge, stream in pairs] for b, ids in enumerate(chunk)
            ]
            for stream, pieces in zip(streams, zip(*sums, strict=True), strict=True):
                yield from ((c, torch.cat(pieces)) for c in stream.members)

    def _layer(self, index: int, ops: Sequence[Op], batches: list[torch.Tensor]) -> list[torch.Tensor]:
        with ExitStack() as stack:
            for op in ops:
                stack.enter_context(op.trial(self._view, self._tensors))
            if index in self._view.skipped:
                return batches
            return [self._sweep.step(index, hidden) for hidden in batches]

    def _judge(self, members: Sequence[int], least: Collection[int]) -> Callable[..., torch.Tensor]:
        """Return what judges a stream: only where nobody in it needs the loss itself, what it is at least."""
        objective, enough = self._objective, all(c in least for c in members)
        return objective.least if enough and isinstance(objective, LeastJudge) else objective.per_token

    def _sums(self, losses: torch.Tensor) -> torch.Tensor:
        """Return the losses of a batch, summed per segment: `[windows, segments]`."""
        losses = losses.double()
        if not torch.isfinite(losses).all():
            losses = torch.full_like(losses, FAILED)
            self._drop("its logits hold NaN or infinity")
        return torch.stack([part.sum(1) for part in losses.split(SEGMENT_TOKENS, 1)], 1).cpu()

    def _failed(self, ids: torch.Tensor, error: NumericalError) -> torch.Tensor:
        self._drop(str(error.args[0]))
        return torch.full((len(ids), n_segments(ids.shape[1])), FAILED, dtype=torch.float64)

    def _drop(self, reason: str) -> None:
        """Say why a candidate is out; `reason` keeps the latest for whoever finds that none is left."""
        self.reason = reason
        self._warn(f"a candidate was dropped: {reason}")

    def _at_once(self, ids: torch.Tensor) -> int:
        """Return how many streams may be under way at a time."""
        most = max(1, HELD_BYTES // self._batch_bytes(ids))
        return most if self._view.streamed else min(most, AT_ONCE)

    def _chunks(self, ids: torch.Tensor, n_streams: int) -> Iterator[list[torch.Tensor]]:
        """Cut windows into chunks of batches whose streams fit in memory together."""
        batches = [batch for chunk in self._sweep.chunks(ids) for batch in chunk]
        size = max(1, HELD_BYTES // (n_streams * self._batch_bytes(ids)))
        yield from (batches[i : i + size] for i in range(0, len(batches), size))

    def _batch_bytes(self, ids: torch.Tensor) -> int:
        windows = next(iter(self._sweep.chunks(ids)))[0]
        return windows.numel() * self._view.geometry.hidden * self._view.dtype.itemsize


def n_segments(length: int) -> int:
    """Return how many segments the predicted tokens of a window of `length` tokens make."""
    return -(-(length - 1) // SEGMENT_TOKENS)


def segment_tokens(length: int) -> torch.Tensor:
    """Return how many predicted tokens each segment of a window holds, `[segments]`."""
    full, rest = divmod(length - 1, SEGMENT_TOKENS)
    return torch.tensor([SEGMENT_TOKENS] * full + [rest] * bool(rest), dtype=torch.float64)


def _forks(
    candidates: Sequence[Sequence[Op]], members: list[int], index: int, room: int
) -> tuple[list[tuple[tuple[Op, ...], list[int]]], list[int]]:
    """Split the members of a stream by what they do to a layer, and say who has to wait: those for whom is no room.

    The largest parts wait, since many candidates in one stream take no more memory than one.
    """
    split: dict[tuple[Op, ...], list[int]] = {}
    for c in members:
        split.setdefault(_here(candidates[c], index), []).append(c)
    parts = sorted(split.items(), key=lambda part: len(part[1]))
    room = max(1, room)
    return parts[:room], sorted(c for _, waiting in parts[room:] for c in waiting)


def _here(candidate: Sequence[Op], index: int) -> tuple[Op, ...]:
    """Return the ops of a candidate that change a layer, and those before them on which their outcome depends."""
    matter = {index}
    here: list[Op] = []
    for op in reversed(candidate):
        if matter.intersection(op.touched):
            here.append(op)
            matter |= set(op.reads)
    return tuple(reversed(here))
