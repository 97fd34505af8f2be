"""What models make of the items of a task: the figures behind an accuracy, item by item. Imports nothing of sned."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class ItemScore:
    """What one model made of one item: the loss of every choice, of which the likeliest is its answer."""

    task: str
    item: str | int
    """Names the item within its task, alike for every model."""
    nll: tuple[float, ...]
    """Negative log-likelihood of each choice, summed over its tokens, in nats."""
    gold: int
    """Index of the right choice."""
    length: tuple[int, ...]
    """Tokens of each choice."""

    @property
    def answer(self) -> int:
        """Index of the choice with the least loss; the first of several."""
        return self.nll.index(min(self.nll))

    @property
    def correct(self) -> bool:
        """Whether the answer is the right one."""
        return self.answer == self.gold


@dataclass(frozen=True, slots=True)
class TaskResult:
    """How one model did in one task."""

    metrics: dict[str, float | None]
    """Figures by lm-eval's names, such as `acc,none` and `acc_stderr,none`; None where one is not finite."""
    count: int
    """Items judged."""
    words: str
    """What was asked, in words."""
    higher_is_better: dict[str, bool] = field(default_factory=dict)
    """By metric, such as `acc`; those not named are of neither kind."""
    items: tuple[ItemScore, ...] = ()
    """Empty where the task has no choices with one right answer."""


def accuracy(items: Sequence[ItemScore]) -> dict[str, float | None]:
    """Return the share of right answers and its standard error; None for the error of a single item."""
    n = len(items)
    share = sum(item.correct for item in items) / n
    return {"acc,none": share, "acc_stderr,none": math.sqrt(share * (1 - share) / (n - 1)) if n > 1 else None}
