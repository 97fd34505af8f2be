"""OWL: layers with more outliers among their scores lose fewer weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import torch
from pydantic import Field

from sned.runtime.allocator import Task, allocator
from sned.runtime.context import Context
from sned.runtime.inputs import Inputs, gather
from sned.runtime.lockstep import Stream
from sned.runtime.quotas import Shares, by_layer
from sned.score.importance import wanda
from sned.score.outliers import outlier_ratio
from sned.score.schedules import outlier_shares

if TYPE_CHECKING:
    from sned.models.matrices import Matrix

COUNTED = 4
"""One window of so many is looked at: a layer's share of outliers hardly depends on how much text it saw."""


@allocator(
    paper="arXiv:2310.05175",
    title="Outlier Weighed Layerwise Sparsity (OWL): A Missing Secret Sauce for Pruning LLMs to High Sparsity",
)
def owl(
    ctx: Context,
    task: Task,
    *,
    multiple: Annotated[float, Field(gt=0), "a score this many times the mean of its layer is an outlier"] = 5.0,
    spread: Annotated[float, Field(ge=0, lt=1), "half of the range of the layers' shares"] = 0.08,
    windows: Annotated[int | None, Field(ge=1), "windows of text to count outliers on; default: one of 4"] = None,
) -> Shares:
    """Give layers whose scores have more outliers a smaller share of zeros.

    Scores are `|weight| * norm of its input` in the dense model; a layer's matrices get the same share. One forward
    pass over a part of the text finds them, where the released code runs two over all of it. The shares are then
    moved and bounded as a whole so that the budget is met, where that code clips without making up for it.
    """
    tokens = ctx.calibration.take(windows or -(-len(ctx.calibration) // COUNTED))
    stream = Stream(ctx.view, tokens.ids, ctx.cost)
    ratios: dict[int, float] = {}
    with ctx.progress.task("find outliers", len(task.layers) * tokens.n_tokens) as advance:
        for layer in task.layers:
            key = [*ctx.state(tokens), layer, multiple]
            kept = ctx.journal.lookup("outliers", key)
            if kept is None:
                inputs = gather(stream, layer, task.of(layer), "norms", advance, stay=False)
                kept = _ratio(ctx, layer, task.of(layer), inputs, multiple)
                ctx.journal.keep("outliers", key, kept)
            else:
                advance(tokens.n_tokens)
            ratios[layer] = kept
    shares = outlier_shares(torch.tensor(list(ratios.values())), task.sparsity, spread)
    ctx.scores["allocation"] = {
        "evidence": "outliers, percent",
        "layers": {str(layer): ratio for layer, ratio in ratios.items()},
    }
    return by_layer(task.matrices, dict(zip(ratios, shares.tolist(), strict=True)))


def _ratio(ctx: Context, layer: int, matrices: list[Matrix], inputs: dict[str, Inputs], multiple: float) -> float:
    with ctx.view.materialised(layer) as block:
        weights = {matrix: matrix.of(block) for matrix in matrices}
        return outlier_ratio([wanda(w, inputs[m.reads].norm) for m, w in weights.items()], multiple)
