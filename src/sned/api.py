"""The Python interface: what `import sned` offers. May import everything but the command line."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sned.checkpoint.folders import atomic_folder
from sned.checkpoint.model import Model, load
from sned.checkpoint.save import save_model
from sned.checkpoint.verify import verify
from sned.evaluation.quality import Quality, measure_quality
from sned.jobs import prune as prune_job
from sned.jobs.request import LoadRequest, PruneRequest, TextRequest
from sned.plans.budget import Budget
from sned.progress import SILENT, Progress
from sned.runtime.journal import Journal
from sned.runtime.method import Method, find_method
from sned.runtime.planner import make_plan

if TYPE_CHECKING:
    from sned.data.tokens import Tokens
    from sned.plans.plan import Plan
    from sned.report.schema import Report

__all__ = ["Model", "apply", "evaluate", "load", "plan", "prune", "save"]


def plan(
    model: Model,
    method: str | Method,
    calibration: Tokens | None = None,
    *,
    layers: int | None = None,
    blocks: int | None = None,
    remove: float | None = None,
    remove_of: Literal["all", "body"] = "all",
    sparsity: float | None = None,
    seed: int = 0,
    workdir: Path | None = None,
    progress: Progress = SILENT,
    **options: Any,
) -> Plan:
    """Plan with a method; the model itself stays as it is.

    Args:
        model: From `load`.
        method: A name that `sned methods` lists, or a generator decorated with `sned.method`.
        calibration: Tokens for methods that look at text.
        layers: Budget in layers.
        blocks: Budget in attentions and MLPs.
        remove: Budget as a share, 0 to 1, of the parameters.
        remove_of: Share of all parameters, or of those in the decoder layers.
        sparsity: Budget as a share, 0 to 1, of the weights of the decoder layers' matrices that are to be zero.
        seed: Of every random choice.
        workdir: Keeps finished work, so that a second call after a kill goes on.
        progress: Told of what goes on.
        options: The method's own.
    """
    return make_plan(
        model.view.fork(),
        find_method(method),
        calibration,
        Budget(layers=layers, blocks=blocks, remove=remove, remove_of=remove_of, sparsity=sparsity),
        options,
        source=model.source,
        seed=seed,
        journal=Journal(workdir),
        progress=progress,
    )


def apply(plan: Plan, model: Model) -> Model:
    """Return the pruned model; the dense one stays as it is, and the two share what was not edited.

    Raises:
        PlanError: the plan was made for another model.
    """
    view = model.view.fork()
    plan.apply(view)
    return model.with_view(view)


def save(model: Model, out: str | Path, *, overwrite: bool = False, progress: Progress = SILENT) -> Path:
    """Write a model as a Hugging Face folder, reload it in a fresh process, and compare.

    Raises:
        CheckpointError: the folder is taken, or the disk full.
        VerificationError: the reloaded model computes something else; nothing is kept.
    """
    with atomic_folder(Path(out), overwrite=overwrite) as folder:
        proposal = save_model(model, folder, progress=progress)
        verify(model.view, folder, stock=proposal.stock, progress=progress)
    return Path(out)


def evaluate(model: Model, tokens: Tokens, *, against: Model | None = None, progress: Progress = SILENT) -> Quality:
    """Measure a model on held-out tokens, beside another one if given."""
    return measure_quality(model.view, tokens, dense=None if against is None else against.view, progress=progress)


def prune(
    source: str,
    method: str,
    out: str | Path,
    *,
    layers: int | None = None,
    blocks: int | None = None,
    remove: float | None = None,
    remove_of: Literal["all", "body"] = "all",
    sparsity: float | None = None,
    calibration: TextRequest | None = None,
    evaluation: TextRequest | None = None,
    seed: int = 0,
    overwrite: bool = False,
    progress: Progress = SILENT,
    **options: Any,
) -> Report:
    """Do the whole job of `sned prune`: plan, apply, evaluate, save, verify and report."""
    request = PruneRequest(
        load=LoadRequest(source),
        method=method,
        budget=Budget(layers=layers, blocks=blocks, remove=remove, remove_of=remove_of, sparsity=sparsity),
        out=Path(out),
        options=options,
        calibration=calibration or TextRequest(),
        evaluation=evaluation or TextRequest(),
        seed=seed,
        overwrite=overwrite,
        command=f"sned.prune({source!r}, {method!r}, ...)",
    )
    return prune_job.prune(request, progress)
