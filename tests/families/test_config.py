"""A cut model's config describes the cut model: a stock model built from it computes the same."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from kit.compare import assert_same_logits, logits
from kit.tiny import FAMILY_NAMES, LAYERS, make_model
from transformers import AutoModelForCausalLM

from sned.models.view import View
from sned.plans.ops import DropLayers, DropSublayer

every_family = pytest.mark.parametrize("name", FAMILY_NAMES)
DROPS = [[0], [2], [LAYERS - 1], [0, 2], [1, 2, 3]]


def per_layer_lists(config: Any) -> dict[str, list[Any]]:
    """Every list of a config that has an entry per layer of the base model."""
    return {name: value for name, value in config.to_dict().items() if isinstance(value, list) and len(value) == LAYERS}


@every_family
@pytest.mark.parametrize("drop", DROPS, ids=str)
def test_a_stock_model_holds_the_layers_that_are_left(name: str, drop: list[int]) -> None:
    model = make_model(name)
    view = View(model)
    DropLayers(layers=drop[:1]).apply(view, {})
    if drop[1:]:
        DropLayers(layers=drop[1:]).apply(view, {})
    stock = AutoModelForCausalLM.from_config(copy.deepcopy(model.config)).eval()
    stock.load_state_dict(model.state_dict(), strict=True)
    assert_same_logits(logits(stock), logits(model), exact=True)


@every_family
def test_every_list_with_an_entry_per_layer_is_cut(name: str) -> None:
    model = make_model(name)
    lists = per_layer_lists(model.config)
    DropLayers(layers=[1, 3]).apply(View(model), {})
    after = model.config.to_dict()
    for key, values in lists.items():
        assert after[key] == [values[i] for i in (0, 2, 4)], key
    assert model.config.num_hidden_layers == 3


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("gemma3_text", "layer_types"),
        ("qwen2", "layer_types"),
        ("smollm3", "no_rope_layers"),
        ("gemma2", "layer_types"),
    ],
)
def test_the_lists_that_matter_are_seen(name: str, key: str) -> None:
    assert len(set(per_layer_lists(make_model(name).config)[key])) == 2


@pytest.mark.parametrize(("drop", "dense"), [([0], [0, 2]), ([1], [2]), ([0, 1, 2], [0]), ([1, 3], []), ([4], [1, 3])])
def test_layers_without_experts_keep_their_kind(drop: list[int], dense: list[int]) -> None:
    """Qwen3-MoE says which layers are dense by their position, in a list shorter than the model."""
    model = make_model("qwen3_moe")
    DropLayers(layers=drop).apply(View(model), {})
    assert model.config.mlp_only_layers == dense


def test_a_rule_for_every_other_layer_becomes_a_list() -> None:
    model = make_model("qwen3_moe")
    model.config.mlp_only_layers, model.config.decoder_sparse_step = [3], 2
    rebuilt = AutoModelForCausalLM.from_config(model.config).eval()
    DropLayers(layers=[0]).apply(View(rebuilt), {})
    again = AutoModelForCausalLM.from_config(copy.deepcopy(rebuilt.config)).eval()
    again.load_state_dict(rebuilt.state_dict(), strict=True)
    assert_same_logits(logits(again), logits(rebuilt), exact=True)


@every_family
def test_every_module_knows_its_position(name: str) -> None:
    view = View(make_model(name))
    DropSublayer(layer=3, which="attn").apply(view, {})
    DropLayers(layers=[0, 2]).apply(view, {})
    numbers = [
        {module.layer_idx for module in layer.modules() if hasattr(module, "layer_idx")}
        for layer in view.layers.values()
    ]
    assert numbers == [{0}, {1}, {2}]


def test_lists_that_are_not_per_layer_stay() -> None:
    """A list may be as long as the model by chance."""
    model = make_model("llama")
    model.config.eos_token_id = list(range(LAYERS))
    model.config.architectures = [f"Class{i}" for i in range(LAYERS)]
    DropLayers(layers=[0]).apply(View(model), {})
    assert model.config.eos_token_id == list(range(LAYERS))
    assert len(model.config.architectures) == LAYERS
