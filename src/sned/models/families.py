"""The table of families: data only. To add one, add a row here and a tiny configuration in `tests/kit`.

May import only `family` and the standard library.
"""

from __future__ import annotations

from dataclasses import replace

from sned.models.family import Family

_LLAMA = Family()
_SANDWICH = replace(_LLAMA, attn_post="post_attention_layernorm", mlp_post="post_feedforward_layernorm")
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
    "olmo2": replace(_SANDWICH, full_qk_norm=True, inexact=frozenset({"attn.group"})),
    "phi3": replace(_LLAMA, qkv="qkv_proj", gate_up="gate_up_proj", config_in_forward=True),
    "phi": replace(_UNGATED, o="dense", up="fc1", down="fc2"),
    "opt": replace(_UNGATED, layers="model.decoder.layers", o="out_proj", mlp=None, up="fc1", down="fc2"),
    "gpt_neox": replace(
        _UNGATED,
        layers="gpt_neox.layers",
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
        attn="self_attention",
        qkv="query_key_value",
        qkv_layout="group",
        o="dense",
        up="dense_h_to_4h",
        down="dense_4h_to_h",
        returns_tuple=True,
    ),
    "gpt2": replace(_UNGATED, layers="transformer.h", attn="attn", qkv="c_attn", o="c_proj", up="c_fc", down="c_proj"),
    "mixtral": replace(_LLAMA, experts=True),
    "qwen3_moe": replace(_LLAMA, experts=True),
}
