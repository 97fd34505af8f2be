"""Reports with nothing in them but what a test is about."""

from __future__ import annotations

from typing import Any

from sned.report.schema import Report


def report(**blocks: Any) -> Report:
    """Return a report of next to nothing beside the given blocks."""
    params = {"dense": 1000, "pruned": 800, "removed": 0.2, "body_removed": 0.25}
    sizes = {"dense": 1000, "pruned": 800}
    model = {"source": "tiny", "family": "llama", "fingerprint": "ab" * 32, "params": params}
    data = {
        "schema": 1,
        "sned": "0.1.0",
        "command": "sned prune tiny",
        "method": "made up",
        "options": {},
        "seed": 0,
        "model": model | {"flops_per_token": sizes, "kv_bytes_per_token": sizes},
    }
    return Report.model_validate(data | blocks)


def stack(layers: int, removed: int | None = None) -> list[dict[str, Any]]:
    """Return what became of each layer, where at most one went."""
    states = ["removed" if layer == removed else "kept" for layer in range(layers)]
    return [{"layer": n, "state": s, "attention": s, "mlp": s} for n, s in enumerate(states)]
