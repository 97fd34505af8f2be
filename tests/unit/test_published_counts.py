"""Parameter counts of 21 published pruned models, from configurations alone.

MultiPruner's authors state, for each of their results, how many parameters are left. Each row below holds that
number, what went (attentions, MLPs, groups of channels, heads), and what their count does differently: it keeps the
norm of every removed block, and for two models the biases of removed queries, keys and values.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

from sned.models.count import count
from sned.models.view import View
from sned.plans.published import ops_from_multipruner


@dataclass(frozen=True)
class Model:
    """The sizes of a model, and how many channels its results remove at a time."""

    vocab: int
    hidden: int
    mlp: int
    layers: int
    heads: int
    groups: int
    step: int = 1024
    biased: bool = False
    tied: bool = False

    @property
    def config(self) -> LlamaConfig | Qwen2Config:
        return (Qwen2Config if self.biased else LlamaConfig)(
            vocab_size=self.vocab,
            hidden_size=self.hidden,
            intermediate_size=self.mlp,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.groups,
            tie_word_embeddings=self.tied,
        )


LLAMA_3 = Model(128256, 4096, 14336, 32, 32, 8)
MODELS = {
    "Llama-2-7B": Model(32000, 4096, 11008, 32, 32, 32),
    "Llama-2-13B": Model(32000, 5120, 13824, 40, 40, 40),
    "Llama-3-8B": LLAMA_3,
    "Llama-3.1-8B": LLAMA_3,
    "Llama-3.2-3B": Model(128256, 3072, 8192, 28, 24, 8, step=768, tied=True),
    "Qwen2.5-7B": Model(152064, 3584, 18944, 28, 28, 4, biased=True),
    "Qwen1.5-7B": Model(151936, 4096, 11008, 32, 32, 32, biased=True),
    "Qwen1.5-14B": Model(152064, 5120, 13696, 40, 40, 40, step=2048, biased=True),
    # its projection of queries, keys and values is fused, and as large as three
    "Baichuan2-7B": Model(125696, 4096, 11008, 32, 32, 32),
    "Baichuan2-13B": Model(125696, 5120, 13696, 40, 40, 40),
}


@dataclass(frozen=True)
class Result:
    """One published result: what is left, what went, and the biases that their count forgets."""

    model: str
    kept: int
    percent: float
    attn: int
    mlp: int
    channel_steps: int
    heads: int
    forgotten_biases: int = 0


RESULTS = [
    Result("Llama-2-7B", 6268653568, 6.97, 4, 0, 15, 6),
    Result("Llama-2-7B", 6063132672, 10.02, 5, 0, 25, 12),
    Result("Llama-2-7B", 5931012096, 11.98, 6, 0, 30, 13),
    Result("Llama-2-7B", 5796794368, 13.97, 7, 0, 35, 15),
    Result("Llama-2-7B", 5727588352, 15.00, 7, 0, 40, 18),
    Result("Llama-2-7B", 5524164608, 18.02, 8, 0, 50, 23),
    Result("Llama-2-7B", 5258874880, 21.96, 9, 1, 55, 23),
    Result("Llama-2-13B", 9760035840, 25.01, 13, 1, 99, 47),
    Result("Llama-3-8B", 7220760576, 10.08, 4, 0, 51, 0),
    Result("Llama-3-8B", 6654529536, 17.13, 4, 0, 96, 0),
    Result("Llama-3-8B", 6423842816, 20.00, 8, 0, 101, 0),
    Result("Llama-3.1-8B", 7224954880, 10.03, 6, 0, 44, 0),
    Result("Llama-3.1-8B", 6654529536, 17.13, 4, 0, 96, 0),
    Result("Llama-3.1-8B", 6423842816, 20.00, 8, 1, 87, 0),
    Result("Llama-3.2-3B", 2921769984, 9.06, 2, 0, 34, 0),
    Result("Qwen2.5-7B", 6852230144, 10.02, 5, 2, 19, 0),
    Result("Qwen2.5-7B", 6090697216, 20.02, 6, 3, 67, 0),
    Result("Qwen1.5-7B", 6037311488, 21.81, 8, 2, 65, 28, forgotten_biases=109_056),
    Result("Qwen1.5-14B", 10836096000, 23.51, 9, 3, 52, 46, forgotten_biases=155_904),
    Result("Baichuan2-7B", 5824057344, 22.41, 7, 2, 70, 29),
    Result("Baichuan2-13B", 10559575040, 24.01, 9, 4, 91, 46),
]


class _Outline:
    """The layers of a model without weights."""

    def layer(self, index: int) -> dict[str, torch.Tensor]:
        raise AssertionError(f"counting read layer {index}")

    def sample(self, index: int, name: str, count: int) -> torch.Tensor:
        return torch.zeros(count)


@cache
def outline(model: str) -> View:
    """The whole model on meta; forks share it."""
    with torch.device("meta"):
        hollow = AutoModelForCausalLM.from_config(MODELS[model].config)
    hollow.tie_weights()
    return View(hollow, source=_Outline())


def spread(total: int, step: int, full: int, layers: list[int]) -> dict[int, int]:
    """Take `total` steps off widths of `full`, in turn from each layer that has more than one step left."""
    widths = dict.fromkeys(layers, full)
    while total:
        for layer in [i for i in layers if widths[i] > step][:total]:
            widths[layer] -= step
            total -= 1
    return widths


def document(result: Result) -> dict[str, Any]:
    """A `pruning_config.json` of the size of a result; which layers it names does not matter to the count."""
    model = MODELS[result.model]
    head, layers = model.hidden // model.heads, list(range(model.layers))
    attn, mlp = layers[-1 - result.attn : -1], layers[-2 - result.mlp : -2]
    attn_widths = spread(result.heads, head, model.hidden, [i for i in layers if i not in attn])
    mlp_widths = spread(result.channel_steps, model.step, model.mlp, [i for i in layers if i not in mlp])
    return {
        "pruned_attn_idx": attn,
        "pruned_mlp_idx": mlp,
        "pruned_attn_width": {str(i): attn_widths.get(i, model.hidden) for i in layers},
        "pruned_mlp_width": {str(i): mlp_widths.get(i, model.mlp) for i in layers},
    }


@pytest.mark.parametrize("result", RESULTS, ids=lambda result: f"{result.model}-{result.percent}")
def test_the_count_is_that_of_the_published_result(result: Result) -> None:
    model, view = MODELS[result.model], outline(result.model).fork()
    dense = count(view).params
    for op in ops_from_multipruner(document(result), view, reorder=False):
        op.apply(view, {})
    norms = (result.attn + result.mlp) * model.hidden
    assert count(view).params == result.kept - norms - result.forgotten_biases
    assert round(100 * (1 - result.kept / dense), 2) == pytest.approx(result.percent, abs=0.011)


@pytest.mark.parametrize("result", [r for r in RESULTS if r.forgotten_biases], ids=lambda result: result.model)
def test_the_forgotten_biases_are_those_of_removed_heads(result: Result) -> None:
    model = MODELS[result.model]
    heads = result.attn * model.heads + result.heads
    assert result.forgotten_biases == heads * 3 * (model.hidden // model.heads)
