"""LLM-Streamline: cut a run of layers, and train one light layer to do what they did."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from sned.errors import BudgetError, ConfigError
from sned.plans.ops import Op
from sned.runtime.context import Context
from sned.runtime.depth import check_span, explain, least_missed, measure_distances, scouts
from sned.runtime.method import method
from sned.runtime.replacement import Inherit, Kind, Replacement, default_inherit
from sned.score.select import Cut, ranked_cuts
from sned.training.loop import train
from sned.training.masters import Masters, Names, all_parameters, set_values
from sned.training.options import Batch, Epochs, Rate, Warmup
from sned.training.schedule import Schedule
from sned.training.tasks import ModelTask, SpanTask, Task

if TYPE_CHECKING:
    from sned.score.losses import StateLoss


def _passes(options: Mapping[str, Any]) -> float:
    """Estimate the passes of the text: for the maps, then through the dense model and, forth and back, what learns."""
    if options["replacement"] == "nothing":
        return 1.2
    return 1.2 + options["epochs"] * (3.5 if options["loss"] in ("kl", "ce") else 1.0)


@method(
    paper="arXiv:2403.19135",
    prunes="depth",
    title="Streamlining Redundant Layers to Compress Large Language Models",
    calibration_tokens=131_072,
    passes=_passes,
    together=True,
)
def streamline(
    ctx: Context,
    *,
    layers: int,
    replacement: Annotated[
        Kind,
        "what stands for the run: a layer of the model's own kind, one without attention, a linear map, or nothing",
    ] = "layer",
    inherit: Annotated[
        Inherit | None,
        "layer: start as one of the run, as their mean, or as the first with ReplaceMe's map folded in (fitted); "
        "default: fitted, or first where the MLP's output cannot be fitted",
    ] = None,
    replacements: Annotated[int, Field(ge=1), "layer and mlp: how many stand for the run"] = 1,
    loss: Annotated[
        Literal["nmse", "mse", "cosine", "kl", "ce"],
        "trained on: states after the run (nmse, mse, cosine), or through the whole model (kl, ce)",
    ] = "nmse",
    span: Annotated[str | None, "cut these layers instead of choosing, such as 13:20 for 13 to 19"] = None,
    probe: Annotated[int, Field(ge=1), "best runs by cosine whose loss is measured before choosing"] = 3,
    min_start: Annotated[int, "first layer that may go"] = 1,
    max_end: Annotated[int | None, "end (excluded) of the layers that may go; default: all but the last"] = None,
    lr: Rate = 5e-4,
    epochs: Epochs = 1,
    batch: Batch = 1,
    warmup: Warmup = 0.03,
) -> Iterator[Op]:
    """Cut the run whose input and output are most alike, and train what stands for it to turn one into the other.

    With `layers` n, a run of n + 1 layers goes and one comes back (eq. 3 to 5). The dense model is run along with the
    training, and no states are stored. Departures from the released code: what is trained sees the model's own causal
    mask; learning rates follow the steps of the optimiser; the best weights by held-out loss are kept; a token counts
    relative to the size of its state (`mse` is as published); the best few runs by cosine, on an eighth of the text,
    are tried before one is chosen; a layer starts with the map of ReplaceMe, and `linear` too, folded into the MLP
    before the run, whose output matrix is trained. Losses through the whole model take more time and memory and give
    more (SmolLM2-135M, 6 of 30 layers, 16,384 tokens: perplexity 32.4 with ReplaceMe, 32.1 on states, 30.7 on kl).
    """
    made = Replacement(replacement, inherit or default_inherit(ctx, replacement), replacements)
    if not made.own and (replacements != 1 or inherit):
        raise ConfigError(f"replacement={replacement} takes neither replacements nor inherit", hint="leave them out")
    whole = layers + replacements if made.own else layers
    if span:
        cuts = [check_span(ctx, span, whole)]
    else:
        windows = scouts(ctx) if probe > 1 else None  # else nothing decides between those that look alike
        triangles = measure_distances(ctx, "all", windows=windows)
        explain(ctx, triangles)
        cuts = ranked_cuts(triangles["cosine"], whole, made.boundaries(ctx, min_start, max_end), [])[:probe]
    if not cuts:
        raise BudgetError(f"no run of {whole} layers may be cut here", hint="lower --layers, or widen the range")
    cut, ops = _choose(ctx, made, cuts)
    yield from ops
    if replacement != "nothing":
        first, names = made.trained(ctx, cut)
        trained = {i: own or all_parameters(ctx.view, [i])[i] for i, own in names.items()}
        schedule = Schedule(batch=batch, epochs=epochs, lr=lr, warmup=warmup)
        yield from set_values(ctx, _train(ctx, trained, (first, cut[1]), loss, schedule))


def _choose(ctx: Context, made: Replacement, cuts: list[Cut]) -> tuple[Cut, list[Op]]:
    """Return the run to cut, and how: of the few that turn the stream least, the one that is missed least."""
    candidates = made.ops(ctx, cuts)
    best = least_missed(ctx, cuts, candidates) if len(cuts) > 1 else 0
    start, end = cuts[best]
    distance = ctx.scores["distance"][start][end - start] if "distance" in ctx.scores else None
    ctx.scores["cuts"] = [{"start": start, "end": end, "distance": distance}]
    own = made.maps(ctx, cuts[best])
    fits = ctx.scores.get("fit", [])
    ctx.scores["fit"] = [fit for fit in fits if (fit["layer"], fit["start"], fit["end"]) in own]
    return cuts[best], candidates[best]


def _train(ctx: Context, names: Names, span: Cut, loss: Any, schedule: Schedule) -> Masters:
    """Return the parameters after training; `ctx.scores["training"]` keeps how it went."""
    key: list[Any] = [*ctx.state(None), list(span), loss, {str(i): own for i, own in names.items()}]
    masters = Masters(ctx.view, names, crew=ctx.crew)
    task: Task
    if loss in ("kl", "ce"):
        task = ModelTask(masters, ctx.view, loss, ctx.dense, ctx.cost)
    else:
        near: StateLoss = loss
        task = SpanTask(masters, ctx.dense, ctx.view, span, list(names), near, ctx.cost)
    train(ctx, task, loss, schedule, key)
    return masters
