"""Speed, memory and size of a model, beside another one. May import everything below `jobs`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from sned.errors import ConfigError
from sned.evaluation.speed import race
from sned.jobs import compose
from sned.jobs.session import Recorder, Session, open_model
from sned.models.count import count

if TYPE_CHECKING:
    from sned.jobs.request import LoadRequest
    from sned.progress import Progress
    from sned.report.schema import Report


def bench(load: LoadRequest, against: str | None, progress: Progress) -> Report:
    """Measure prefill and decode of a model in alternation with another, or with itself where none is given.

    Raises:
        ConfigError: streaming was asked for; a streamed model has no speed worth measuring.
    """
    session = Session(Recorder(progress))
    if load.stream == "on":
        raise ConfigError("a streamed model reads its weights from disk for every token", hint="use --stream off")
    model = open_model(replace(load, stream="off"), session)
    base = model if against is None else open_model(replace(load, model=against, stream="off"), session)
    result = race(base.view, model.view, progress=session.progress)
    heading = compose.heading(
        base, count(model.view), command="", method="bench", options={"model": load.model}, seed=0
    )
    sizes = {"dense": compose.weight_bytes(base.folder), "pruned": compose.weight_bytes(model.folder)}
    return compose.build(
        heading,
        {"memory_to_run": compose.memory_to_run(base.view, model.view)},
        {"speed": compose.of_race(result), "bytes_on_disk": sizes, "cost": compose.of_cost(session)},
    )
