"""Judging a model on held-out text, alone or beside another. May import everything below `jobs`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from sned.errors import DataError
from sned.evaluation.quality import measure_quality
from sned.jobs import compose
from sned.jobs.request import EVALUATION_TOKENS
from sned.jobs.session import Recorder, Session, open_model, read_text
from sned.models.count import count

if TYPE_CHECKING:
    from sned.jobs.request import LoadRequest, TextRequest
    from sned.progress import Progress
    from sned.report.schema import Report


def evaluate(load: LoadRequest, against: str | None, text: TextRequest, seed: int, progress: Progress) -> Report:
    """Measure perplexity, and with a model to compare with, divergence and top-1 agreement.

    Raises:
        DataError: the two models do not share a vocabulary.
    """
    session = Session(Recorder(progress))
    model = open_model(load, session)
    base = None if against is None else open_model(replace(load, model=against), session)
    if base is not None and base.view.geometry.vocab != model.view.geometry.vocab:
        raise DataError(
            f"{load.model} and {against} have different vocabularies, so their predictions cannot be compared.",
            hint="compare a pruned model with its own base",
        )
    tokens = read_text(model, text, EVALUATION_TOKENS, seed=seed, evaluation=True)
    with session.phase("evaluate"):
        quality = measure_quality(
            model.view, tokens, dense=None if base is None else base.view, progress=session.progress
        )
    reference = model if base is None else base
    heading = compose.heading(
        reference, count(model.view), command="", method="eval", options={"model": load.model}, seed=seed
    )
    return compose.build(
        heading,
        {"quality": compose.of_quality(quality, tokens), "cost": compose.of_cost(session)},
        {"warnings": session.progress.warnings},
    )
