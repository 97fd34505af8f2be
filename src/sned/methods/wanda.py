"""Wanda: the weights that matter least for what their row computes go."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator

from sned.errors import ConfigError
from sned.plans.budget import Goal
from sned.plans.ops import Op
from sned.runtime.allocator import AllocateOption
from sned.runtime.context import Context
from sned.runtime.method import method
from sned.runtime.sparsifier import KeepZerosOption, RefineOption, UpdateOption, by_score, check_pattern, known
from sned.runtime.sparsify import sparsify
from sned.score.importance import cumulative
from sned.score.importance import wanda as score_of

if TYPE_CHECKING:
    import torch

    from sned.runtime.inputs import Inputs
    from sned.runtime.sparsifier import Sparsifier


def _pattern(text: str) -> str:
    return check_pattern(text, ("row", "matrix"))


@method(
    paper="arXiv:2306.11695",
    prunes="weights",
    title="A Simple and Effective Pruning Approach for Large Language Models",
    budgets=("sparsity",),
)
def wanda(
    ctx: Context,
    *,
    goal: Goal,
    pattern: Annotated[
        str, AfterValidator(_pattern), "the lowest scores of each row, of each matrix, or all but n of m"
    ] = "row",
    variant: Annotated[bool, "let rows differ: each loses what makes up the same share of its scores"] = False,
    allocate: AllocateOption = "uniform",
    refine: RefineOption = None,
    update: UpdateOption = False,
    keep_zeros: KeepZerosOption = False,
) -> Iterator[Op]:
    """Set weights to zero whose magnitude times the norm of their input is smallest within a row.

    Every layer is judged on what the pruned layers before it compute. Counts are exact: where a share of a row is no
    whole number, rows of a matrix differ by one, instead of all being rounded down. The `variant` of the authors' code
    is solved exactly instead of by bisection.
    """
    if variant and pattern != "row":
        raise ConfigError(f"variant goes with the pattern row, not {pattern}", hint="leave one of them out")
    chooser = sparsifier(variant=variant, refine=refine, update=update, keep_zeros=keep_zeros)
    yield from sparsify(ctx, goal, chooser, pattern="matrix" if variant else pattern, allocate=allocate)


def sparsifier(
    *, variant: bool = False, refine: str | None = None, update: bool = False, keep_zeros: bool = False
) -> Sparsifier:
    """Return what chooses the weights; the options are those of the method."""

    def score(weight: torch.Tensor, inputs: Inputs | None) -> torch.Tensor:
        found = score_of(weight, known(inputs).norm)
        return cumulative(found) if variant else found

    return by_score(
        "wanda", score, "norms", refine=refine, update=update, keep_zeros=keep_zeros, details={"variant": variant}
    )
