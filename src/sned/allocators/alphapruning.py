"""AlphaPruning: layers whose weights have heavier-tailed spectra lose fewer of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import Field

from sned.runtime.allocator import Task, allocator
from sned.runtime.context import Context
from sned.runtime.quotas import Shares, by_layer
from sned.score.schedules import tail_shares
from sned.score.spectra import Estimator, eigenvalues, tail_index, windowed_eigenvalues

if TYPE_CHECKING:
    from sned.models.matrices import Matrix


@allocator(
    paper="arXiv:2410.10912",
    title="AlphaPruning: Using Heavy-Tailed Self Regularization Theory for Improved Layer-wise Pruning of LLMs",
    needs_tokens=False,
)
def alphapruning(
    ctx: Context,
    task: Task,
    *,
    spread: Annotated[float, Field(ge=0, lt=1), "shares are in proportion to numbers this far around 1"] = 0.2,
    estimator: Annotated[
        Estimator, "where the tail begins: peak of the spectrum, compat as the released code finds it, or mid"
    ] = "peak",
    windows: Annotated[bool, "spectra of square windows, so that wide and narrow matrices compare (FARMS)"] = False,
    per: Annotated[Literal["layer", "matrix"], "what gets a share of its own"] = "layer",
) -> Shares:
    """Give layers whose spectra have heavier tails a smaller share of zeros; looks at weights alone.

    A tail is as heavy as the exponent of its power law is small, by Hill's estimator; a layer's is the mean over its
    matrices. `peak` looks for the start of the tail in the window around the spectrum's peak that the paper means;
    in the released code a slip leaves out the lower end of that window (`compat`). `windows` is arXiv 2506.06280.
    """
    exponents: dict[str, float] = {}
    with ctx.progress.task("look at spectra", len(task.matrices)) as advance:
        for layer in task.layers:
            with ctx.view.materialised(layer) as block:
                for matrix in task.of(layer):
                    weight = matrix.of(block)
                    key = [*ctx.state(None), matrix.name, estimator, windows]
                    exponents[matrix.name] = ctx.journal.recall(
                        "spectrum", key, lambda weight=weight: _exponent(weight, estimator, windows=windows)
                    )
                    advance(1)
    finite = {name: value for name, value in exponents.items() if value != float("inf")}
    ctx.scores["allocation"] = {"evidence": "tail exponent", "matrices": finite}
    if per == "matrix":
        alphas = torch.tensor([exponents[m.name] for m in task.matrices], dtype=torch.float64)
        sizes = torch.tensor([m.size for m in task.matrices])
        shares = tail_shares(alphas, sizes, task.sparsity, spread)
        return Shares(dict(zip((m.name for m in task.matrices), shares.tolist(), strict=True)))
    members = [task.of(layer) for layer in task.layers]
    alphas = torch.tensor([_mean(ms, exponents) for ms in members], dtype=torch.float64)
    sizes = torch.tensor([sum(m.size for m in ms) for ms in members])
    shares = tail_shares(alphas, sizes, task.sparsity, spread)
    return by_layer(task.matrices, dict(zip(task.layers, shares.tolist(), strict=True)))


def _exponent(weight: torch.Tensor, estimator: Estimator, *, windows: bool) -> float:
    return tail_index(windowed_eigenvalues(weight) if windows else eigenvalues(weight), estimator)


def _mean(matrices: list[Matrix], exponents: dict[str, float]) -> float:
    return sum(exponents[m.name] for m in matrices) / len(matrices)
