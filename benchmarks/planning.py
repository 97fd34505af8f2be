"""Planning ReplaceMe (selection and fit, probe off) against a bare forward pass over the same tokens."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch

import sned
from sned.plans.budget import Budget
from sned.runtime.method import find_method
from sned.runtime.planner import make_plan
from sned.runtime.sweep import BATCH_TOKENS, Cost

ROUNDS, TOKENS, SEQ_LEN = 3, 16_384, 1024


def measure() -> dict[str, Any]:
    """Alternate the two; ratios are medians over rounds of planning time to forward time."""
    model = sned.load("demo", dtype="bf16")
    tokens = sned.Tokens.from_source("builtin", model.tokenizer, tokens=TOKENS, seq_len=SEQ_LEN)
    hf = model.view.model
    ratios: dict[str, list[float]] = {"full_forward": [], "body_forward": []}
    cost = Cost()
    for _ in range(ROUNDS):
        bare = _forward(hf, tokens.ids)
        body = _forward(hf.base_model, tokens.ids)
        start = time.perf_counter()
        cost = Cost()
        make_plan(model.view.fork(), find_method("replaceme"), tokens, Budget(layers=6), {"probe": 0}, cost=cost)
        seconds = time.perf_counter() - start
        ratios["full_forward"].append(seconds / bare)
        ratios["body_forward"].append(seconds / body)
    passes = cost.forward_layer_tokens / (tokens.n_tokens * model.view.geometry.n_layers)
    return {
        "planning_to_bare_forward": {name: statistics.median(values) for name, values in ratios.items()},
        "limit": 1.8,
        "passes_over_the_tokens": passes,
        "why_more_than_one": "an eighth of the tokens scouts, so that moments are summed for few cuts only",
        "tokens": tokens.n_tokens,
    }


@torch.no_grad()
def _forward(model: Any, ids: torch.Tensor) -> float:
    start = time.perf_counter()
    for batch in ids.split(BATCH_TOKENS // SEQ_LEN):
        model(batch, use_cache=False)
    return time.perf_counter() - start
