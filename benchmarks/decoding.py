"""Decoding speed after 6 of 30 layers are gone, on the decoder layers and on the whole model."""

from __future__ import annotations

from typing import Any

import sned
from sned.evaluation.speed import race


def measure() -> dict[str, Any]:
    """Alternate dense and pruned; what to cut does not matter to speed, so the deepest layers go."""
    model = sned.load("demo")
    pruned = sned.apply(sned.plan(model, "deepest", layers=6), model)
    result = race(model.view, pruned.view, rounds=9)
    return {
        "decode_ratio_body": result.decode_body_ratio,
        "decode_ratio_whole": result.decode_ratio,
        "prefill_ratio_whole": result.prefill_ratio,
        "layers_ratio": 30 / 24,
        "limit_body": 0.9 * 30 / 24,
        "head_share_of_dense_decoding": result.dense.head / result.dense.decode,
        "protocol": result.protocol,
    }
