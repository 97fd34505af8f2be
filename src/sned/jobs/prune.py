"""The main job: plan, apply, evaluate, save, verify and report. May import everything below `jobs`."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import psutil

from sned.checkpoint.folders import atomic_folder
from sned.checkpoint.save import save_model
from sned.checkpoint.verify import verify
from sned.evaluation.quality import Quality, measure_quality
from sned.evaluation.samples import continue_greedily
from sned.evaluation.speed import race
from sned.jobs import compose
from sned.jobs.compare import Comparisons
from sned.jobs.plan import calibrate, run_method, validate
from sned.jobs.recipe_file import write_recipe
from sned.jobs.request import EVALUATION_TOKENS
from sned.jobs.resolve import of_prune
from sned.jobs.session import (
    Recorder,
    Session,
    check_disjoint,
    job_facts,
    open_model,
    read_text,
    spare_source,
    unfinished_work,
)
from sned.jobs.zeros import census_of
from sned.models.count import count
from sned.plans.store import save_plan
from sned.runtime.crew import ALONE
from sned.runtime.method import find_method

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sned.checkpoint.model import Model
    from sned.data.tokens import Tokens
    from sned.jobs.request import PruneRequest
    from sned.plans.plan import Plan
    from sned.progress import Progress
    from sned.report.schema import Report
    from sned.runtime.crew import Crew
    from sned.runtime.journal import Journal


@overload
def prune(request: PruneRequest, progress: Progress) -> Report: ...


@overload
def prune(request: PruneRequest, progress: Progress, crew: Crew) -> Report | None: ...


def prune(request: PruneRequest, progress: Progress, crew: Crew = ALONE) -> Report | None:
    """Prune a model into a folder that loads anywhere, with a report beside it.

    All processes of a crew plan; the one that leads does all the rest, and has the report.

    Raises:
        SnedError: any of them; the output is then whole or absent.
    """
    session = Session(Recorder(progress))
    method, options = validate(request, crew)
    for name in request.baselines:
        find_method(name)
    dense = open_model(request.load, session)
    spare_source(dense, request.out)
    calibration = calibrate(request, method, options, dense, session)
    evaluation = read_text(dense, request.evaluation, EVALUATION_TOKENS, seed=request.seed, evaluation=True)
    check_disjoint(calibration, evaluation, session, allow=request.allow_overlap)
    facts = job_facts(request, dense, calibration, options)
    with unfinished_work(request.out, facts, resume=request.resume, crew=crew) as journal:
        pruned = dense.with_view(dense.view.fork())
        plan = run_method(request, method, pruned.view, calibration, journal, session, source=dense.source, crew=crew)
        if not crew.leads:
            return None
        judged = _judge(request, plan, dense, pruned, calibration, evaluation, journal, session)
        heading = compose.heading(
            dense,
            count(pruned.view),
            command=request.command,
            method=method.name,
            options=dict(plan.stages[-1].options),
            seed=request.seed,
        )
        extra = {} if calibration is None else {"calibration": compose.of_text(calibration)}
        with atomic_folder(request.out, overwrite=request.overwrite) as folder:
            raced = measure_speed(dense, pruned, session) if request.speed else None
            known = {**heading, **extra, **judged, "speed": raced}
            report = write_output(folder, plan, dense, pruned, session, known, name=request.out.name, recipe=True)
            notes = folder / "sned"
            write_recipe(of_prune(request, method, options), notes / "recipe.yaml")
            if calibration is not None:
                calibration.save(notes / "calibration.safetensors")
            evaluation.save(notes / "evaluation.safetensors")
            shutil.copyfile(_journal_file(journal), notes / "journal.jsonl")
            session.progress.write(notes / "log.jsonl")
    return report


def _judge(
    request: PruneRequest,
    plan: Plan,
    dense: Model,
    pruned: Model,
    calibration: Tokens | None,
    evaluation: Tokens,
    journal: Journal,
    session: Session,
) -> dict[str, Any]:
    """Measure the quality of the pruned model beside the dense one, and that of what it is compared with."""
    key = [plan.digest, evaluation.digest, str(dense.view.dtype)]
    with session.phase("evaluate"):
        figures = journal.recall(
            "quality",
            key,
            lambda: asdict(measure_quality(pruned.view, evaluation, dense=dense.view, progress=session.progress)),
        )
        rows = Comparisons(request, plan, dense, evaluation, journal, session).rows(calibration)
        prompts = request.prompts
        samples = journal.recall("samples", [*key, prompts], lambda: write_samples(prompts, dense, pruned, session))
    return {
        "quality": compose.of_quality(Quality(**figures), evaluation),
        "baselines": rows,
        "samples": samples,
    }


def write_samples(prompts: Sequence[str], dense: Model, pruned: Model, session: Session) -> list[dict[str, str]]:
    """Let both models continue each prompt; a streamed one continues none."""
    if dense.streamed or pruned.streamed:
        session.progress.info("no samples and no speed: decoding a streamed model would read it once per token")
        return []
    with session.progress.task("write samples", 2 * len(prompts)) as advance:
        rows: list[dict[str, str]] = []
        for prompt in prompts:
            row = {"prompt": prompt}
            for label, model in (("dense", dense), ("pruned", pruned)):
                row[label] = continue_greedily(model.view, model.tokenizer, prompt)
                advance(1)
            rows.append(row)
    return rows


def write_output(
    folder: Path,
    plan: Plan,
    dense: Model,
    pruned: Model,
    session: Session,
    known: dict[str, Any],
    *,
    name: str,
    recipe: bool = False,
) -> Report:
    """Save and verify a pruned model in a folder, and write its report, page and card, which may tell of a recipe.

    Raises:
        CheckpointError: the disk is full.
        VerificationError: the saved model is not the planned one.
    """
    from sned.report.html import render
    from sned.report.schema import dump

    notes = folder / "sned"
    notes.mkdir()
    with session.phase("save"):
        proposal = save_model(pruned, folder, progress=session.progress)
        save_plan(plan, notes)
        sparsity = census_of(folder, plan, pruned)
    with session.phase("verify"):
        verification = verify(pruned.view, folder, stock=proposal.stock, progress=session.progress)
    report = compose.build(
        known,
        compose.of_plan(plan, dense.view.geometry),
        sparsity,
        {"verify": compose.of_verification(verification)},
        {"memory_to_run": compose.memory_to_run(dense.view, pruned.view)},
        {"bytes_on_disk": {"dense": compose.weight_bytes(dense.folder), "pruned": compose.weight_bytes(folder)}},
        {"cost": compose.of_cost(session), "warnings": session.progress.warnings},
    )
    dump(report, notes / "report.json")
    (notes / "report.html").write_text(render(report), encoding="utf-8")
    _write_card(report, dense, folder, name=name, recipe=recipe)
    return report


def _write_card(report: Report, dense: Model, folder: Path, *, name: str, recipe: bool) -> None:
    from sned.report.card import base_metadata, render_card

    base = dense.source if "/" in dense.source and not Path(dense.source).exists() else None
    written = render_card(report, base_metadata(dense.folder), name=name, base_model=base, recipe=recipe)
    (folder / "README.md").write_text(written, encoding="utf-8")


def measure_speed(dense: Model, pruned: Model, session: Session) -> dict[str, Any] | None:
    """Return the speed block, or None where a model is streamed or memory is short."""
    if dense.streamed or pruned.streamed:
        return None
    if psutil.virtual_memory().available < 0.2 * sum(p.nbytes for p in dense.view.model.parameters()):
        session.progress.warn("speed was not measured: memory is short")
        return None
    return compose.of_race(race(dense.view, pruned.view, progress=session.progress))


def _journal_file(journal: Journal) -> Path:
    assert journal.folder is not None  # noqa: S101 - a job's journal always has a folder
    journal.note("saved")
    return journal.folder / "journal.jsonl"
