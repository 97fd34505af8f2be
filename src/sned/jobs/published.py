"""Results that others published, as plans, and plans as files that others read. May import everything below `jobs`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from sned.checkpoint.folders import atomic_folder, check_output
from sned.errors import CheckpointError, PlanError
from sned.jobs.inspect import open_to_look
from sned.jobs.request import LoadRequest
from sned.jobs.session import Recorder, Session, open_model
from sned.models.count import count
from sned.plans.plan import Base, Plan, Size, Stage
from sned.plans.published import open_published, read_published, to_blockpruner, to_multipruner
from sned.plans.store import load_plan, save_plan

if TYPE_CHECKING:
    from pathlib import Path

    from sned.progress import Progress

Whose = Literal["blockpruner", "multipruner"]


def import_plan(
    load: LoadRequest,
    file: Path,
    out: Path,
    *,
    reorder: bool,
    blocks: int | None,
    overwrite: bool,
    progress: Progress,
) -> Plan:
    """Read a result file of BlockPruner or MultiPruner as a plan for a model, and write the plan folder.

    Args:
        load: The model that the result is for.
        file: The result.
        out: The plan folder.
        reorder: Whether a MultiPruner file that does not say so counts units by magnitude.
        blocks: How many removals of a BlockPruner file to take; all by default.
        overwrite: Whether to replace the folder.
        progress: Told of what goes on.

    Raises:
        PlanError: the file is no such result, or does not fit the model.
        SnedError: the model cannot be loaded, or the plan not be written.
    """
    check_output(out, overwrite=overwrite)
    whose, document = open_published(file)
    model = open_model(load, Session(Recorder(progress)), to_run=False)
    ops = read_published(file, model.view, reorder=reorder, blocks=blocks)
    view = model.view.fork()
    base, dense = Base.of(view, model.source), Size.of(count(view))
    for op in ops:
        op.apply(view, {})
    options: dict[str, Any] = {"file": file.name, "format": whose}
    if whose == "multipruner":
        options["reorder"] = document.get("weight_reorder", reorder)
    stage = Stage(method="imported", options=options, ops=tuple(ops))
    made = Plan(base=base, stages=(stage,), dense=dense, pruned=Size.of(count(view)))
    with atomic_folder(out, overwrite=overwrite) as folder:
        save_plan(made, folder)
    return made


def export_plan(path: Path, whose: Whose, base: str | None, progress: Progress) -> dict[str, Any]:
    """Return a plan as a result file of BlockPruner or MultiPruner; JSON.

    Args:
        path: The plan.
        whose: Which of the two.
        base: The base model, whose sizes a MultiPruner file holds; where the plan says, by default.
        progress: Told of what goes on.

    Raises:
        PlanError: there is no such plan, or the file could not say what it does.
        SnedError: the base model is not where it should be.
    """
    plan = load_plan(path)
    if whose == "blockpruner":
        return to_blockpruner(plan)
    source = base or plan.base.source
    if not source:
        raise PlanError("the plan does not say which model it is for", hint="name it with --base MODEL")
    try:
        _, view = open_to_look(LoadRequest(source, device="cpu"), Session(Recorder(progress)))
    except CheckpointError as error:
        raise CheckpointError(error.args[0], hint="say with --base MODEL where the base model is now") from error
    return to_multipruner(plan, view.geometry)
