"""NeuroAL: shares that rise with depth, and with what a row's reader loses, as far as activations stay alike."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from sned.errors import ConfigError
from sned.runtime.alignment import Alignment, Reference
from sned.runtime.allocator import Task, allocator
from sned.runtime.context import Context
from sned.runtime.quotas import Shares, by_layer, matrix_counts
from sned.score.line_search import lowest_of_valley
from sned.score.schedules import ramp, row_shares

SPREADS = (0.0, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08, 0.09, 0.10, 0.12, 0.15, 0.20, 0.25)
"""Half ranges of the shares that are tried: those of the released code, and none."""
SEARCHED = 16
"""One window of so many is searched on."""


@allocator(
    paper="arXiv:2411.07066",
    title="Zeroth-Order Adaptive Neuron Alignment Based Pruning without Re-Training",
)
def neuroal(
    ctx: Context,
    task: Task,
    *,
    step: Annotated[
        Literal["block", "row", "both"], "let shares differ by layer, by row of a matrix, or first one then the other"
    ] = "block",
    reference: Annotated[
        Reference, "compare with the dense model (global), or with dense layers on pruned inputs (local)"
    ] = "local",
    every: Annotated[bool, "try every spread, even if few show where the lowest lies"] = False,
    windows: Annotated[int | None, Field(ge=1), "windows of text to search on; default: one of 16"] = None,
) -> Shares:
    """Choose how unequal the shares are by how little the activations then differ from those of the dense model.

    The block step lets shares rise evenly with depth; the row step gives rows whose readers lose most a smaller share.
    Each tries a list of spreads on a few windows, with masks that are taken back, and takes the one whose norms of
    activations, relative to their sum, are closest (equation 3).

    Departures: no spread at all is among those tried; shares meet the budget exactly; readers are found by what they
    read, not by their place in a list, so that grouped queries, fused and parallel layers are served. `reference` is
    local as in the released code, where errors of earlier layers go unseen and queries, keys and values always match;
    with the dense model itself, global, what the last layers lose is hardly seen, and they are emptied too far
    (SmolLM2-135M at 60%: perplexity 98 local, 147 global, 124 uniform).
    """
    if step != "block" and task.pattern != "row":
        raise ConfigError(
            f"step={step} lets rows differ, which the pattern {task.pattern} does not", hint="use --pattern row"
        )
    alignment = Alignment(ctx, task, reference, windows or max(1, len(ctx.calibration) // SEARCHED))
    spreads = [spread for spread in SPREADS if spread <= min(task.sparsity, 1 - task.sparsity)]
    chosen, told = Shares(), {}
    if step != "row":
        depths = [ramp(len(task.layers), task.sparsity, spread).tolist() for spread in spreads]
        candidates = [by_layer(task.matrices, dict(zip(task.layers, depth, strict=True))) for depth in depths]
        chosen, told["block"] = _best(ctx, alignment, spreads, candidates, every=every)
    if step != "block":
        counts = matrix_counts(task.matrices, chosen, task.sparsity)
        means = {matrix.name: n / matrix.size for matrix, n in zip(task.matrices, counts, strict=True)}
        drops = alignment.drops(chosen)
        rows = [{name: row_shares(drop, means[name], spread) for name, drop in drops.items()} for spread in spreads]
        candidates = [Shares(chosen.matrices, shares) for shares in rows]
        chosen, told["row"] = _best(ctx, alignment, spreads, candidates, every=every)
    ctx.scores["allocation"] = {"evidence": f"activations, {reference}"} | told
    return chosen


def _best(
    ctx: Context, alignment: Alignment, spreads: list[float], candidates: list[Shares], *, every: bool
) -> tuple[Shares, dict[str, Any]]:
    """Return the candidate that moves activations least, and what was found on the way."""
    with ctx.progress.task("try spreads", len(candidates) * alignment.work) as advance:

        def judge(index: int, bound: float) -> float:
            return alignment.judge(candidates[index], bound, advance)

        if every:
            known: dict[int, float] = {}
            for index in range(len(candidates)):
                known[index] = judge(index, min(known.values(), default=float("inf")))
            best = min(known, key=lambda i: (known[i], i))
        else:
            best, known = lowest_of_valley(len(candidates), judge)
        advance((len(candidates) - len(known)) * alignment.work)
    tried = {str(spreads[i]): known[i] for i in sorted(known) if known[i] != float("inf")}
    return candidates[best], {"spread": spreads[best], "tried": tried, "given_up": len(known) - len(tried)}
