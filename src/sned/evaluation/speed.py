"""How fast two models read and write, taking turns in one run, so that a busy machine slows both alike.

May import `models`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from sned.progress import SILENT, Progress

if TYPE_CHECKING:
    from collections.abc import Callable

    from sned.models.view import View

PROMPT, NEW, ROUNDS = 512, 32, 5


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds of one model, the best of several rounds: what disturbs a round only ever slows it."""

    prefill: float
    """To read the prompt."""
    decode: float
    """To write one token, given a cache."""
    head: float
    """The part of `decode` that the output head takes."""


@dataclass(frozen=True, slots=True)
class Race:
    """Two models, measured in turns; a ratio above one says that the pruned model is faster."""

    dense: Pace
    pruned: Pace
    prefill_ratio: float
    decode_ratio: float
    decode_body_ratio: float
    """`decode_ratio` without the output head, which pruning layers does not touch."""
    protocol: str


def race(dense: View, pruned: View, *, rounds: int = ROUNDS, seed: int = 0, progress: Progress = SILENT) -> Race:
    """Measure prefill and decode of two loaded models at batch size one, in alternation."""
    ids = torch.randint(dense.geometry.vocab, (1, PROMPT), generator=torch.Generator().manual_seed(seed))
    laps: dict[int, list[Pace]] = {id(dense): [], id(pruned): []}
    with progress.task("measure speed", rounds + 1) as advance:
        for number in range(rounds + 1):
            for view in (dense, pruned) if number % 2 else (pruned, dense):
                lap = _lap(view, ids.to(view.device))
                if number:  # the first lap warms up
                    laps[id(view)].append(lap)
            advance(1)
    d, p = _best(laps[id(dense)]), _best(laps[id(pruned)])
    return Race(
        dense=d,
        pruned=p,
        prefill_ratio=d.prefill / p.prefill,
        decode_ratio=d.decode / p.decode,
        decode_body_ratio=(d.decode - d.head) / (p.decode - p.head),
        protocol=f"batch 1, prompt of {PROMPT} tokens, {NEW} new tokens, {str(dense.dtype).removeprefix('torch.')}, "
        f"best of {rounds} alternating rounds, {torch.get_num_threads()} threads",
    )


@torch.no_grad()
def _lap(view: View, ids: torch.Tensor) -> Pace:
    model: Any = view.model
    state: dict[str, Any] = {}

    def read() -> None:
        state["out"] = model(ids, use_cache=True, logits_to_keep=1)

    prefill = _seconds(read, view)
    token = ids[:, -1:]

    def write() -> None:
        past = state["out"].past_key_values
        for _ in range(NEW):
            past = model(token, past_key_values=past, use_cache=True).past_key_values

    decode = _seconds(write, view) / NEW
    head, hidden = model.get_output_embeddings(), torch.zeros(1, 1, view.geometry.hidden, dtype=view.dtype)
    hidden = hidden.to(view.device)

    def project() -> None:
        for _ in range(NEW):
            head(hidden)

    return Pace(prefill, decode, _seconds(project, view) / NEW)


def _seconds(run: Callable[[], None], view: View) -> float:
    cuda = view.device.type == "cuda"
    if cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _best(paces: list[Pace]) -> Pace:
    return Pace(*(min(getattr(pace, name) for pace in paces) for name in ("prefill", "decode", "head")))
