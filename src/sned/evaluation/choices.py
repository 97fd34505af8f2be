"""A multiple-choice task out of plain text: which of four continuations follows a context? It needs no download.

The other three come from elsewhere in the same text, so that style and subject give little away. May import
`models`, `data` and `runtime`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from sned.canon import digest
from sned.errors import ConfigError, DataError, NumericalError
from sned.evaluation.items import ItemScore, TaskResult, accuracy
from sned.progress import SILENT, Progress
from sned.runtime.objective import token_nll
from sned.runtime.sweep import Sweep

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sned.data.tokens import Tokens
    from sned.models.view import View

NAME = "choices"
CHOICES, CONTEXT, CONTINUATION, ITEMS = 4, 64, 16, 200
SIZE = CONTEXT + CONTINUATION
_DRAWS = 1000
_ITEMS_HELD = 4
"""Items whose contexts are read together where their cache is kept."""


@dataclass(frozen=True, eq=False, slots=True)
class Items:
    """Contexts `[items, C]`, continuations `[items, 4, K]`, both int64, and which of the four is the true one."""

    contexts: torch.Tensor
    continuations: torch.Tensor
    gold: tuple[int, ...]
    source: str

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self.gold)

    @property
    def names(self) -> list[str]:
        """Of each item its number and the digest of its tokens: equal names, equal items."""
        pairs = zip(self.contexts.tolist(), self.continuations.tolist(), strict=True)
        return [f"{number}-{digest(list(pair))[:12]}" for number, pair in enumerate(pairs)]

    @property
    def words(self) -> str:
        """What is asked, for people."""
        context, continuation = self.contexts.shape[1], self.continuations.shape[2]
        return (
            f"which of {CHOICES} continuations of {continuation} tokens follows a context of {context}, "
            f"out of {self.source}"
        )


def make_items(
    tokens: Tokens, count: int = ITEMS, *, context: int = CONTEXT, continuation: int = CONTINUATION, seed: int = 0
) -> Items:
    """Cut windows into items, the first so many; each is followed by its own text or by that of another one.

    A first token that all windows share is taken for BOS, and begins every context.

    Args:
        tokens: Held-out text.
        count: How many items.
        context: Tokens in a context, BOS among them.
        continuation: Tokens in a continuation.
        seed: Of where the other continuations come from, and of the place of the true one.

    Raises:
        ConfigError: no item is asked for, or a size is not positive.
        DataError: the text has fewer items, or repeats itself so much that continuations are alike.
    """
    if min(count, context, continuation) < 1:
        raise ConfigError(f"{count} items of {context} and {continuation} tokens ask nothing", hint="take 1 or more")
    pieces, lead = _cut(tokens, context + continuation)
    if len(pieces) < max(count, 2):
        raise too_few(tokens.source, have=len(pieces), wanted=count, size=context + continuation)
    generator = torch.Generator().manual_seed(seed)
    continuations, gold = [], []
    for number in range(count):
        true = pieces[number, -continuation:]
        place = _draw(CHOICES, generator)
        others = _others(pieces, number, true, generator, tokens.source)
        continuations.append(torch.stack([*others[:place], true, *others[place:]]))
        gold.append(place)
    contexts = torch.cat([lead.expand(count, -1), pieces[:count, :-continuation]], dim=1)
    return Items(contexts, torch.stack(continuations), tuple(gold), tokens.source)


def too_few(source: str, *, have: int, wanted: int, size: int) -> DataError:
    """Return the error of a text that has not as many items as are asked for."""
    hint = (
        f"--task-items {have} takes all of them; or add text"
        if have > 1
        else "add text: continuations come from other items"
    )
    there = "1 item" if have == 1 else f"{have:,} items"
    return DataError(f"{source} holds {there} of {size} tokens, and {max(wanted, 2):,} are needed.", hint=hint)


def judge_choices(view: View, items: Items, *, cached: bool = False, progress: Progress = SILENT) -> TaskResult:
    """Let a model choose: the continuation that it finds likeliest, all being of one length.

    Raises:
        ConfigError: a streamed model has no cache to keep.
        NumericalError: a layer returns NaN or infinity, or the loss of a choice is.
    """
    losses = choice_nll(view, items, cached=cached, progress=progress)
    length = (items.continuations.shape[2],) * CHOICES
    rows = zip(items.names, losses.tolist(), items.gold, strict=True)
    scores = tuple(ItemScore(NAME, name, tuple(nll), gold, length) for name, nll, gold in rows)
    return TaskResult(accuracy(scores), len(scores), items.words, {"acc": True}, scores)


def choice_nll(view: View, items: Items, *, cached: bool = False, progress: Progress = SILENT) -> torch.Tensor:
    """Return the negative log-likelihood of every continuation given its context, `[items, 4]` in nats, float64.

    Args:
        view: The model.
        items: What to judge.
        cached: Read each context once, and keep its cache for the four continuations: less than half of the work, and
            the same figures up to rounding. Otherwise all sequences are read whole, which a streamed model can do too.
        progress: Told of what goes on.

    Raises:
        ConfigError: a streamed model has no cache to keep.
        NumericalError: a layer returns NaN or infinity, or the loss of a choice is.
    """
    if cached and view.streamed:
        raise ConfigError(
            "a streamed model keeps no cache of a context", hint="leave --cached out, or use --stream off"
        )
    with progress.task(NAME, CHOICES * len(items)) as advance:
        parts = []
        for part in (_from_cache if cached else _whole)(view, items):
            parts.append(part)
            advance(len(part))
    losses = torch.cat(parts).view(len(items), CHOICES).cpu()
    if not torch.isfinite(losses).all():
        item = int((~torch.isfinite(losses)).any(1).nonzero()[0])
        raise NumericalError(f"the loss of a choice of item {item} is NaN or infinity", hint="try --dtype fp32")
    return losses


@torch.no_grad()
def _whole(view: View, items: Items) -> Iterator[torch.Tensor]:
    """Yield the losses of consecutive choices, read whole behind their contexts."""
    sweep, start = Sweep(view), items.contexts.shape[1] - 1
    rows = torch.cat([items.contexts.repeat_interleave(CHOICES, 0), items.continuations.flatten(0, 1)], dim=1)
    for chunk in sweep.chunks(rows):
        for ids, hidden in sweep.final(chunk):
            # few logits exist at a time, and none but those of continuations: the head reads tokens one by one
            for window, states in zip(ids[:, start:].split(CHOICES), hidden[:, start:].split(CHOICES), strict=True):
                yield token_nll(sweep.logits(window, states), window).sum(1, dtype=torch.float64)


@torch.no_grad()
def _from_cache(view: View, items: Items) -> Iterator[torch.Tensor]:
    """Yield the losses of consecutive choices, each context being read once."""
    model: Any = view.model
    batches = (
        items.contexts.to(view.device).split(_ITEMS_HELD),
        items.continuations.to(view.device).split(_ITEMS_HELD),
    )
    for contexts, continuations in zip(*batches, strict=True):
        read, ids = model(contexts, use_cache=True, logits_to_keep=1), continuations.flatten(0, 1)
        read.past_key_values.batch_repeat_interleave(CHOICES)
        first = read.logits[:, -1:].repeat_interleave(CHOICES, 0)
        rest = model(ids, past_key_values=read.past_key_values, use_cache=True).logits
        # token_nll predicts each token from the logits before it, so the last token of the context stands in front
        window = torch.cat([contexts[:, -1:].repeat_interleave(CHOICES, 0), ids], dim=1)
        yield token_nll(torch.cat([first, rest], dim=1), window).sum(1, dtype=torch.float64)


def _cut(tokens: Tokens, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return pieces `[n, size]` of the windows, and the token `[1]` that begins each window, or `[0]` of them.

    With such a token pieces are one shorter.
    """
    ids = tokens.ids
    shared = len(ids) > 1 and bool((ids[:, 0] == ids[0, 0]).all())
    lead, body = (ids[0, :1], ids[:, 1:]) if shared else (ids[0, :0], ids)
    length = size - len(lead)
    whole = body.shape[1] // length
    return body[:, : whole * length].reshape(-1, length), lead


def _others(
    pieces: torch.Tensor, own: int, true: torch.Tensor, generator: torch.Generator, source: str
) -> list[torch.Tensor]:
    """Draw three continuations out of other pieces, all unlike each other and the true one."""
    found = [true]
    for _ in range(_DRAWS):
        piece = _draw(len(pieces) - 1, generator)
        start = _draw(pieces.shape[1] - len(true) + 1, generator)
        drawn = pieces[piece + (piece >= own), start : start + len(true)]
        if not any(torch.equal(drawn, other) for other in found):
            found.append(drawn)
        if len(found) == CHOICES:
            return found[1:]
    raise DataError(f"{source} repeats itself: {CHOICES} continuations that differ were not found.", hint="add text")


def _draw(below: int, generator: torch.Generator) -> int:
    return int(torch.randint(below, (1,), generator=generator))
