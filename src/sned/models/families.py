"""The table of families: data only. To add one, add a row here and a tiny configuration in `tests/kit`.

May import only `family` and the standard library.
"""

from __future__ import annotations

from dataclasses import replace

from sned.models.family import Family

_LLAMA = Family()
_SANDWICH = replace(
    _LLAMA,
    attn_norms=("input_layernorm", "post_attention_layernorm"),
    mlp_norms=("pre_feedforward_layernorm", "post_feedforward_layernorm"),
    attn_post="post_attention_layernorm",
    mlp_post="post_feedforward_layernorm",
)
_UNGATED = replace(_LLAMA, gate=None)

FAMILIES: dict[str, Family] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma": _LLAMA,
    "smollm3": _LLAMA,
    "granite": replace(_LLAMA, multiplier="residual_multiplier"),
    "gemma2": _SANDWICH,
    "gemma3_text": _SANDWICH,
    "olmo2": replace(
        _SANDWICH,
        attn_norms=("post_attention_layernorm",),
        mlp_norms=("post_feedforward_layernorm",),
        full_qk_norm=True,
        inexact=frozenset({"attn.group"}),
    ),
    "phi3": replace(_LLAMA, qkv="qkv_proj", gate_up="gate_up_proj", config_in_forward=True),
    # one norm serves both branches, so it goes with neither
    "phi": replace(_UNGATED, attn_norms=(), mlp_norms=(), parallel=True, o="dense", up="fc1", down="fc2"),
    "opt": replace(
        _UNGATED,
        layers="model.decoder.layers",
        attn_norms=("self_attn_layer_norm",),
        mlp_norms=("final_layer_norm",),
        o="out_proj",
        mlp=None,
        up="fc1",
        down="fc2",
    ),
    "gpt_neox": replace(
        _UNGATED,
        layers="gpt_neox.layers",
        parallel="use_parallel_residual",
        attn="attention",
        qkv="query_key_value",
        qkv_layout="head",
        o="dense",
        up="dense_h_to_4h",
        down="dense_4h_to_h",
    ),
    "falcon": replace(
        _UNGATED,
        layers="transformer.h",
        # `input_layernorm`, where there is one, may serve both branches
        attn_norms=("ln_attn",),
        mlp_norms=("ln_mlp", "post_attention_layernorm"),
        parallel="parallel_attn",
        attn="self_attention",
        qkv="query_key_value",
        qkv_layout="group",
        o="dense",
        up="dense_h_to_4h",
        down="dense_4h_to_h",
        returns_tuple=True,
    ),
    "gpt2": replace(
        _UNGATED,
        layers="transformer.h",
        attn_norms=("ln_1",),
        mlp_norms=("ln_2",),
        attn="attn",
        qkv="c_attn",
        o="c_proj",
        up="c_fc",
        down="c_proj",
    ),
    "mixtral": replace(_LLAMA, experts=True),
    "qwen3_moe": replace(_LLAMA, experts=True),
}
