"""Speed, memory and size of a model, beside another one. May import everything below `jobs`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from sned.errors import ConfigError
from sned.evaluation.semi_structured import convert
from sned.evaluation.speed import race
from sned.jobs import compose
from sned.jobs.session import Recorder, Session, open_model
from sned.models.count import count

if TYPE_CHECKING:
    from sned.jobs.request import LoadRequest
    from sned.progress import Progress
    from sned.report.schema import Report


def bench(load: LoadRequest, against: str | None, progress: Progress, *, sparse_kernels: bool = False) -> Report:
    """Measure prefill and decode of a model in alternation with another, or with itself where none is given.

    Args:
        load: The model.
        against: The other.
        progress: Told of what goes on.
        sparse_kernels: Whether the model's 2:4 matrices are to run on sparse kernels, those of the other on dense ones.

    Raises:
        ConfigError: streaming was asked for, and a streamed model has no speed worth measuring; or there are no sparse
            kernels for the model here.
    """
    session = Session(Recorder(progress))
    if load.stream == "on":
        raise ConfigError("a streamed model reads its weights from disk for every token", hint="use --stream off")
    model = open_model(replace(load, stream="off"), session)
    base = model if against is None else open_model(replace(load, model=against, stream="off"), session)
    counted, memory = count(model.view), compose.memory_to_run(base.view, model.view)
    if sparse_kernels:
        base = base if against is not None else model.with_view(model.view.fork())
        done = convert(model.view)
        progress.info(f"{done.converted} of {done.converted + done.left} matrices run on sparse kernels")
    result = race(base.view, model.view, progress=session.progress)
    asked = {"model": load.model, "sparse_kernels": sparse_kernels}
    heading = compose.heading(base, counted, command="", method="bench", options=asked, seed=0)
    sizes = {"dense": compose.weight_bytes(base.folder), "pruned": compose.weight_bytes(model.folder)}
    return compose.build(
        heading,
        {"memory_to_run": memory},
        {"speed": compose.of_race(result), "bytes_on_disk": sizes, "cost": compose.of_cost(session)},
    )
