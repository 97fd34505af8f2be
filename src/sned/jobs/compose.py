"""Putting the parts of a report together from what a job measured. May import everything below `jobs`."""

from __future__ import annotations

import math
import platform
import resource
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers

from sned import __version__
from sned.canon import digest, format_span, parse_span
from sned.jobs.stage_blocks import of_stages
from sned.models.count import Counts, count
from sned.plans.diff import layer_states
from sned.report.schema import Report

if TYPE_CHECKING:
    from sned.checkpoint.model import Model
    from sned.checkpoint.verify import Verification
    from sned.data.tokens import Tokens
    from sned.evaluation.quality import Quality
    from sned.evaluation.speed import Race
    from sned.jobs.session import Session
    from sned.models.geometry import Geometry
    from sned.models.view import View
    from sned.plans.diff import LayerState
    from sned.plans.plan import Plan

CONTEXT = 1024
"""Tokens of context that the memory to run a model is stated for."""


def heading(
    model: Model, pruned: Counts, *, command: str, method: str, options: dict[str, Any], seed: int
) -> dict[str, Any]:
    """Return the blocks that every report has."""
    view = model.view
    dense = count(view)
    mark = view.fingerprint
    return {
        "schema": 1,
        "sned": __version__,
        "command": command,
        "method": method,
        "options": options,
        "seed": seed,
        "model": {
            "source": model.source,
            "family": mark.model_type,
            "fingerprint": digest([mark.model_type, mark.geometry, mark.weights]),
            "params": {
                "dense": dense.params,
                "pruned": pruned.params,
                "removed": 1 - pruned.params / dense.params,
                "body_removed": 1 - pruned.body_params / dense.body_params,
                "body_dense": dense.body_params,
                "body_pruned": pruned.body_params,
            },
            "flops_per_token": {"dense": dense.flops_per_token, "pruned": pruned.flops_per_token},
            "kv_bytes_per_token": {"dense": dense.kv_bytes_per_token, "pruned": pruned.kv_bytes_per_token},
        },
        "environment": environment(),
    }


def of_plan(plan: Plan, geometry: Geometry) -> dict[str, Any]:
    """Return the blocks that say what a plan does and why; `geometry` is that of its base model."""
    scores = {key: value for stage in plan.stages for key, value in stage.scores.items()}
    states = layer_states(plan)
    blocks: dict[str, Any] = {
        "plan": {"digest": plan.digest, "ops": len(plan.ops), "summary": plan.summary()},
        "stack": [
            {"layer": i, "state": s.layer, "attention": s.attn, "mlp": s.mlp, "note": s.note} | _widths(i, s, geometry)
            for i, s in enumerate(states)
        ],
        "chosen": [
            {
                "start": c["start"],
                "end": c["end"],
                "distance": c["distance"],
                "kind": _kind(states[c["start"]].layer, c),
            }
            for c in scores.get("cuts", [])
        ],
    }
    if "distance" in scores:
        blocks["importance"] = {"layers": scores["influence"], "distance": scores["distance"]}
    if "probe" in scores:
        blocks["probe"] = [
            {"start": p["start"], "end": p["end"], "perplexity": perplexity(p["nll"])} for p in scores["probe"]
        ]
    if "fit" in scores:
        names = ("layer", "tokens", "rank", "condition", "ridge", "relative_error", "estimator", "structure")
        blocks["fit"] = [{name: fit[name] for name in names} for fit in scores["fit"]]
    return blocks | of_stages(plan)


def _widths(layer: int, state: LayerState, geometry: Geometry) -> dict[str, Any]:
    """Return how much is left of what was trimmed of a layer."""
    trimmed = {
        "attention": (state.attn_units, "attn.group", "KV groups"),
        "mlp": (state.mlp_units, "mlp.hidden", "MLP channels"),
    }
    shares, words = {}, [state.note] if state.note and state.layer == "folded" else []
    for part, (units, kind, unit) in trimmed.items():
        if units and getattr(state, "attn" if part == "attention" else "mlp") == "trimmed":
            left, size = len(parse_span(units)), geometry.axes[f"layers.{layer}.{kind}"].size
            shares[f"{part}_left"] = left / size
            words.append(f"{left:,} of {size:,} {unit} kept")
    for kind, units in state.features:
        part, verb = kind.split(".")
        left = f"{len(parse_span(units)):,} of {geometry.axes[f'layers.{layer}.{kind}'].size:,} features"
        words.append(f"{'attention' if part == 'attn' else 'MLP'} {verb}s {left}")
    if state.merged:
        words.append(f"merged with layers {state.merged}")
    if state.refitted:
        words.append("refitted")
    if state.biased:
        words.append("bias added")
    return shares | {"note": "; ".join(words)} if shares or state.features else {}


def _kind(state: str, cut: dict[str, Any]) -> str:
    return "folded" if cut.get("folded") else state


def of_text(tokens: Tokens) -> dict[str, Any]:
    """Describe tokens."""
    return {
        "source": tokens.source,
        "tokens": tokens.n_tokens,
        "seq_len": tokens.length,
        "digest": tokens.digest,
    }


def of_quality(quality: Quality, tokens: Tokens) -> dict[str, Any]:
    """Return the quality block."""
    dense = quality.dense_nll
    return {
        "protocol": of_text(tokens),
        "dense": None if dense is None else {"perplexity": perplexity(dense), "nll": dense},
        "pruned": {"perplexity": perplexity(quality.nll), "nll": quality.nll},
        "kl": quality.kl,
        "top1_agreement": quality.top1_agreement,
    }


def of_race(race: Race) -> dict[str, Any]:
    """Return the speed block."""
    from sned.evaluation.speed import PROMPT

    paces = {
        name: {"prefill_tokens_per_s": PROMPT / pace.prefill, "decode_tokens_per_s": 1 / pace.decode}
        for name, pace in (("dense", race.dense), ("pruned", race.pruned))
    }
    return {
        **paces,
        "prefill_ratio": race.prefill_ratio,
        "decode_ratio": race.decode_ratio,
        "decode_body_ratio": race.decode_body_ratio,
        "head_share": race.dense.head / race.dense.decode,
        "protocol": race.protocol,
    }


def of_verification(verification: Verification) -> dict[str, Any]:
    """Return the verify block; errors are relative to the largest logit."""
    return {
        "max_logit_error": verification.max_logit_error,
        "cached_decode_error": verification.cached_decode_error,
        "stock_class": verification.stock_class,
    }


def of_cost(session: Session) -> dict[str, Any]:
    """Return the cost block."""
    return {
        "seconds": dict(session.seconds),
        "forward_layer_tokens": session.cost.forward_layer_tokens,
        "peak_rss_bytes": peak_rss_bytes(),
    }


def peak_rss_bytes() -> int:
    """Return the most memory this process has held at once."""
    status = Path("/proc/self/status")
    if status.exists():  # unlike getrusage, this does not count what a parent held before it started us
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def perplexity(nll: float | None) -> float | None:
    """Return `exp(nll)`, or None where it is not finite."""
    return math.exp(nll) if nll is not None and nll < 700 else None


def memory_to_run(dense: View, pruned: View) -> dict[str, int]:
    """Return the bytes that weights and the cache of `CONTEXT` tokens take, for both models."""
    counts = {"dense": (count(dense), dense), "pruned": (count(pruned), pruned)}
    return {k: c.params * v.dtype.itemsize + c.kv_bytes_per_token * CONTEXT for k, (c, v) in counts.items()}


def weight_bytes(folder: Path) -> int:
    """Return the size of the weight files of a folder."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def removed_layers(plan: Plan) -> str:
    """Return the layers that a plan removes or replaces, as a span."""
    return format_span(i for i, s in enumerate(layer_states(plan)) if s.layer in ("removed", "replaced"))


def environment() -> dict[str, Any]:
    """Describe what the figures were measured with."""
    return {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "cpu": _cpu_name(),
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def build(*parts: dict[str, Any]) -> Report:
    """Return the report that blocks make up, checked against the schema."""
    merged: dict[str, Any] = {}
    for part in parts:
        merged |= part
    return Report.model_validate(merged)
