"""The part of ``report.json`` that holds tasks: results as lm-eval writes them, and stability. Imports `blocks`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from sned.report.blocks import Block, Count, Positive


class TaskProtocol(Block):
    """What one task asked."""

    items: Count = Field(description="how many items were judged")
    words: str
    higher_is_better: dict[str, bool] = Field(default_factory=dict, description="by metric")


class TaskResults(Block):
    """How one model did, in the shape of lm-eval's results."""

    results: dict[str, dict[str, float | None]] = Field(
        description='by task: {"acc,none": ..., "acc_stderr,none": ...}; null: not finite, or no error is known'
    )


class Flips(Block):
    """What became of the verdicts of the base, in items."""

    tp: Count = Field(description="right before and after")
    fn: Count = Field(description="right before, wrong after")
    fp: Count = Field(description="wrong before, right after")
    tn: Count = Field(description="wrong before and after")


class TaskStability(Block):
    """How far the pruned model keeps the verdicts of the base (arXiv 2403.19135, section 4.1)."""

    stability: Positive = Field(description="share of the weight of all items on which both agree, 0 to 1")
    agreement: Positive = Field(description="the same where all items weigh alike")
    legacy: Positive = Field(description="what the code released with the paper gives; depends on the order of items")
    flips: Flips
    ddof: Literal[0, 1] = Field(description="the squared deviations are divided by choices - ddof")
    score: Literal["nll", "ppl"] = Field(description="what deviates: loss per token, or its exponential")
    agree: Literal["correctness", "same-answer"] = Field(description="when two models agree on an item")


class Tasks(Block):
    """What was asked of the pruned model, and of the base beside it."""

    protocol: dict[str, TaskProtocol]
    dense: TaskResults | None = Field(description="null when no base was asked")
    pruned: TaskResults
    stability: dict[str, TaskStability] = Field(
        default_factory=dict, description="of tasks with choices of which one is right; empty without a base"
    )
