"""Tiny models of every family, with random weights large enough that a mistake shows in the logits."""

from __future__ import annotations

import copy
import functools
import io
import pickle
from typing import TYPE_CHECKING, Any, Literal

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedTokenizerFast

from sned.data.tokens import Tokens
from sned.models.families import FAMILIES

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel

    from sned.models.family import Family

VOCAB, HIDDEN, LAYERS, HEADS, GROUPS, HEAD_DIM, MLP = 128, 32, 5, 4, 2, 8, 48

_ALL: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_LLAMA = _ALL | {"intermediate_size": MLP, "num_key_value_heads": GROUPS, "max_position_embeddings": 256}
_WIDE = _LLAMA | {"head_dim": 12}  # the heads together are wider than the stream, as in several small models
_S, _F = "sliding_attention", "full_attention"

CONFIGS: dict[str, dict[str, Any]] = {
    "llama": _LLAMA | {"mlp_bias": True},
    "mistral": _LLAMA | {"sliding_window": 4},
    "qwen2": _LLAMA | {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2},
    "qwen3": _WIDE | {"tie_word_embeddings": True},
    "gemma": _WIDE,
    "gemma2": _WIDE | {"sliding_window": 4},
    "gemma3_text": _WIDE | {"sliding_window": 4, "layer_types": [_S, _S, _F, _S, _F]},
    "smollm3": _LLAMA | {"no_rope_layers": [1, 0, 1, 1, 0]},
    "olmo2": _LLAMA,
    "phi": _ALL | {"intermediate_size": MLP, "num_key_value_heads": GROUPS},
    "phi3": _LLAMA,
    "opt": _ALL | {"ffn_dim": MLP, "word_embed_proj_dim": HIDDEN, "max_position_embeddings": 256},
    "gpt_neox": _ALL | {"intermediate_size": MLP},
    "gpt_neox/serial": _ALL | {"intermediate_size": MLP, "use_parallel_residual": False, "tie_word_embeddings": True},
    "falcon": _ALL | {"num_kv_heads": GROUPS, "new_decoder_architecture": True},
    "falcon/multi_query": _ALL | {"multi_query": True, "new_decoder_architecture": False, "bias": True},
    "falcon/serial": _ALL | {"multi_query": False, "parallel_attn": False, "num_kv_heads": HEADS},
    "gpt2": {
        "vocab_size": VOCAB,
        "n_embd": HIDDEN,
        "n_layer": LAYERS,
        "n_head": HEADS,
        "n_inner": MLP,
        "n_positions": 256,
    }
    | {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
    "granite": _LLAMA
    | {"residual_multiplier": 0.5, "embedding_multiplier": 3.0, "attention_multiplier": 0.25, "logits_scaling": 2.0},
    "mixtral": _LLAMA | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": _LLAMA
    | {"head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
    | {"decoder_sparse_step": 1, "mlp_only_layers": [1, 3]},
}
"""A configuration for every family; after a slash, a variant of one."""

FAMILY_NAMES = sorted(CONFIGS)


def family_of(name: str) -> Family:
    """Return the row of the table that a configuration belongs to."""
    return FAMILIES[model_type(name)]


def model_type(name: str) -> str:
    return name.partition("/")[0]


DENSE_NAMES = [name for name in FAMILY_NAMES if not family_of(name).experts]
"""The families whose MLPs have axes and can be removed."""


STAND_INS: dict[Literal["linear", "shift", "scale", "lowrank"], tuple[int, ...]] = {
    "linear": (HIDDEN, HIDDEN),
    "shift": (HIDDEN,),
    "scale": (HIDDEN,),
    "lowrank": (2 * 3, HIDDEN),
}
"""What may stand for layers, and the shape of the tensor that it consists of; the rank of the last is 3."""


def stand_ins(seed: int) -> dict[str, torch.Tensor]:
    """Return a tensor of each kind that changes the stream visibly, but not beyond recognition."""
    generator = torch.Generator().manual_seed(seed)
    start = {"linear": torch.eye(HIDDEN), "scale": torch.ones(HIDDEN)}
    noise = {spec: 0.2 * torch.randn(shape, generator=generator) for spec, shape in STAND_INS.items()}
    return {spec: start.get(spec, 0.0) + tensor for spec, tensor in noise.items()}


def make_model(name: str, seed: int = 0) -> PreTrainedModel:
    """Return a model of its own, in float32; the same weights for the same seed."""
    return _thaw(*_frozen_model(name, seed))


@functools.cache
def _frozen_model(name: str, seed: int) -> tuple[bytes, dict[int, torch.Tensor]]:
    """Build a model once, as its pickled structure and its tensors: thawing that is faster than a deep copy."""
    config = CONFIG_MAPPING[model_type(name)](**copy.deepcopy(CONFIGS[name]))
    model = AutoModelForCausalLM.from_config(config).eval()
    fill(model, seed)
    pickler = _Pickler(stream := io.BytesIO())
    pickler.dump(model)
    return stream.getvalue(), pickler.tensors


def _thaw(structure: bytes, tensors: dict[int, torch.Tensor]) -> PreTrainedModel:
    unpickler = pickle.Unpickler(io.BytesIO(structure))  # noqa: S301 - we have just written it
    unpickler.persistent_load = functools.cache(lambda key: copy.deepcopy(tensors[key]))
    return unpickler.load()


class _Pickler(pickle.Pickler):
    """Leaves tensors out, and remembers them by identity, so that tied ones stay tied."""

    def __init__(self, stream: io.BytesIO) -> None:
        super().__init__(stream)
        self.tensors: dict[int, torch.Tensor] = {}

    def persistent_id(self, value: object) -> int | None:
        if not isinstance(value, torch.Tensor):
            return None
        self.tensors[id(value)] = value
        return id(value)


def fill(model: torch.nn.Module, seed: int) -> None:
    """Draw all parameters anew: norms around their start, everything else around zero."""
    generator = torch.Generator().manual_seed(seed)
    for name, param in model.named_parameters():
        start = param.data if param.dim() == 1 and not name.endswith("bias") else 0.0
        param.data = start + 0.2 * torch.randn(param.shape, generator=generator)
        param.requires_grad_(requires_grad=False)


def tokens(windows: int = 4, length: int = 16, seed: int = 1) -> Tokens:
    """Return windows of random ids that no special token is among."""
    ids = torch.randint(3, VOCAB, (windows, length), generator=torch.Generator().manual_seed(seed))
    return Tokens(ids, "random")


IDS = tokens(2, 12).ids
"""What logits are compared on: longer than any sliding window above."""


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token per character, as many as the models know."""
    special = ["<pad>", "<s>", "</s>", "<unk>"]
    characters = [chr(code) for code in (10, *range(32, 127), *range(0xC0, 0x100))]
    vocab = {token: i for i, token in enumerate([*special, *characters][:VOCAB])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    names = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), special, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def save_model_folder(folder: Path, name: str, seed: int = 0, *, max_shard_size: str = "5GB") -> Path:
    """Write a model with its tokenizer as Hugging Face does, and return the folder."""
    make_model(name, seed).save_pretrained(folder, max_shard_size=max_shard_size)
    make_tokenizer().save_pretrained(folder)
    return folder
