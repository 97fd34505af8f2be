"""The parts of ``report.json``: one model per block, each number with its unit. Imports no part of sned.

Strict on purpose: an unknown key, a NaN or a string where a number belongs is an error at the moment it is
made, not a blank in a report read next year.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

Count = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(ge=0.0)]
LayerState = Literal["kept", "removed", "folded", "replaced", "trimmed"]
PartState = Literal["kept", "removed", "trimmed"]


class Block(BaseModel):
    """A part of the report: immutable, finite numbers, no key beyond its own."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Params(Block):
    """How many parameters the model has and lost; tied weights count once."""

    dense: Count
    pruned: Count
    removed: float = Field(description="share of all parameters that is gone, 0 to 1")
    body_removed: float = Field(description="share of the decoder layers' parameters that is gone, 0 to 1")
    body_dense: Count | None = Field(None, description="parameters of the decoder layers before")
    body_pruned: Count | None = Field(None, description="parameters of the decoder layers after")


class Pair(Block):
    """One whole number before and after."""

    dense: Count
    pruned: Count


class Model(Block):
    """Which model was pruned, and how its size changed."""

    source: str
    family: str
    fingerprint: str
    params: Params
    flops_per_token: Pair = Field(description="floating-point operations of one forward pass, per token")
    kv_bytes_per_token: Pair = Field(description="cache that one token of context takes, in bytes")


class PlanFacts(Block):
    """The plan that was applied."""

    digest: str
    ops: Count
    summary: str


class Text(Block):
    """The tokens that something was measured on."""

    source: str
    tokens: Count
    seq_len: Count
    digest: str


class Loss(Block):
    """Language-model loss over every predicted token of the evaluation text."""

    perplexity: Positive
    nll: float = Field(description="mean negative log-likelihood, nats per token")


class Quality(Block):
    """How well the model predicts held-out text, and how far it moved from the base."""

    protocol: Text
    dense: Loss | None = Field(description="null when no base was measured beside it")
    pruned: Loss
    kl: float | None = Field(description="KL(dense || pruned), nats per token; null without a base")
    top1_agreement: float | None = Field(description="share of equal best guesses, 0 to 1; null without a base")


class Throughput(Block):
    """Speed of one model."""

    prefill_tokens_per_s: Positive
    decode_tokens_per_s: Positive


class Speed(Block):
    """Speed of both models, measured in turns in one run."""

    dense: Throughput
    pruned: Throughput
    prefill_ratio: Positive = Field(description="pruned / dense; above 1 is faster")
    decode_ratio: Positive = Field(description="pruned / dense; above 1 is faster")
    decode_body_ratio: Positive | None = Field(None, description="the same for the decoder layers alone")
    head_share: Positive | None = Field(None, description="the head's share of the dense decoding time")
    protocol: str | None = Field(None, description="prompt and continuation length, batch, dtype, in words")


class Seconds(Block):
    """Wall-clock seconds of each phase; null for a phase that did not run."""

    load: Positive | None = None
    calibrate: Positive | None = None
    plan: Positive | None = None
    train: Positive | None = None
    apply: Positive | None = None
    save: Positive | None = None
    verify: Positive | None = None
    evaluate: Positive | None = None


class Cost(Block):
    """What the job took."""

    seconds: Seconds
    forward_layer_tokens: Count = Field(description="decoder-layer x token evaluations while planning")
    peak_rss_bytes: Count


class Verify(Block):
    """How the saved checkpoint, reloaded, compares with the planned model."""

    max_logit_error: Positive = Field(description="largest difference in logits, relative to their scale")
    cached_decode_error: Positive = Field(description="the same, decoding token by token with a cache")
    stock_class: bool = Field(description="loads without trust_remote_code")


class Environment(Block):
    """What the numbers were measured with."""

    torch: str
    transformers: str
    python: str
    threads: Count
    cpu: str


class Layer(Block):
    """What became of one layer of the base model."""

    layer: Count = Field(description="index in the base model")
    state: LayerState
    attention: PartState
    mlp: PartState
    attention_left: float | None = Field(None, description="share of the KV groups kept, where they were trimmed")
    mlp_left: float | None = Field(None, description="share of the MLP channels kept, where they were trimmed")
    note: str = ""


class Importance(Block):
    """How much each part of the base model changes the residual stream."""

    layers: list[float] | None = Field(None, description="1 - cos(input, output) of every layer")
    attention: list[float] | None = Field(None, description="the same for the attention of every layer")
    mlp: list[float] | None = Field(None, description="the same for the MLP of every layer")
    distance: list[list[float | None]] | None = Field(
        None,
        description="[s][n]: angle / pi between the streams entering layers s and s+n; null: not measured",
    )


class Cut(Block):
    """A run of layers that was taken out: ``[start, end)`` of the base model."""

    start: Count
    end: Count
    distance: float | None = Field(None, description="angle / pi across the cut")
    kind: str = Field(description="what stands in its place: removed, folded, replaced")


class Probe(Block):
    """A cut that was tried, and the perplexity that it gave on a small sample."""

    start: Count
    end: Count
    perplexity: float | None = Field(description="null when it was not finite")


class Step(Block):
    """One cut of a greedy search: the one that cost least of all that could be made."""

    cut: str = Field(description="what went: attn.7, mlp.3, mlp.3+attn.4, or what is left of it: mlp.3:1024")
    loss: float = Field(description="mean loss per token after it, in nats")
    increase: float = Field(description="by how much the loss exceeds that before it, on the same tokens")
    tokens: Count = Field(description="predicted tokens of calibration text it was judged on")
    measured: Count = Field(description="candidates measured at all in this step")
    candidates: Count = Field(description="cuts that could have been made")
    params: Count = Field(description="parameters of the whole model after it")


class Ranked(Block):
    """A cut that could have been made, and the loss with it alone."""

    cut: str
    loss: float | None = Field(description="mean loss per token, in nats; null when it was not finite")


class Search(Block):
    """How a greedy search went, step by step, on calibration text."""

    objective: str = Field(description="what the loss is: perplexity (its logarithm), or kl from the dense model")
    mode: str = Field(description="how candidates were compared: exact, racing, exhaustive")
    steps: list[Step] = Field(default_factory=list)
    ranking: list[Ranked] | None = Field(None, description="all cuts, best first, where one ranking decided")


class Judged(Block):
    """A model that an evolution has judged."""

    loss: float = Field(description="mean loss per token, in nats")
    params: Count = Field(description="parameters of the whole model")


class Evolution(Block):
    """How all widths were evolved at once, on calibration text."""

    objective: str = Field(description="what the loss is: perplexity (its logarithm), or kl from the dense model")
    judged: Count = Field(description="models judged in all")
    chosen: Judged = Field(description="the one with the least loss of those that remove enough")
    front: list[Judged] = Field(description="those that no other beats in both, fewest parameters first")


class MatrixZeros(Block):
    """One weight matrix of a decoder layer, and how many of its weights are zero."""

    layer: Count
    role: Literal["q", "k", "v", "o", "gate", "up", "down"]
    zeros: Count
    of: Count


class Sparsity(Block):
    """Which weights were set to zero; the model has as many parameters as before."""

    zeros: Count = Field(description="in the matrices of the decoder layers")
    of: Count = Field(description="weights of those matrices")
    ratio: Positive = Field(description="zeros / of")
    ratio_of_all: Positive = Field(description="zeros / all parameters of the model")
    target: Positive = Field(description="the ratio that was asked for")
    zero_before: Count = Field(description="zeros that the matrices held already; they count")
    diagonal: list[str] = Field(description="matrices whose Hessian could not be factored: its diagonal was used")
    matrices: list[MatrixZeros]
    allocation: dict[str, JsonValue] | None = Field(None, description="what the allocator decided by")
    packed_ratio: Positive = Field(description="size of these matrices as bit masks and values, to their size as saved")


class Repair(Block):
    """An output projection that was to make up for cuts, refitted by least squares."""

    layer: Count = Field(description="index in the base model")
    which: Literal["attn", "mlp"]
    ridge: float | None = Field(
        description="relative strength of the pull towards the old weights; null: left as it was"
    )
    left: Positive = Field(description="share of the error that is left on calibration windows kept out of the fit")


class Fit(Block):
    """A linear map that was estimated to make up for a cut."""

    layer: Count = Field(description="the layer that the map was folded into, or stands at")
    tokens: Count = Field(description="tokens it was estimated from")
    rank: Count
    condition: float | None = Field(description="condition number of the Gram matrix; null when singular")
    ridge: float = Field(description="relative strength of the pull towards the identity")
    relative_error: Positive = Field(description="|estimate - target| / |target| on the calibration tokens")
    estimator: str | None = None
    structure: str | None = None


class Sample(Block):
    """One prompt, continued greedily by both models."""

    prompt: str
    dense: str
    pruned: str


class Baseline(Block):
    """A simpler method on the same model, budget and text, or a random choice of the same shape."""

    method: str
    perplexity: Positive
    layers: str = Field("", description="the whole layers it removed, as ascending ranges with both ends: 12-17")
    removed: float | None = Field(None, description="share of all parameters that it removed, 0 to 1")
    note: str = Field("", description="how it was asked, where not by the same budget")
