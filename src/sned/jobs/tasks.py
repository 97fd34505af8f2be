"""Setting tasks to a model, and to its base beside it. May import everything below `jobs`."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sned.checkpoint.folders import check_output
from sned.data.packing import TextTooShortError
from sned.errors import ConfigError
from sned.evaluation import choices
from sned.evaluation.choices import judge_choices, make_items, too_few
from sned.evaluation.harness import judge_tasks, open_tasks
from sned.evaluation.item_log import SUFFIX, write_log
from sned.evaluation.stability import measure_stability
from sned.jobs.session import read_text
from sned.jobs.stability import of_stability

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from sned.checkpoint.model import Model
    from sned.evaluation.choices import Items
    from sned.evaluation.harness import Harness
    from sned.evaluation.items import TaskResult
    from sned.jobs.request import LoadRequest, TasksRequest, TextRequest
    from sned.jobs.session import Session

Results = dict[str, "TaskResult"]
"""By task."""


def prepare(request: TasksRequest, load: LoadRequest, session: Session) -> Harness | None:
    """Check all that can be checked before a model is loaded, and read the tasks that are not sned's own.

    Raises:
        CheckpointError: the folder for logs is taken.
        ConfigError: a task is unknown, or cannot be set to a streamed model.
        DataError: the data of a task is missing or malformed.
        MissingExtraError: a task needs lm-eval, which is not installed.
    """
    if request.out is not None:
        check_output(request.out, overwrite=request.overwrite)
    refuse_streamed(request, streamed=load.stream == "on")
    names = [name for name in request.names if name != choices.NAME]
    return open_tasks(names, session.progress) if names else None


def refuse_streamed(request: TasksRequest, *, streamed: bool) -> None:
    """Refuse what takes a model that is whole in memory.

    Raises:
        ConfigError: the model is not, and this is asked for.
    """
    others = [name for name in request.names if name != choices.NAME]
    if streamed and others:
        raise ConfigError(
            f"the task {others[0]!r} goes through lm-eval, which cannot run a streamed model",
            hint=f"use --stream off, or the task {choices.NAME} alone",
        )
    if streamed and request.cached:
        raise ConfigError("a streamed model keeps no cache", hint="leave out --cached, or use --stream off")


def read_items(request: TasksRequest, model: Model, text: TextRequest, seed: int) -> Items | None:
    """Return the items of `choices`, if it is asked for, out of text in windows of one item each.

    Raises:
        DataError: the text is missing, or too short for so many items.
    """
    if choices.NAME not in request.names:
        return None
    count = request.items or choices.ITEMS
    asked = replace(text, tokens=count * choices.SIZE, seq_len=choices.SIZE)
    try:
        tokens = read_text(model, asked, choices.SIZE, seed=seed, evaluation=True)
    except TextTooShortError as error:
        raise too_few(error.source, have=error.windows, wanted=count, size=choices.SIZE) from error
    return make_items(tokens, count, seed=seed)


def judge(
    request: TasksRequest,
    harness: Harness | None,
    items: Items | None,
    models: Mapping[str, Model],
    session: Session,
) -> tuple[dict[str, Any], dict[str, Results]]:
    """Set every task to every model, and return the block of the report, and by model what there is of single items.

    Args:
        request: What is asked.
        harness: The tasks that are not sned's own.
        items: Those of sned's own.
        models: The model as `model`, and the one to compare with, if there is one, as `base`.
        session: The job.
    """
    results: dict[str, Results] = {label: {} for label in models}
    with session.phase("evaluate"):
        for label, model in models.items():
            session.progress.info(f"setting tasks to {model.source}")
            if items is not None:
                judged = judge_choices(model.view, items, cached=request.cached, progress=session.progress)
                results[label][choices.NAME] = judged
            if harness is not None:
                results[label] |= judge_tasks(harness, model, limit=request.items, progress=session.progress)
    return _of_results(results["model"], results.get("base")), results


def write_items(folder: Path, results: Mapping[str, Results], session: Session) -> None:
    """Write a log of the items of every task into an existing folder, one folder for each model."""
    for label, judged in results.items():
        (folder / label).mkdir()
        for task, result in judged.items():
            if result.items:
                write_log(folder / label / f"{re.sub(r'[^A-Za-z0-9_.-]+', '_', task)}{SUFFIX}", result.items)
    if bare := [task for task, result in results["model"].items() if not result.items]:
        session.progress.info(f"no log of single items: {', '.join(bare)} (no choices of which one is right)")


def _of_results(after: Results, before: Results | None) -> dict[str, Any]:
    """Return the block of the report."""
    protocol = {
        task: {"items": result.count, "words": result.words, "higher_is_better": result.higher_is_better}
        for task, result in after.items()
    }
    stability: dict[str, Any] = {}
    for task, result in after.items():
        if before is not None and result.items:
            stability[task] = of_stability(measure_stability(before[task].items, result.items))
    return {
        "protocol": protocol,
        "dense": None if before is None else _figures(before),
        "pruned": _figures(after),
        "stability": stability,
    }


def _figures(results: Results) -> dict[str, Any]:
    return {"results": {task: dict(result.metrics) for task, result in results.items()}}
