"""Judging a model on held-out text and by tasks, alone or beside another. May import everything below `jobs`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sned.checkpoint.folders import atomic_folder
from sned.errors import DataError
from sned.evaluation.quality import measure_quality
from sned.jobs import compose, tasks
from sned.jobs.request import EVALUATION_TOKENS
from sned.jobs.session import Recorder, Session, open_model, read_text
from sned.models.count import count

if TYPE_CHECKING:
    from sned.checkpoint.model import Model
    from sned.jobs.request import LoadRequest, TasksRequest, TextRequest
    from sned.progress import Progress
    from sned.report.schema import Report


def evaluate(
    load: LoadRequest,
    against: str | None,
    text: TextRequest,
    seed: int,
    progress: Progress,
    asked: TasksRequest | None = None,
) -> Report:
    """Measure perplexity, and with a model to compare with, divergence and top-1 agreement; then set tasks, if any.

    Raises:
        ConfigError: a task is unknown, or cannot be set to a streamed model.
        DataError: the two models do not share a vocabulary, or the data of a task is missing.
        MissingExtraError: a task needs lm-eval, which is not installed.
    """
    session = Session(Recorder(progress))
    harness = None if asked is None else tasks.prepare(asked, load, session)
    models = open_models(load, against, session)
    model, base = models["model"], models.get("base")
    if asked is not None:
        tasks.refuse_streamed(asked, streamed=any(one.streamed for one in models.values()))
    items = None if asked is None else tasks.read_items(asked, model, text, seed)
    tokens = read_text(model, text, EVALUATION_TOKENS, seed=seed, evaluation=True)
    with session.phase("evaluate"):
        quality = measure_quality(model.view, tokens, dense=base.view if base else None, progress=session.progress)
    blocks: dict[str, Any] = {"quality": compose.of_quality(quality, tokens)}
    options: dict[str, Any] = {"model": load.model}
    if asked is not None:
        blocks["tasks"], results = tasks.judge(asked, harness, items, models, session)
        if asked.out is not None:
            with atomic_folder(asked.out, overwrite=asked.overwrite) as folder:
                tasks.write_items(folder, results, session)
        options |= {"tasks": list(asked.names), "items": asked.items, "cached": asked.cached}
    heading = compose.heading(base or model, count(model.view), command="", method="eval", options=options, seed=seed)
    return compose.build(heading, blocks, {"cost": compose.of_cost(session), "warnings": session.progress.warnings})


def open_models(load: LoadRequest, against: str | None, session: Session) -> dict[str, Model]:
    """Return the model, and the one to compare with, if any, as `base`.

    Raises:
        DataError: the two do not share a vocabulary.
    """
    models = {"model": open_model(load, session)}
    if against is None:
        return models
    models = {"base": open_model(replace(load, model=against), session), **models}
    if models["base"].view.geometry.vocab != models["model"].view.geometry.vocab:
        raise DataError(
            f"{load.model} and {against} have different vocabularies, so their predictions cannot be compared.",
            hint="compare a pruned model with its own base",
        )
    return models
