"""The stages of a recipe as the jobs that they are. May import everything below `jobs`."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sned.checkpoint.folders import atomic_folder
from sned.jobs import compose, tasks
from sned.jobs.evaluate import open_models
from sned.jobs.heal import heal
from sned.jobs.prune import measure_speed, prune, write_samples
from sned.jobs.request import PROMPTS, HealRequest, PruneRequest
from sned.jobs.resolve import tasks_of
from sned.jobs.session import Recorder, Session
from sned.report.schema import load as load_report
from sned.training.healing import Healing
from sned.training.schedule import Schedule

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from sned.evaluation.harness import Harness
    from sned.jobs.recipe import EvalStage, HealStage, PruneStage, Recipe
    from sned.progress import Progress

FOUND = "found.json"
"""What a stage measured that writes no model: blocks of the report."""
ITEMS = "items"
"""Logs of the items of tasks, one folder for each model."""


def prune_stage(recipe: Recipe, body: PruneStage, out: Path, command: str, progress: Progress) -> None:
    """Prune the model of a recipe into a folder.

    Raises:
        SnedError: any of them; the folder is then whole or absent.
    """
    request = PruneRequest(
        load=recipe.load,
        method=body.method,
        budget=body.budget,
        out=out,
        options=body.options,
        calibration=recipe.text("calibration", body).request(),
        seed=recipe.seed,
        command=command,
        evaluation=recipe.text("evaluation", body).request(),
        allow_overlap=recipe.allow_overlap,
        baselines=tuple(body.baselines),
        speed=body.speed,
    )
    prune(request, progress)


def heal_stage(recipe: Recipe, body: HealStage, pruned: Path, out: Path, command: str, progress: Progress) -> None:
    """Train what the stage before wrote, into another folder.

    Raises:
        SnedError: any of them; the folder is then whole or absent.
    """
    assert body.lr is not None  # noqa: S101 - a recipe that is carried out is complete
    request = HealRequest(
        pruned=pruned,
        load=recipe.load,
        out=out,
        healing=Healing(
            train=body.train,
            loss=body.loss,
            last=body.last,
            rank=body.rank,
            alpha=body.alpha,
            first_share=body.first_share,
            schedule=Schedule(batch=body.batch, epochs=body.epochs, lr=body.lr),
        ),
        keep_zeros=body.keep_zeros,
        recompute=body.recompute,
        text=recipe.text("calibration", body).request(),
        evaluation=recipe.text("evaluation", body).request(),
        allow_overlap=recipe.allow_overlap,
        seed=recipe.seed,
        command=command,
    )
    heal(request, progress)


def set_tasks(
    recipe: Recipe, body: EvalStage, folder: Path, out: Path, harness: Harness | None, progress: Progress
) -> None:
    """Set tasks to a model that earlier stages wrote, and to its base, and keep the outcome in a folder.

    Raises:
        ConfigError: a model turns out to be streamed, and a task cannot be set to such a one.
        DataError: the text is missing or too short.
    """
    session, asked = Session(Recorder(progress)), tasks_of(body)
    models = open_models(replace(recipe.load, model=str(folder)), recipe.model, session)
    tasks.refuse_streamed(asked, streamed=any(model.streamed for model in models.values()))
    items = tasks.read_items(asked, models["model"], recipe.text("evaluation", body).request(), recipe.seed)
    block, results = tasks.judge(asked, harness, items, models, session)
    _keep(out, {"tasks": block}, session, results)


def complete_report(recipe: Recipe, folder: Path, out: Path, progress: Progress) -> None:
    """Measure speed and write samples for a model that earlier stages wrote, where they did not, into a folder.

    Raises:
        SnedError: a model cannot be loaded.
    """
    session, known = Session(Recorder(progress)), load_report(folder / "sned" / "report.json")
    found: dict[str, Any] = {}
    if known.speed is None or not known.samples:
        models = open_models(replace(recipe.load, model=str(folder)), recipe.model, session)
        if not known.samples:
            with session.phase("evaluate"):
                found["samples"] = write_samples(PROMPTS, models["base"], models["model"], session)
        if known.speed is None:
            found["speed"] = measure_speed(models["base"], models["model"], session)
    _keep(out, found, session)


def _keep(
    out: Path, found: dict[str, Any], session: Session, results: Mapping[str, tasks.Results] | None = None
) -> None:
    """Write what was measured, its cost and its warnings, and logs of the items of tasks."""
    blocks = {**found, "cost": compose.of_cost(session), "warnings": session.progress.warnings}
    with atomic_folder(out, overwrite=False) as folder:
        (folder / FOUND).write_text(json.dumps(blocks), encoding="utf-8")
        if results is not None:
            (folder / ITEMS).mkdir()
            tasks.write_items(folder / ITEMS, results, session)
        session.progress.write(folder / "log.jsonl")
