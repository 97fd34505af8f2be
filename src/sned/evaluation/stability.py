"""Stability: how far a pruned model keeps the verdicts of its base, where sure ones weigh more.

LLM-Streamline (arXiv 2403.19135), section 4.1. The weight of an item is the softmax, over all items, of the
standard deviation of its choices' losses under the base. Losses are per token: in the released code they are mean
log-likelihoods, though the paper speaks of perplexities. The released code also sums other weights than the paper
says; `legacy` is what it would print. May import its neighbours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from sned.errors import NumericalError
from sned.evaluation.item_log import require_paired

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sned.evaluation.items import ItemScore

ScoreName = Literal["nll", "ppl"]
AgreementName = Literal["correctness", "same-answer"]


@dataclass(frozen=True, slots=True)
class Flips:
    """What became of the verdicts of the base, in items."""

    tp: int
    """Right before and after."""
    fn: int
    """Right before, wrong after."""
    fp: int
    """Wrong before, right after."""
    tn: int
    """Wrong before and after."""


@dataclass(frozen=True, slots=True)
class Stability:
    """How far two models agree on the items of one task, all from 0 to 1."""

    stability: float
    """Share of the weight of all items on which the models agree."""
    agreement: float
    """The same where all items weigh alike."""
    legacy: float
    """What the released code would give: it depends on the order of the items."""
    flips: Flips


def measure_stability(
    base: Sequence[ItemScore],
    pruned: Sequence[ItemScore],
    *,
    ddof: Literal[0, 1] = 1,
    score: ScoreName = "nll",
    agreement: AgreementName = "correctness",
) -> Stability:
    """Compare the verdicts of two models on the same items.

    Args:
        base: What the base made of the items, at least one.
        pruned: What the pruned model made of them.
        ddof: The paper divides the squared deviations by choices - 1, the released code (0) by their number.
        score: Whether deviations are those of the losses per token, or of their exponentials; with the latter few
            items have all the weight.
        agreement: Whether both must be right or both wrong, or both must give the same answer.

    Raises:
        DataError: the items are not the same; the first difference is named.
        NumericalError: perplexities, or the spread of them, are too large for a number.
    """
    require_paired(base, pruned, ("the base's log", "the pruned model's"))
    pairs = list(zip(base, pruned, strict=True))
    same = [a.correct == b.correct for a, b in pairs]
    agreed = same if agreement == "correctness" else [a.answer == b.answer for a, b in pairs]
    weights = item_weights(base, ddof=ddof, score=score)
    return Stability(
        # one sum over the other: equal sets give 1 to the last bit
        stability=math.fsum(w for w, yes in zip(weights, agreed, strict=True) if yes) / math.fsum(weights),
        agreement=sum(agreed) / len(agreed),
        legacy=_legacy(item_weights(base, ddof=0, score="nll"), sum(same)),
        flips=Flips(
            tp=sum(a.correct and b.correct for a, b in pairs),
            fn=sum(a.correct and not b.correct for a, b in pairs),
            fp=sum(b.correct and not a.correct for a, b in pairs),
            tn=sum(not a.correct and not b.correct for a, b in pairs),
        ),
    )


def item_weights(items: Sequence[ItemScore], *, ddof: Literal[0, 1] = 1, score: ScoreName = "nll") -> list[float]:
    """Return the weight of each item, relative to the largest, which is 1.

    Raises:
        NumericalError: a perplexity, or the spread of an item's, is too large for a number.
    """
    spreads = [_spread(item, ddof, score) for item in items]
    most = max(spreads)
    return [math.exp(spread - most) for spread in spreads]


def _spread(item: ItemScore, ddof: int, score: ScoreName) -> float:
    """Return the standard deviation of the losses of an item's choices."""
    losses = [nll / length for nll, length in zip(item.nll, item.length, strict=True)]
    try:
        values = [math.exp(loss) for loss in losses] if score == "ppl" else losses
        mean = math.fsum(values) / len(values)
        return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - ddof))
    except OverflowError:
        raise NumericalError(
            f"item {item.item!r} of {item.task}: the perplexities of its choices are too large",
            hint="use --score nll, as the released code does",
        ) from None


def _legacy(weights: Sequence[float], matches: int) -> float:
    """Return the weight of the first so many items, whichever agree: what the released code adds up."""
    return math.fsum(weights[:matches]) / math.fsum(weights)
