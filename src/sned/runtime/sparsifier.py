"""How the weights of one matrix are set to zero: a score, a quota, and what may follow the choice.

The parts compose freely: any score with any quota, refined or not, with or without an update of the weights that stay.
May import `score` and its neighbours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch

from sned.errors import ConfigError
from sned.score import obs
from sned.score.quota import Quota, RunQuota, parse_n_of_m
from sned.score.swaps import swap

if TYPE_CHECKING:
    from sned.runtime.inputs import Inputs, Needs

RefineOption = Annotated[
    Literal["dsnot"] | None, "dsnot: swap weights of a row until its expected output hardly moves (arXiv:2310.08915)"
]
UpdateOption = Annotated[
    bool, "let the weights that stay make up for those that go, by SparseGPT's update (arXiv:2301.00774)"
]
KeepZerosOption = Annotated[bool, "weights that are zero already stay zero when others are updated"]


@dataclass(frozen=True)
class Outcome:
    """What became of a matrix `[out, in]`.

    Attributes:
        gone: True where a weight is to be zero.
        weight: New values, zero where `gone`; None where the weights that stay are as they were.
        damping: What it took to factor the Hessian, if one was; None for a diagonal one.
    """

    gone: torch.Tensor
    weight: torch.Tensor | None = None
    damping: float | None = 0.0


@dataclass(frozen=True)
class Sparsifier:
    """How weights are chosen, whatever their number.

    Attributes:
        name: Of the method, and what tells it from others of that name; JSON.
        needs: What it has to know of the inputs of a matrix.
        prune: From a matrix in float32, its inputs and a quota to the outcome.
        updates: Whether weights that stay change.
    """

    name: list[Any]
    needs: Needs
    prune: Callable[[torch.Tensor, Inputs | None, Quota], Outcome]
    updates: bool = False


def known(inputs: Inputs | None) -> Inputs:
    """Return what a matrix receives, which a score was promised.

    Raises:
        ValueError: the score did not say that it needs it.
    """
    if inputs is None:
        raise ValueError("a score that reads inputs must say what it needs of them")
    return inputs


Score = Callable[[torch.Tensor, "Inputs | None"], torch.Tensor]
"""From a matrix in float32 and its inputs to scores of the same shape; the lowest go first."""


def by_score(
    name: str,
    score: Score,
    needs: Needs,
    *,
    refine: str | None,
    update: bool,
    keep_zeros: bool,
    details: dict[str, Any] | None = None,
) -> Sparsifier:
    """Return the sparsifier that takes what scores lowest, then refines the choice and updates the rest if asked to."""
    if refine is not None and needs == "nothing":
        needs = "norms"

    def prune(weight: torch.Tensor, inputs: Inputs | None, quota: Quota) -> Outcome:
        gone = quota.select(score(weight, inputs))
        if refine is not None:
            gone = refined(weight, gone, known(inputs), quota)
        return updated(weight, gone, known(inputs), keep_zeros=keep_zeros) if update else Outcome(gone)

    label = [name, details or {}, refine, update, keep_zeros]
    return Sparsifier(label, "gram" if update else needs, prune, update)


def refined(weight: torch.Tensor, gone: torch.Tensor, inputs: Inputs, quota: Quota) -> torch.Tensor:
    """Return a mask with as many weights in every row, or in every run, that moves the outputs less (DSnoT)."""
    group = quota.m if isinstance(quota, RunQuota) else None
    return swap(weight, gone, inputs.mean, inputs.variance, inputs.norm, group=group)


def updated(weight: torch.Tensor, gone: torch.Tensor, inputs: Inputs, *, keep_zeros: bool) -> Outcome:
    """Return the matrix without the weights of a mask, the others changed to make up for them."""
    if keep_zeros:
        gone = gone | (weight == 0)
    factor = inputs.factor
    pruned = obs.prune(weight, factor, gone)
    return Outcome(pruned.mask, pruned.weight, None if factor.diagonal else factor.damping)


def check_pattern(text: str, allowed: tuple[str, ...]) -> str:
    """Return a pattern if it is one of those allowed, or keeps n of m weights.

    Raises:
        ConfigError: it is not.
    """
    if text not in allowed and parse_n_of_m(text) is None:
        raise ConfigError(f"pattern={text!r} is none of {', '.join(allowed)}, nor n:m", hint="2:4 keeps two of four")
    return text
