"""The part of ``report.json`` on what units are worth, and on what took over from those that went. Imports `blocks`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from sned.report.blocks import Block, Count, Positive


class Valued(Block):
    """A layer, an attention or an MLP, and what it is worth."""

    unit: str = Field(description="layer.3, attn.3 or mlp.3", pattern=r"^(layer|attn|mlp)\.\d+$")
    value: float | None = Field(description="null when it was not finite: nothing works without the unit")
    error: Positive | None = Field(None, description="standard error; null where none is known")
    removed: bool

    @property
    def kind(self) -> str:
        """`layer`, `attn` or `mlp`."""
        return self.unit.partition(".")[0]

    @property
    def layer(self) -> int:
        """The layer that it is, or is a part of."""
        return int(self.unit.partition(".")[2])


class Worth(Block):
    """What all units that might go were worth: those worth least went."""

    metric: Literal["shapley", "loo", "cosine", "l1", "l2", "relative_l1", "relative_l2"]
    objective: str = Field(description="for shapley and loo, what the loss is: perplexity (its logarithm), or kl")
    units: list[Valued] = Field(min_length=1, description="lowest value first")
    base: float | None = Field(None, description="mean loss per token of the model as it was, in nats")
    all_gone: float | None = Field(None, description="the same without any of these units")
    orders: Count | None = Field(None, description="orders in which all units went, for Shapley values")
    tried: Count | None = Field(None, description="sets of units whose absence was tried")
    agreement: float | None = Field(
        None, description="Kendall's tau between the values from each half of the orders, -1 to 1"
    )
    ceiling: float | None = Field(
        None, description="what a loss counts at most, in nats: that of a uniform guess; null: all of it"
    )
    gap: float | None = Field(None, description="sum of the values less what all units together are worth: rounding")


class StandIn(Block):
    """What stands in the place of layers ``[start, end)`` of the base model, or of a part of one of them."""

    start: Count
    end: Count
    which: Literal["attn", "mlp"] | None = Field(None, description="the part of the layer; none for whole layers")
    kind: Literal["shift", "scale", "lowrank"]
    tokens: Count = Field(description="tokens it was estimated from")
    left: Positive = Field(description="size of the error it leaves, as a share of that which plain removal leaves")


class Merged(Block):
    """Layers whose weights went into the layer before them."""

    into: Count
    layers: str = Field(description="a span of base layers, such as 7-9")
    similarity: float = Field(description="mean cosine of the final states to those of the base, after this merge")
    tried: Count = Field(description="merges that were measured to find this one")
