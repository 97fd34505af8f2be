"""The part of ``report.json`` that holds how training went, one block for each stage that trained. Imports `blocks`."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, JsonValue, model_validator

from sned.report.blocks import Block, Count


class TrainingPoint(Block):
    """The losses after so many steps of the optimiser."""

    step: Count
    tokens: Count = Field(description="tokens trained on by then; those of a text seen twice count twice")
    loss: float | None = Field(description="mean in training since the row before; null before training")
    held_out: float | None = Field(description="on windows kept out of training; null when it was not finite")


class Curve(Block):
    """How something was trained by one stage, and which step's outcome was kept."""

    stage: str = Field(description="the method that trained")
    options: dict[str, JsonValue] = Field(default_factory=dict, description="how it was asked")
    tokens: Count = Field(description="tokens of the text that was trained on, each counted once")
    curve: list[TrainingPoint] = Field(min_length=1, description="the first row is from before training")
    best_step: Count = Field(description="the step whose outcome was kept, by held-out loss; 0: that from before")
    ended: Literal["done", "no better", "diverged"] = Field(
        description="done: all steps; no better: early, as the held-out loss no longer fell; diverged: stopped"
    )

    @model_validator(mode="after")
    def _best_was_measured(self) -> Self:
        if self.best_step not in {point.step for point in self.curve}:
            raise ValueError(f"best_step {self.best_step} is no step of the curve")
        return self


class Training(Curve):
    """How one stage trained weights."""

    loss: Literal["nmse", "mse", "cosine", "kl", "ce", "states"] = Field(
        description="what was made small. Of the states after the cut, against the base's: nmse, a token's squared "
        "distance / its square; mse, mean square of the entries; cosine, 1 - cosine. Of the last states: states, as "
        "nmse. Of the predictions, in nats per token: kl, KL(base || model); ce, cross-entropy of the next token"
    )


class KeptShares(Block):
    """What was kept of one layer."""

    layer: Count
    shares: dict[str, float] = Field(
        description="of each axis: the features of the residual stream that attention (attn) and MLP read and write, "
        "and the MLP's channels (mlp.hidden)"
    )


class Structure(Curve):
    """How gates on a frozen model were learned: held-out losses are the cross-entropy of what would be cut.

    Those in training are of masks drawn by chance, and include the weighted miss of the budget.
    """

    aimed: Count = Field(description="parameters that the layers were to be left with")
    learned: Count = Field(description="those that the learned gates left, before widths were rounded to the budget")
    kept: list[KeptShares] = Field(min_length=1, description="in the end, by layer")

    @property
    def routed(self) -> bool:
        """Whether features of the residual stream had gates at all."""
        return any(kind != "mlp.hidden" for item in self.kept for kind in item.shares)


class PolicyStep(Block):
    """One step of learning which parts to keep."""

    step: Count
    loss: float = Field(description="mean over the step's masks of the mean loss per token, in nats")


class Policy(Block):
    """How the chances of parts to be kept were learned from the losses of random masks, on calibration text."""

    objective: str = Field(description="what the loss is: perplexity (its logarithm), or kl from the dense model")
    parts: Count = Field(description="groups of channels, KV groups, blocks or layers that were kept or not")
    masks: Count = Field(description="masks tried in each step")
    steps: list[PolicyStep] = Field(min_length=1)
