"""What a job would do and need, before it does anything. May import everything below `jobs`."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

import psutil
import torch

from sned.jobs.plan import calibrate, validate
from sned.jobs.request import EVALUATION_TOKENS, PruneRequest
from sned.jobs.session import Recorder, Session, open_model
from sned.models.count import branch_counts, units_counts
from sned.models.forward import LayerRunner
from sned.models.matrices import all_matrices
from sned.plans.budget import Budget, Goal, goal_of
from sned.runtime.allocator import read_allocator
from sned.runtime.greedy import present_blocks
from sned.runtime.planner import check_budget
from sned.runtime.sweep import BATCH_TOKENS, STREAM_CHUNK_TOKENS
from sned.runtime.trials import HELD_BYTES
from sned.runtime.valuation import find_units
from sned.runtime.widths import HEADS, MLP, group_sizes
from sned.training.memory import memory_for_gates

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sned.jobs.request import PlanRequest
    from sned.models.view import View
    from sned.progress import Progress
    from sned.runtime.crew import Crew
    from sned.runtime.method import Method

SHARED = {"exhaustive": 1.0, "exact": 0.5, "racing": 0.05, "loo": 0.5, "shapley": 0.25}
"""About the part of measuring every candidate on every token from the first layer on that is really done."""
_BROKEN = 3
"""A model predicts no better than a guess once one of so many of its attentions and MLPs are gone, in any order."""
_BLOCKS_FIRST = 0.4
"""About the part of the budget that a method which also narrows layers spends on whole blocks."""
_FORTH_AND_BACK = 3
"""Passes that gradients take."""
_KINDS = {"mix": ("attn", "mlp"), "mha": ("attn",), "mlp": ("mlp",)}


def dry_run_together(request: PlanRequest, progress: Progress, crew: Crew) -> dict[str, Any] | None:
    """Say once what all processes of a crew would do: where one leads.

    Raises:
        SnedError: what `dry_run` raises; the method runs in one process alone.
    """
    validate(request, crew)
    return dry_run(request, progress) if crew.leads else None


def dry_run(request: PlanRequest, progress: Progress) -> dict[str, Any]:
    """Return what a job would do and need, after all the checks that it makes before work begins.

    Seconds are extrapolated from running one batch through the first layers.
    """
    session = Session(Recorder(progress))
    method, options = validate(request)
    model = open_model(request.load, session)
    calibration = calibrate(request, method, options, model, session)
    view = model.view
    budget = check_budget(view, method, request.budget, options)
    tokens = 0 if calibration is None else calibration.take(windows_read(len(calibration), options)).n_tokens
    evaluated, compared = 0, 0
    steps = ["load", "calibrate", "plan"] if method.reads_text(options) else ["load", "plan"]
    if isinstance(request, PruneRequest):
        evaluated = request.evaluation.tokens or EVALUATION_TOKENS
        # where parts of layers go, also a random model of the same shape
        in_parts = method.prunes == "width" or (request.budget.kind in ("blocks", "remove") and "search" in options)
        compared = 2 + len(request.baselines) + in_parts
        steps += ["evaluate", *["measure speed"] * request.speed, "save", "verify", "report"]
    tried = trials(view, method, budget, options)
    how = "exact" if "merge" in options else options.get("search", options.get("metric"))
    passes = tried * SHARED[how] if how in SHARED else sweeps(method, options)
    if "refresh" in options:
        passes += _FORTH_AND_BACK * tried / (_tried_together(options) * options["refresh"])
    held = HELD_BYTES if how in SHARED else 0
    if budget.sparsity is not None:
        held = memory_to_sparsify(view, tokens)
    if method.goes_back is not None and method.goes_back(options) and calibration is not None:
        held = memory_for_gates(view, 0, calibration.length)
        passes *= 4 / 3 if view.streamed else 1  # layers run again on the way back
    return {
        "model": request.load.model,
        "method": method.name,
        "options": options,
        "steps": steps,
        "remove": to_remove(view, budget),
        "trials": tried,
        "calibration_tokens": tokens,
        "evaluation_tokens": evaluated,
        "streamed": view.streamed,
        "memory_bytes": memory_needed(view) + held,
        "memory_available_bytes": psutil.virtual_memory().available,
        "seconds": (passes * tokens + compared * evaluated) * _seconds_per_token(view),
    }


def to_remove(view: View, budget: Budget) -> dict[str, Any]:
    """Return how much of what a budget removes, and of how many."""
    if budget.layers is not None:
        return {"what": "layers", "count": budget.layers, "of": len(view.layers)}
    if budget.sparsity is not None:
        weights = sum(matrix.size for matrix in all_matrices(view))
        return {"what": "weights", "count": round(budget.sparsity * weights), "of": weights}
    if budget.blocks is not None:
        return {"what": "blocks", "count": budget.blocks, "of": len(present_blocks(view))}
    return {"what": "parameters", "count": goal_of(budget, view.geometry).params, "of": view.geometry.n_params}


def sweeps(method: Method, options: Mapping[str, Any]) -> float:
    """Return about how many times a method that does not search runs the model over its calibration text.

    Layers whose weights are set to zero are run before and after; an allocator looks at the dense model first.
    """
    if method.passes is not None:
        return method.passes(options)
    if "allocate" not in options:
        return 1
    return 2 + read_allocator(options["allocate"])[0].needs_tokens


def windows_read(windows: int, options: Mapping[str, Any]) -> int:
    """Return how many windows of calibration text a method looks at."""
    return min(windows, options.get("sentences") or options.get("windows") or windows)


def memory_to_sparsify(view: View, tokens: int) -> int:
    """Return the bytes of the stream of all tokens, and of the products of a layer's inputs with their factors."""
    layer = {m.reads: m.columns for m in all_matrices(view) if m.layer == next(iter(view.layers))}
    return tokens * view.geometry.hidden * view.dtype.itemsize + 20 * sum(n * n for n in layer.values())


def trials(view: View, method: Method, budget: Budget, options: Mapping[str, Any]) -> int:
    """Estimate how many candidates a method tries, a greedy search in all its steps; 0 for one that tries nothing."""
    if "merge" in options:
        return _merges(view, budget, options)
    if options.get("metric") in ("loo", "shapley"):
        return _absences(view, options)
    if "search" not in options:
        return 0
    goal = goal_of(budget, view.geometry)
    blocks = [b for b in present_blocks(view) if b[0] in _KINDS[options.get("types", "mix")]]
    if options.get("one_shot") or not blocks:
        return len(blocks)
    if "proposals" in options:
        return _tried_together(options) * _steps(view, goal, options)
    narrows = method.prunes == "width"
    gone = _blocks_gone(view, goal, blocks, _BLOCKS_FIRST if narrows else 1.0)
    if options.get("stock"):
        return sum(len(blocks) - 1 - 2 * step for step in range(gone // 2))
    found = sum(len(blocks) - step for step in range(gone))
    return found + (_narrowings(view, goal, options) if narrows else 0)


def _merges(view: View, budget: Budget, options: Mapping[str, Any]) -> int:
    """Estimate the merges of layers that are tried: all before each one that is made, or each once on a walk."""
    rounds = math.ceil((budget.layers or 0) / (options["merge"] - 1)) if options["threshold"] is None else 1
    return rounds * max(1, len(view.layers) - options["merge"])


def _absences(view: View, options: Mapping[str, Any]) -> int:
    """Estimate the sets of units whose absence is tried: each unit alone, or all prefixes of many orders."""
    last = options["max_end"] or view.geometry.n_layers - 1
    n = len(find_units(view, options["units"], options["min_start"], last))
    if options["metric"] == "loo":
        return n
    met = options["permutations"] * (n - 1) / (_BROKEN if options["bounded"] else 1)
    return min(2**n, math.ceil(met) + 2)


def _blocks_gone(view: View, goal: Goal, blocks: list[Any], part: float) -> int:
    if goal.blocks is not None:
        return min(goal.blocks, len(blocks))
    mean = sum(branch_counts(view, layer, which).params for which, layer in blocks) / len(blocks)
    return min(len(blocks), math.ceil(part * (goal.params or 0) / mean))


def _narrowings(view: View, goal: Goal, options: Mapping[str, Any]) -> int:
    """Estimate the candidates of a search that narrows MLPs a group of channels at a time."""
    n_axes = sum(axis.kind == MLP for axis in view.geometry.axes.values())
    return n_axes * _cuts(view, MLP, (1 - _BLOCKS_FIRST) * (goal.params or 0), options)


def _steps(view: View, goal: Goal, options: Mapping[str, Any]) -> int:
    """Estimate the cuts of a search without stages, were they all of the kind that most parameters are in."""
    return _cuts(view, HEADS if options["kinds"] == "heads" else MLP, goal.params or 0, options)


def _tried_together(options: Mapping[str, Any]) -> int:
    """Count what is tried in a step of a search that is given proposals: so many of every kind of cut."""
    n_kinds = (1 + (options["kinds"] == "both")) * (1 + options["whole_blocks"])
    return n_kinds * options["proposals"]


def _cuts(view: View, kind: str, params: float, options: Mapping[str, Any]) -> int:
    """Count the groups of units that hold so many parameters; none where a model has no such axes."""
    axis = next((axis for axis in view.geometry.axes.values() if axis.kind == kind), None)
    if axis is None:
        return 0
    group = group_sizes(view, options["mlp_group"], options["attn_group"])[kind]
    return math.ceil(params / units_counts(view, axis, group).params)


def memory_needed(view: View, *, streamed: bool | None = None) -> int:
    """Return the bytes that weights and activations of a planning pass take, roughly.

    A pass holds the stream at every layer boundary for one chunk of tokens.
    """
    geometry, width = view.geometry, view.dtype.itemsize
    layers = [geometry.layer_params(i) for i in range(geometry.n_layers)]
    stream_mode = view.streamed if streamed is None else streamed
    resident = geometry.n_params - sum(layers) + max(layers) if stream_mode else geometry.n_params
    tokens = STREAM_CHUNK_TOKENS if stream_mode else BATCH_TOKENS
    return resident * width + tokens * geometry.hidden * width * (geometry.n_layers + 1)


def _seconds_per_token(view: View) -> float:
    """Time one batch through the first layers, and scale to all."""
    runner = LayerRunner(view)
    some = view.active[: max(2, len(view.active) // 10)]
    ids = torch.zeros((1, 512), dtype=torch.int64, device=view.device)
    with torch.no_grad():
        hidden, best = runner.enter(ids), float("inf")
        for _ in range(3):
            start, x = time.perf_counter(), hidden
            for index in some:
                with view.materialised(index):
                    x = runner.layer(index, x)
            best = min(best, time.perf_counter() - start)
    return best / ids.numel() * len(view.active) / len(some)
