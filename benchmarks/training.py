"""Training one layer to stand for a run of seven, beside the bare passes that it cannot do without.

The floor is the dense model up to the end of the run, and three passes of the layer that is trained: forward, and twice
as much back. Times are of the processor, over all threads. TOKENS, SEQ_LEN and DTYPE may be set.
"""

from __future__ import annotations

import os
import time
from typing import Any

import torch

import sned
from sned.plans.ops import DropLayers
from sned.progress import SILENT
from sned.runtime.journal import Journal
from sned.runtime.sweep import Cost, Sweep
from sned.training.loop import fit
from sned.training.masters import Masters, all_parameters
from sned.training.schedule import Schedule
from sned.training.tasks import SpanTask

TOKENS, SEQ_LEN = int(os.environ.get("TOKENS", "8192")), int(os.environ.get("SEQ_LEN", "1024"))
RUN = (12, 19)


def measure() -> dict[str, Any]:
    """Train for one epoch with two evaluations, and run the floor over as many tokens."""
    model = sned.load("demo", dtype=os.environ.get("DTYPE", "bf16"))
    tokens = sned.Tokens.from_source("builtin", model.tokenizer, tokens=TOKENS + SEQ_LEN, seq_len=SEQ_LEN)
    text, held_out = sned.Tokens(tokens.ids[1:], "text"), sned.Tokens(tokens.ids[:1], "held out")
    start, end = RUN
    student, cost = model.view.fork(), Cost()
    DropLayers(layers=tuple(range(start + 1, end))).apply(student, {})
    masters = Masters(student, all_parameters(student, [start]))
    task = SpanTask(masters, model.view, student, RUN, [start], "nmse", cost)
    began = time.process_time()
    found = fit(task, text, held_out, Schedule(batch=1), journal=Journal(), key=["benchmark"], progress=SILENT)
    seconds = time.process_time() - began
    seen = text.n_tokens + len(found.curve) * held_out.n_tokens
    floor = _floor(model, text)
    return {
        "tokens": text.n_tokens,
        "held_out": list(found.held_out),
        "seconds_per_token": seconds / seen,
        "to_floor": seconds / seen / floor,
        "layer_tokens_per_token": cost.forward_layer_tokens / seen,
    }


@torch.no_grad()
def _floor(model: sned.Model, tokens: sned.Tokens) -> float:
    """Return the seconds that a token takes at least."""
    sweep, (start, end) = Sweep(model.view.fork()), RUN
    began = time.process_time()
    for ids in tokens.ids.split(1):
        hidden = sweep.enter(ids)
        for layer in range(end):
            hidden = sweep.step(layer, hidden)
        for _ in range(3):
            sweep.step(start, hidden)
    return (time.process_time() - began) / tokens.n_tokens
