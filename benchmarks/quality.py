"""Held-out perplexity of every depth method at 6 of 30 layers, 65,536 tokens of calibration."""

from __future__ import annotations

from typing import Any

import sned

METHODS = ("replaceme", "uidl", "shortgpt", "deepest", "random")


def measure() -> dict[str, Any]:
    """Plan with each method on the same tokens and evaluate on the same text."""
    model = sned.load("demo")
    calibration = sned.Tokens.from_source("builtin", model.tokenizer, tokens=65_536, seq_len=1024)
    held_out = sned.Tokens.from_source("builtin", model.tokenizer, tokens=16_384, seq_len=1024, role="evaluation")
    out: dict[str, Any] = {"dense": sned.evaluate(model, held_out).perplexity}
    for name in METHODS:
        plan = sned.plan(model, name, calibration, layers=6)
        out[name] = {
            "perplexity": sned.evaluate(sned.apply(plan, model), held_out).perplexity,
            "plan": plan.summary(),
        }
    return out
