"""Setting weights to zero: what it costs beside bare forward passes, and what it leaves of the model.

Times are of the processor, over all threads, so that whatever else the machine does counts little. TOKENS, SEQ_LEN,
DTYPE, SPARSITY and SEEDS may be set, the last two as lists with commas; ROWS names those whose perplexities are
measured, with semicolons. QUALITY=0 leaves out the perplexities, COSTS=0 the costs.
"""

from __future__ import annotations

import os
import time
from typing import Any

import torch

import sned
from sned.models.matrices import all_matrices, matrices
from sned.plans.budget import Budget
from sned.runtime.inputs import gather
from sned.runtime.lockstep import Stream
from sned.runtime.method import find_method
from sned.runtime.planner import make_plan
from sned.runtime.sweep import Cost, Sweep
from sned.score import importance, obs
from sned.score.quota import MatrixQuota, RowQuota

TOKENS, SEQ_LEN = int(os.environ.get("TOKENS", "65536")), int(os.environ.get("SEQ_LEN", "512"))
SPARSITY = [float(share) for share in os.environ.get("SPARSITY", "0.6,0.7").split(",")]
SEEDS = [int(seed) for seed in os.environ.get("SEEDS", "0,1,2").split(",")]
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "magnitude": ("magnitude", {}),
    "wanda": ("wanda", {}),
    "wanda, dsnot": ("wanda", {"refine": "dsnot"}),
    "wanda, owl": ("wanda", {"allocate": "owl"}),
    "wanda, alphapruning": ("wanda", {"allocate": "alphapruning"}),
    "wanda, neuroal": ("wanda", {"allocate": "neuroal"}),
    "wanda, neuroal global": ("wanda", {"allocate": "neuroal:reference=global"}),
    "wanda, neuroal both": ("wanda", {"allocate": "neuroal:step=both"}),
    "sparsegpt": ("sparsegpt", {}),
}
ROWS = os.environ.get("ROWS", ";".join(RUNS)).split(";")


def measure() -> dict[str, Any]:
    """Run every combination; ratios are to Wanda, and for Wanda and SparseGPT also to their floors."""
    model = sned.load("demo", dtype=os.environ.get("DTYPE", "bf16"))
    out: dict[str, Any] = {"tokens": TOKENS, "seq_len": SEQ_LEN, "dtype": str(model.view.dtype)}
    if os.environ.get("COSTS", "1") != "0":
        out["costs"] = _costs(model, _tokens(model, 0))
        out["reconstruction"] = _reconstruction(model, _tokens(model, 0))
    if os.environ.get("QUALITY", "1") != "0":
        out["perplexity"] = _quality(model)
    return out


def _tokens(model: sned.Model, seed: int) -> sned.Tokens:
    return sned.Tokens.from_source("builtin", model.tokenizer, tokens=TOKENS, seq_len=SEQ_LEN, seed=seed)


def _plan(model: sned.Model, name: str, tokens: sned.Tokens, share: float) -> tuple[Any, float, int]:
    """Return the plan, the processor's seconds, and the passes over the tokens."""
    method, options = RUNS[name]
    cost, start = Cost(), time.process_time()
    plan = make_plan(model.view.fork(), find_method(method), tokens, Budget(sparsity=share), options, cost=cost)
    seconds = time.process_time() - start
    return plan, seconds, cost.forward_layer_tokens / tokens.n_tokens / model.view.geometry.n_layers


def _costs(model: sned.Model, tokens: sned.Tokens) -> dict[str, Any]:
    forward, factors = _forward(model, tokens), _factors(model)
    rows: dict[str, Any] = {}
    for name in RUNS:
        _, seconds, passes = _plan(model, name, tokens, SPARSITY[0])
        rows[name] = {"seconds": seconds, "passes": passes}
    wanda = rows["wanda"]["seconds"]
    for row in rows.values():
        row["to_wanda"] = row["seconds"] / wanda
    rows["wanda"]["to_two_forwards"] = wanda / (2 * forward)
    rows["sparsegpt"]["to_floor"] = rows["sparsegpt"]["seconds"] / (2 * forward + factors)
    return rows | {"floor": {"forward": forward, "factors": factors}}


@torch.no_grad()
def _forward(model: sned.Model, tokens: sned.Tokens) -> float:
    """Return the seconds of one bare pass through the layers."""
    sweep, start = Sweep(model.view.fork()), time.process_time()
    for chunk in sweep.chunks(tokens.ids):
        for _ in sweep.final(chunk):
            pass
    return time.process_time() - start


def _factors(model: sned.Model) -> float:
    """Return the seconds of the Cholesky factors alone: one for each distinct input of every layer."""
    start = time.process_time()
    for layer in model.view.layers:
        for columns in {
            m.reads: m.columns for m in matrices(model.view, layer) if m.role not in ("k", "v", "up")
        }.values():
            torch.linalg.cholesky(torch.eye(columns, dtype=torch.float64))
    return time.process_time() - start


def _reconstruction(model: sned.Model, tokens: sned.Tokens) -> dict[str, float]:
    """Return in what share of the matrices each method's error in `W X` is the next one's or less, on dense inputs."""
    view, better = model.view.fork(), {"sparsegpt < wanda": 0, "wanda <= magnitude": 0}
    stream = Stream(view, tokens.take(max(1, 8192 // SEQ_LEN)).ids, Cost())
    for layer in view.layers:
        own = matrices(view, layer)
        inputs = gather(stream, layer, own, "gram", stay=False)
        for matrix in own:
            weight, read = matrix.of(view.layers[layer]).float(), inputs[matrix.reads]
            count = matrix.size // 2
            rows = RowQuota(torch.full((matrix.rows,), matrix.columns // 2))
            masked = {
                "magnitude": weight.masked_fill(MatrixQuota(count).select(weight.abs()), 0),
                "wanda": weight.masked_fill(rows.select(importance.wanda(weight, read.norm)), 0),
                "sparsegpt": obs.prune(weight, read.factor, MatrixQuota(count)).weight,
            }
            error = {n: float((((weight - w) @ read.gram) * (weight - w)).sum()) for n, w in masked.items()}
            better["sparsegpt < wanda"] += error["sparsegpt"] < error["wanda"]
            better["wanda <= magnitude"] += error["wanda"] <= error["magnitude"]
    return {name: n / len(all_matrices(view)) for name, n in better.items()}


def _quality(model: sned.Model) -> dict[str, Any]:
    held_out = sned.Tokens.from_source("builtin", model.tokenizer, tokens=16_384, seq_len=1024, role="evaluation")
    out: dict[str, Any] = {"dense": sned.evaluate(model, held_out).perplexity}
    for share in SPARSITY:
        for name in ROWS:
            found = []
            for seed in SEEDS if name != "magnitude" else [0]:
                plan, _, _ = _plan(model, name, _tokens(model, seed), share)
                found.append(sned.evaluate(sned.apply(plan, model), held_out).perplexity)
            out[f"{name} at {share:g}"] = found
            print(f"# {name} at {share:g}: {found}", flush=True)
    return out
