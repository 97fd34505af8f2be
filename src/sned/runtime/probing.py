"""What a model makes of whole texts at every depth: the state at the last token, as a head there would receive it.

May import its neighbours in `runtime`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from sned.progress import SILENT, Progress
from sned.runtime.sweep import BATCH_TOKENS, Cost, Site, Sweep

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sned.models.view import View
    from sned.runtime.journal import Journal

CHUNK_TEXTS = 64
"""Texts whose states are kept together: a streamed layer is read once for them, and a kill costs no more."""


def last_states(
    view: View,
    texts: Sequence[Sequence[int]],
    journal: Journal,
    *,
    label: str,
    progress: Progress = SILENT,
    cost: Cost | None = None,
) -> torch.Tensor:
    """Return `[layers, texts, hidden]`: after each layer, the normed state at the last token of each text.

    The final norm of the model is applied at every depth, since a model that ends there applies it. Texts are filled
    up on the right, where no token before them looks.

    Args:
        view: The model.
        texts: The token ids of each, none empty.
        journal: Keeps the states of finished chunks.
        label: Names the task on the progress bar.
        progress: Told of texts read.
        cost: Adds what is spent.
    """
    sweep = Sweep(view, cost)
    order = sorted(range(len(texts)), key=lambda i: (len(texts[i]), i))
    states: torch.Tensor | None = None
    with progress.task(label, len(texts)) as advance:
        for start in range(0, len(order), CHUNK_TEXTS):
            places = order[start : start + CHUNK_TEXTS]
            chunk = [texts[i] for i in places]
            kept = journal.load_tensors("states", chunk)
            found = kept["states"] if kept else _chunk_states(sweep, chunk)
            if not kept:
                journal.save_tensors("states", chunk, {"states": found})
            if states is None:
                states = found.new_empty(found.shape[0], len(texts), found.shape[2])
            states[:, places] = found
            advance(len(places))
    if states is None:
        raise ValueError("there are no texts")
    return states


def _chunk_states(sweep: Sweep, texts: Sequence[Sequence[int]]) -> torch.Tensor:
    """Return the states `[layers, texts, hidden]` of texts in the order of their lengths."""
    batches = _batches(texts)
    rows = [len(batch) for batch in batches]
    ids = [_filled(batch) for batch in batches]
    lasts = [torch.tensor([len(text) - 1 for text in batch]) for batch in batches]
    depths = range(1, sweep.view.geometry.n_layers + 1)
    raw: list[list[torch.Tensor]] = [[] for _ in depths]
    for number, (hidden,) in sweep.activations(ids, [(Site("resid", depth),) for depth in depths]):
        place = len(raw[number])
        raw[number].append(hidden[torch.arange(rows[place]), lasts[place].to(hidden.device)])
    stacked = torch.cat([torch.cat(parts) for parts in raw])[:, None]
    nothing = torch.zeros(len(stacked), 1, dtype=torch.int64, device=stacked.device)
    normed = sweep.before_head(nothing, stacked)[:, 0]
    return normed.reshape(len(depths), len(texts), -1).cpu()


def _batches(texts: Sequence[Sequence[int]]) -> list[list[Sequence[int]]]:
    """Cut texts, in the order of their lengths, into runs that fill a batch."""
    batches: list[list[Sequence[int]]] = [[]]
    for text in texts:
        if batches[-1] and (len(batches[-1]) + 1) * len(text) > BATCH_TOKENS:
            batches.append([])
        batches[-1].append(text)
    return batches


def _filled(texts: Sequence[Sequence[int]]) -> torch.Tensor:
    """Return the ids `[texts, tokens]`, filled up on the right with a token that nothing looks at."""
    out = torch.zeros(len(texts), max(map(len, texts)), dtype=torch.int64)
    for row, text in zip(out, texts, strict=True):
        row[: len(text)] = torch.tensor(text)
    return out
