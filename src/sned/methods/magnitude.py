"""Magnitude pruning: the smallest weights go."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator

from sned.errors import ConfigError
from sned.models.matrices import all_matrices
from sned.plans.budget import Goal
from sned.plans.ops import Op
from sned.runtime.allocator import AllocateOption, Task, read_allocator
from sned.runtime.context import Context
from sned.runtime.method import method
from sned.runtime.sparsifier import KeepZerosOption, RefineOption, UpdateOption, by_score, check_pattern
from sned.runtime.sparsify import carry_out, sparsify
from sned.score import importance
from sned.score.masks import lowest_counts
from sned.score.quota import MatrixQuota, Quota

if TYPE_CHECKING:
    import torch


def _pattern(text: str) -> str:
    return check_pattern(text, ("matrix", "row", "global"))


def _reads_text(options: Mapping[str, Any]) -> bool:
    return options["refine"] is not None or options["update"] or read_allocator(options["allocate"])[0].needs_tokens


@method(
    paper="",
    prunes="weights",
    title="Magnitude pruning",
    budgets=("sparsity",),
    needs_tokens=False,
    may_read_text=_reads_text,
)
def magnitude(
    ctx: Context,
    *,
    goal: Goal,
    pattern: Annotated[
        str, AfterValidator(_pattern), "the smallest of each matrix, of each row, of all (global), or all but n of m"
    ] = "matrix",
    allocate: AllocateOption = "uniform",
    refine: RefineOption = None,
    update: UpdateOption = False,
    keep_zeros: KeepZerosOption = False,
) -> Iterator[Op]:
    """Set the smallest weights to zero.

    Ties go to the first weight, so that as many go as were asked for. `row` is the baseline of NeuroAL's code, `matrix`
    that of Wanda's and SparseGPT's.
    """
    sparsifier = by_score(
        "magnitude",
        lambda weight, _: importance.magnitude(weight),
        "nothing",
        refine=refine,
        update=update,
        keep_zeros=keep_zeros,
    )
    if pattern == "global":
        if allocate != "uniform":
            raise ConfigError(
                f"a global pattern decides itself what each matrix loses, not {allocate}", hint="use matrix"
            )
        task = Task(all_matrices(ctx.view), goal.sparsity, "matrix", sparsifier)
        yield from carry_out(ctx, task, _globally(ctx, task))
    else:
        yield from sparsify(ctx, goal, sparsifier, pattern=pattern, allocate=allocate)


def _globally(ctx: Context, task: Task) -> dict[str, Quota]:
    """Return how many weights of each matrix are among the smallest of all."""

    def weights() -> Iterator[torch.Tensor]:
        for layer in task.layers:
            with ctx.view.materialised(layer) as block:
                yield from (importance.magnitude(matrix.of(block)) for matrix in task.of(layer))

    total = round(task.sparsity * sum(matrix.size for matrix in task.matrices))
    counts = lowest_counts(weights, total)
    return {matrix.name: MatrixQuota(count) for matrix, count in zip(task.matrices, counts, strict=True)}
