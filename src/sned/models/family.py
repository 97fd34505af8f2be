"""The facts that tell one decoder architecture from another: one frozen row per family.

May import only the standard library and `errors`. The table itself is `families.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Sublayer = Literal["attn", "mlp"]
"""One of the two residual branches of a decoder layer."""


@dataclass(frozen=True, slots=True)
class Family:
    """Names and layouts of one architecture; the defaults describe Llama.

    Module names are relative to the decoder layer, but for `layers`, which is relative to the model.
    """

    layers: str = "model.layers"
    """Path of the list of decoder layers."""
    attn: str = "self_attn"
    q: str = "q_proj"
    k: str = "k_proj"
    v: str = "v_proj"
    o: str = "o_proj"
    qkv: str | None = None
    """Fused projection of queries, keys and values; then `q`, `k` and `v` are unused."""
    qkv_layout: Literal["concat", "head", "group"] = "concat"
    """Rows of `qkv`: all q, all k, all v | (q, k, v) per head | (queries, k, v) per KV group."""
    mlp: str | None = "mlp"
    """The MLP module, or None where its projections sit on the decoder layer itself."""
    up: str = "up_proj"
    gate: str | None = "gate_proj"
    down: str = "down_proj"
    gate_up: str | None = None
    """Fused gate and up projection; then `gate` and `up` are unused."""
    attn_norms: tuple[str, ...] = ("input_layernorm",)
    """Norms that serve the attention alone, and go with it."""
    mlp_norms: tuple[str, ...] = ("post_attention_layernorm",)
    parallel: bool | str = False
    """Both branches read the stream that enters the layer; a name is that of the config attribute that says so."""
    attn_post: str | None = None
    mlp_post: str | None = None
    """Norm between a branch's output and the residual stream; no linear map can be folded through it."""
    multiplier: str | None = None
    """Config attribute that scales what a branch adds to the residual stream."""
    full_qk_norm: bool = False
    """Queries and keys are normalised over all heads at once, so heads are not independent."""
    config_in_forward: bool = False
    """The attention's forward reads head counts from its config, which pruning must then make its own."""
    returns_tuple: bool = False
    """A decoder layer returns a tuple instead of the hidden states."""
    experts: bool = False
    """The MLP is a mixture of experts: only whole-layer work is possible."""
    inexact: frozenset[str] = frozenset()
    """Axis kinds whose cut is not equivalent to a gate on this family."""
