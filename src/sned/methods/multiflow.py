"""MultiFlow: the weights that carry least from what their input receives to what their output emits go."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from pydantic import AfterValidator

from sned.plans.budget import Goal
from sned.plans.ops import Op
from sned.runtime.allocator import AllocateOption
from sned.runtime.context import Context
from sned.runtime.method import method
from sned.runtime.sparsifier import KeepZerosOption, RefineOption, UpdateOption, by_score, check_pattern, known
from sned.runtime.sparsify import sparsify
from sned.score.importance import multiflow as score_of


def _pattern(text: str) -> str:
    return check_pattern(text, ("row", "matrix"))


@method(
    paper="arXiv:2404.05621",
    prunes="weights",
    title="MULTIFLOW: Shifting Towards Task-Agnostic Vision-Language Pruning",
    budgets=("sparsity",),
)
def multiflow(
    ctx: Context,
    *,
    goal: Goal,
    pattern: Annotated[
        str, AfterValidator(_pattern), "the lowest scores of each matrix, of each row, or all but n of m"
    ] = "matrix",
    allocate: AllocateOption = "uniform",
    refine: RefineOption = None,
    update: UpdateOption = False,
    keep_zeros: KeepZerosOption = False,
) -> Iterator[Op]:
    """Set weights to zero whose magnitude times the signal through their input and their output is smallest.

    In `row`, as in NeuroAL's code, what the output emits is the same for all that are compared. The paper shares the
    budget out by the magnitudes of a whole modality; here that is the allocator's.
    """
    sparsifier = by_score(
        "multiflow",
        lambda weight, inputs: score_of(weight, known(inputs).norm),
        "norms",
        refine=refine,
        update=update,
        keep_zeros=keep_zeros,
    )
    yield from sparsify(ctx, goal, sparsifier, pattern=pattern, allocate=allocate)
