"""Planning with one method, and the estimate of what that will take. May import everything below `jobs`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from sned.checkpoint.folders import atomic_folder, check_output
from sned.jobs.session import Recorder, Session, job_facts, open_model, read_text, spare_source, unfinished_work
from sned.plans.store import save_plan
from sned.runtime.method import Method, find_method
from sned.runtime.planner import budgeted_layers, make_plan
from sned.runtime.sweep import BATCH_TOKENS, STREAM_CHUNK_TOKENS

if TYPE_CHECKING:
    from sned.checkpoint.model import Model
    from sned.data.tokens import Tokens
    from sned.jobs.request import PlanRequest, PruneRequest
    from sned.models.view import View
    from sned.plans.plan import Plan
    from sned.progress import Progress
    from sned.runtime.journal import Journal


def plan(request: PlanRequest, progress: Progress) -> Plan:
    """Plan, and write the plan folder.

    Raises:
        SnedError: any of them, before anything is written.
    """
    session = Session(Recorder(progress))
    method, options = validate(request)
    model = open_model(request.load, session)
    spare_source(model, request.out)
    calibration = calibrate(request, method, options, model, session)
    with unfinished_work(request, job_facts(request, model, calibration, options)) as journal:
        made = run_method(request, method, model.view, calibration, journal, session, source=model.source)
        with atomic_folder(request.out, overwrite=request.overwrite) as folder:
            save_plan(made, folder)
            if calibration is not None:
                calibration.save(folder / "calibration.safetensors")
    return made


def validate(request: PlanRequest) -> tuple[Method, dict[str, Any]]:
    """Check all that can be checked before a model is loaded.

    Raises:
        CheckpointError: the output is taken.
        ConfigError: the method or an option is unknown.
    """
    method = find_method(request.method)
    options = method.parse(request.options)
    check_output(Path(request.out), overwrite=request.overwrite)
    return method, options


def calibrate(
    request: PlanRequest, method: Method, options: dict[str, Any], model: Model, session: Session
) -> Tokens | None:
    """Return the calibration tokens, where the method looks at any; the budget is checked first."""
    budgeted_layers(model.view, method, request.budget, options)
    if not method.needs_tokens:
        return None
    with session.phase("calibrate"):
        return read_text(model, request.calibration, seed=request.seed)


def run_method(
    request: PlanRequest,
    method: Method,
    view: View,
    calibration: Tokens | None,
    journal: Journal,
    session: Session,
    *,
    source: str,
) -> Plan:
    """Run a method; afterwards the view shows the pruned model."""
    with session.phase("plan"):
        return make_plan(
            view,
            method,
            calibration,
            request.budget,
            request.options,
            source=source,
            seed=request.seed,
            journal=journal,
            progress=session.progress,
            cost=session.cost,
        )


def dry_run(request: PlanRequest | PruneRequest, progress: Progress) -> dict[str, Any]:
    """Return what a job would do and need, after all the checks that it makes before work begins.

    Seconds are extrapolated from running one batch through the first layers.
    """
    session = Session(Recorder(progress))
    method, options = validate(request)
    model = open_model(request.load, session)
    calibration = calibrate(request, method, options, model, session)
    view = model.view
    n = budgeted_layers(view, method, request.budget, options)
    tokens = 0 if calibration is None else calibration.n_tokens
    evaluation = getattr(request, "evaluation", None)
    evaluated = 0 if evaluation is None else evaluation.tokens
    steps = ["load"]
    steps += ["calibrate", "plan"] if method.needs_tokens else ["plan"]
    steps += [] if evaluation is None else ["evaluate", "save", "verify", "measure speed", "report"]
    return {
        "model": request.load.model,
        "method": method.name,
        "options": options,
        "steps": steps,
        "layers": {"present": view.geometry.n_layers, "to_remove": n},
        "calibration_tokens": tokens,
        "evaluation_tokens": evaluated,
        "streamed": view.streamed,
        "memory_bytes": memory_needed(view),
        "memory_available_bytes": psutil.virtual_memory().available,
        "seconds": (tokens + 2 * evaluated) * _seconds_per_token(view),
    }


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
    import time

    import torch

    from sned.models.forward import LayerRunner

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
