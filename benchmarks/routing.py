"""What picking features out of the stream costs: speed of models whose branches read and write parts of it.

The floor is what the saved operations promise. Beside it stands a model as small whose MLPs are narrower and nothing
else, so that nothing is gathered. Features and channels are drawn by chance: speed does not depend on which.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import torch

import sned
from sned.evaluation.speed import race
from sned.models.count import count
from sned.plans.ops import Keep

if TYPE_CHECKING:
    from sned.models.view import View

DTYPES = os.environ.get("DTYPES", "bf16,fp32").split(",")
REMOVED = [float(share) for share in os.environ.get("REMOVED", "0.3,0.5").split(",")]
KINDS = {
    "routed": ("attn.read", "attn.write", "mlp.read", "mlp.hidden", "mlp.write"),
    "next to each other": ("attn.read", "attn.write", "mlp.read", "mlp.hidden", "mlp.write"),
    "narrow MLPs": ("mlp.hidden",),
}


def measure() -> dict[str, Any]:
    """Return ratios of prefill and decode, pruned to dense, and what share of the promised ratio they are."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    return {dtype: _of(dtype) for dtype in DTYPES}


def _of(dtype: str) -> list[dict[str, Any]]:
    model = sned.load("demo", dtype=dtype)
    body = _body_flops(model.view)
    rows = []
    for share in REMOVED:
        for name in KINDS:
            view = _cut(model.view, name, share)
            laps = race(model.view, view, rounds=3)
            promised = body / _body_flops(view)
            rows.append(
                {
                    "model": name,
                    "body_removed": round(1 - count(view).body_params / count(model.view).body_params, 4),
                    "promised": round(promised, 3),
                    "prefill": round(laps.prefill_ratio, 3),
                    "decode_body": round(laps.decode_body_ratio, 3),
                    "prefill_of_promised": round(laps.prefill_ratio / promised, 3),
                }
            )
    return rows


def _body_flops(view: View) -> int:
    return 2 * count(view).body_params


def _cut(dense: View, name: str, share: float) -> View:
    """Return a fork whose layers lost a share of their parameters, the same of every axis."""
    kept = 1.0
    while True:
        view = dense.fork()
        generator = torch.Generator().manual_seed(0)
        for axis in [a for a in dense.geometry.axes.values() if a.kind in KINDS[name]]:
            n = max(1, round(kept * axis.size / 16) * 16)
            order = torch.randperm(axis.size, generator=generator)[:n].tolist()
            units = range(n) if name == "next to each other" else sorted(order)
            Keep(axis=axis.name, units=tuple(units)).apply(view, {})
        if count(view).body_params <= (1 - share) * count(dense).body_params:
            return view
        kept -= 0.02
