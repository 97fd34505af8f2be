"""Searching for blocks to remove: the plain algorithm against sharing and racing, in one run.

A plain evaluation costs the same for every candidate, so that its time is measured on a sample of each step's
candidates and multiplied; the sequence it would find is known from the exact search, whose losses are the plain
ones bit for bit (checked on the same sample). Times are of the processor, over all threads, so that whatever else the
machine does counts little.
"""

from __future__ import annotations

import os
import time
from typing import Any

import torch

import sned
from sned.plans.budget import Budget
from sned.plans.ops import DropLayers
from sned.runtime.greedy import block_proposals
from sned.runtime.method import find_method
from sned.runtime.objective import Perplexity
from sned.runtime.planner import make_plan
from sned.runtime.sweep import BATCH_TOKENS, Cost, Sweep
from sned.runtime.trials import Trials

BLOCKS = int(os.environ.get("BLOCKS", "12"))
TOKENS, SEQ_LEN = int(os.environ.get("TOKENS", "16384")), 512
SAMPLE = 4


def measure() -> dict[str, Any]:
    """Run both searches whole, and a sample of the plain one; then the machinery against bare layers."""
    model = sned.load("demo", dtype=os.environ.get("DTYPE", "bf16"))
    tokens = sned.Tokens.from_source("builtin", model.tokenizer, tokens=TOKENS, seq_len=SEQ_LEN)
    runs = {mode: _search(model, tokens, mode) for mode in os.environ.get("MODES", "exact,racing").split(",")}
    n_layers = model.view.geometry.n_layers
    evaluations = sum(2 * n_layers - step for step in range(BLOCKS))
    plain = _plain_seconds(model, tokens) * evaluations
    passes = {mode: run["layer_tokens"] / tokens.n_tokens / n_layers for mode, run in runs.items()}
    return {
        "blocks": BLOCKS,
        "tokens": tokens.n_tokens,
        "exhaustive": {"seconds": plain, "evaluations": evaluations, "passes": evaluations},
        "speedup": {mode: plain / run["seconds"] for mode, run in runs.items()},
        "fewer_layer_tokens": {mode: evaluations / value for mode, value in passes.items()},
        "sequences": {mode: run["sequence"] for mode, run in runs.items()},
        "same_sequence": len({tuple(run["sequence"]) for run in runs.values()}) == 1,
        "overhead_over_bare_layers": _overhead(model, tokens),
    }


def _search(model: sned.Model, tokens: sned.Tokens, mode: str) -> dict[str, Any]:
    cost, start = Cost(), time.process_time()
    plan = make_plan(
        model.view.fork(), find_method("blockpruner"), tokens, Budget(blocks=BLOCKS), {"search": mode}, cost=cost
    )
    seconds = time.process_time() - start
    trace = plan.stages[0].scores["trace"]
    return {
        "seconds": seconds,
        "layer_tokens": cost.forward_layer_tokens,
        "sequence": [row["cut"] for row in trace],
        "losses": [row["loss"] for row in trace],
    }


@torch.no_grad()
def _plain_seconds(model: sned.Model, tokens: sned.Tokens) -> float:
    """Return the seconds of one plain evaluation: transformers' forward pass and loss, window by window."""
    view = model.view.fork()
    sweep = Sweep(view)
    trials = Trials(sweep, Perplexity(sweep), {}, print)
    cuts = list(block_proposals(view).values())
    some = [cuts[i * len(cuts) // SAMPLE].ops for i in range(SAMPLE)]
    few = tokens.ids[:4]
    seconds = []
    for ops, (_, shared) in zip(some, sorted(trials.measure(some, few)), strict=True):
        assert torch.equal(trials.plain(ops, few), shared), "sharing changed a loss"
        with ops[0].trial(view, {}):
            start = time.process_time()
            total = sum(float(model_loss(view.model, ids)) for ids in few.split(BATCH_TOKENS // SEQ_LEN))
            seconds.append(time.process_time() - start)
        assert total > 0
    return min(seconds) * len(tokens.ids) / len(few)


def model_loss(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Return the loss as transformers computes it."""
    return model(ids, labels=ids, use_cache=False).loss


@torch.no_grad()
def _overhead(model: sned.Model, tokens: sned.Tokens) -> float:
    """Return the time of a measurement over that of its bare layers and losses."""
    view, cost = model.view.fork(), Cost()
    sweep = Sweep(view, cost)
    judge = Perplexity(sweep)
    ids = tokens.ids[: BATCH_TOKENS // SEQ_LEN]
    candidates = [[DropLayers(layers=(i,))] for i in list(view.layers)[-8:]]
    trials = Trials(sweep, judge, {}, print)
    ratios = []
    for _ in range(4):
        before, start = cost.forward_layer_tokens, time.process_time()
        list(trials.measure(candidates, ids))
        whole = time.process_time() - start
        n_steps = (cost.forward_layer_tokens - before) // ids.numel()
        hidden = sweep.enter(ids)
        start = time.process_time()
        for step in range(n_steps):
            sweep.step(step % len(view.layers), hidden)
        for _ in candidates:
            judge.per_token(ids, hidden)
        ratios.append(whole / (time.process_time() - start))
    return min(ratios[1:])
