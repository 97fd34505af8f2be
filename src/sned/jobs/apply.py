"""A plan onto a model, saved and verified. May import everything below `jobs`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sned.checkpoint.folders import atomic_folder, check_output
from sned.jobs import compose
from sned.jobs.prune import write_output
from sned.jobs.session import Recorder, Session, open_model, spare_source
from sned.models.count import count
from sned.plans.store import load_plan

if TYPE_CHECKING:
    from pathlib import Path

    from sned.jobs.request import LoadRequest
    from sned.progress import Progress
    from sned.report.schema import Report


def apply(load: LoadRequest, plan: Path, out: Path, *, overwrite: bool, command: str, progress: Progress) -> Report:
    """Apply a plan to the model it was made for, and write the pruned model.

    Raises:
        PlanError: the plan is malformed or for another model.
        SnedError: loading, saving or verifying failed; the output is then absent.
    """
    session = Session(Recorder(progress))
    check_output(out, overwrite=overwrite)
    made = load_plan(plan)
    dense = open_model(load, session)
    spare_source(dense, out)
    pruned = dense.with_view(dense.view.fork())
    with session.phase("apply"):
        made.apply(pruned.view)
    stage = made.stages[-1]
    known = compose.heading(
        dense,
        count(pruned.view),
        command=command,
        method=stage.method,
        options=dict(stage.options),
        seed=int(stage.options.get("seed", 0)),
    )
    with atomic_folder(out, overwrite=overwrite) as folder:
        report = write_output(folder, made, dense, pruned, session, known, name=out.name)
        session.progress.write(folder / "sned" / "log.jsonl")
    return report
