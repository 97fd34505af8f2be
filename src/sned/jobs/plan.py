"""Planning with one method. May import everything below `jobs`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sned.checkpoint.folders import atomic_folder, check_output
from sned.errors import ConfigError
from sned.jobs.session import (
    Recorder,
    Session,
    free_memory,
    job_facts,
    open_model,
    read_text,
    spare_source,
    unfinished_work,
)
from sned.plans.store import save_plan
from sned.runtime.crew import ALONE
from sned.runtime.method import Method, all_methods, find_method
from sned.runtime.planner import check_budget, check_kind, make_plan

if TYPE_CHECKING:
    from sned.checkpoint.model import Model
    from sned.data.tokens import Tokens
    from sned.jobs.request import PlanRequest
    from sned.models.view import View
    from sned.plans.plan import Plan
    from sned.progress import Progress
    from sned.runtime.crew import Crew
    from sned.runtime.journal import Journal


def plan(request: PlanRequest, progress: Progress, crew: Crew = ALONE) -> Plan | None:
    """Plan, and write the plan folder; of a crew, the process that leads writes, and has the plan.

    Raises:
        SnedError: any of them, before anything is written.
    """
    session = Session(Recorder(progress))
    method, options = validate(request, crew)
    model = open_model(request.load, session)
    spare_source(model, request.out)
    calibration = calibrate(request, method, options, model, session)
    facts = job_facts(request, model, calibration, options)
    with unfinished_work(request.out, facts, resume=request.resume, crew=crew) as journal:
        made = run_method(request, method, model.view, calibration, journal, session, source=model.source, crew=crew)
        if not crew.leads:
            return None
        with atomic_folder(request.out, overwrite=request.overwrite) as folder:
            save_plan(made, folder)
            if calibration is not None:
                calibration.save(folder / "calibration.safetensors")
    return made


def validate(request: PlanRequest, crew: Crew = ALONE) -> tuple[Method, dict[str, Any]]:
    """Check all that can be checked before a model is loaded.

    Raises:
        CheckpointError: the output is taken.
        ConfigError: the method or an option is unknown, or it takes no such budget; or it runs in one process alone.
    """
    method = find_method(request.method)
    options = method.parse(request.options)
    if crew.size > 1 and not method.together:
        able = ", ".join(other.name for other in all_methods() if other.together)
        raise ConfigError(
            f"{method.name} runs in one process, and a launcher has started {crew.size}",
            hint=f"start it without the launcher; in several run: {able}",
        )
    check_kind(method, request.budget, options)
    check_output(Path(request.out), overwrite=request.overwrite)
    return method, options


def calibrate(
    request: PlanRequest, method: Method, options: dict[str, Any], model: Model, session: Session
) -> Tokens | None:
    """Return the calibration tokens, where the method looks at any; the budget is checked first."""
    check_budget(model.view, method, request.budget, options)
    if not method.reads_text(options):
        return None
    with session.phase("calibrate"):
        return read_text(model, request.calibration, method.calibration_tokens, seed=request.seed)


def run_method(
    request: PlanRequest,
    method: Method,
    view: View,
    calibration: Tokens | None,
    journal: Journal,
    session: Session,
    *,
    source: str,
    crew: Crew = ALONE,
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
            free_memory=free_memory(view.device),
            crew=crew,
        )
