"""SparseGPT: weights go column by column, and those that stay make up for them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator

from sned.plans.budget import Goal
from sned.plans.ops import Op
from sned.runtime.allocator import AllocateOption
from sned.runtime.context import Context
from sned.runtime.method import method
from sned.runtime.sparsifier import KeepZerosOption, Outcome, RefineOption, Sparsifier, by_score, check_pattern, known
from sned.runtime.sparsify import sparsify
from sned.score import obs

if TYPE_CHECKING:
    import torch

    from sned.runtime.inputs import Inputs
    from sned.score.quota import Quota


def _pattern(text: str) -> str:
    return check_pattern(text, ("matrix", "row"))


@method(
    paper="arXiv:2301.00774",
    prunes="weights",
    title="SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot",
    budgets=("sparsity",),
)
def sparsegpt(
    ctx: Context,
    *,
    goal: Goal,
    pattern: Annotated[
        str,
        AfterValidator(_pattern),
        "what goes is chosen per 128 columns of a matrix, also with the same number in each row, or all but n of m",
    ] = "matrix",
    allocate: AllocateOption = "uniform",
    refine: RefineOption = None,
    update: Annotated[bool, "change the weights that stay; without, only the choice is SparseGPT's"] = True,
    keep_zeros: KeepZerosOption = False,
) -> Iterator[Op]:
    """Set weights to zero by what removing them costs, and let the others of their row make up for that.

    Every layer is solved on what the pruned layers before it compute; matrices with the same inputs share one Hessian.
    Counts are exact; inputs that are never active take no part in the damping, which grows where the Hessian is
    singular. With `refine`, or without `update`, weights are chosen before any of them changes.
    """

    def sweep(weight: torch.Tensor, inputs: Inputs | None, quota: Quota) -> Outcome:
        factor = known(inputs).factor
        frozen = weight == 0 if keep_zeros else None
        pruned = obs.prune(weight, factor, quota, frozen=frozen)
        return Outcome(pruned.mask, pruned.weight, None if factor.diagonal else factor.damping)

    if update and refine is None:
        sparsifier = Sparsifier(["sparsegpt", keep_zeros], "gram", sweep, updates=True)
    else:
        sparsifier = by_score(
            "sparsegpt",
            lambda weight, inputs: obs.metric(weight, known(inputs).factor),
            "gram",
            refine=refine,
            update=update,
            keep_zeros=keep_zeros,
        )
    yield from sparsify(ctx, goal, sparsifier, pattern=pattern, allocate=allocate)
