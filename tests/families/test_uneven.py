"""A checkpoint of uneven layers is a model like any other: it decodes, trains, and can be loaded in every way."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from kit.compare import assert_same_logits, decoded, logits
from kit.tiny import CONFIGS, FAMILY_NAMES, HEADS, HIDDEN, IDS, LAYERS, fill, model_type, save_model_folder, stand_ins
from safetensors.torch import load_file
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from sned.checkpoint.model import load
from sned.checkpoint.native import propose
from sned.checkpoint.save import save_model
from sned.models import folding, modeling_sned, surgery
from sned.models.modeling_sned import StandIn
from sned.models.view import View

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sned.models.family import Sublayer

CLOSE = 1e-5
UNSERVED = {"falcon/serial": "input_layernorm"}
"""A norm that stays where the attention it served is gone: other variants of the family share it with the MLP."""


def mixed(view: View) -> None:
    """Everything that can differ at once: attention missing at both ends, no MLP, fewer KV groups and channels.

    And branches that read and write some features of the stream, next to each other or not.
    """
    surgery.drop_sublayer(view, 0, "attn")
    surgery.drop_sublayer(view, LAYERS - 1, "attn")
    for layer in (1, 3):
        groups = view.axis(f"layers.{layer}.attn.group")
        if groups.size > 1:
            surgery.keep(view, groups, range(1, groups.size))
    biased: tuple[tuple[int, Sublayer], ...] = ((2, "attn"), (3, "attn"), (3, "mlp"), (4, "mlp"))
    for layer, which in biased:
        if which == "attn" or not view.family.experts:
            folding.add_bias(view, layer, which, torch.linspace(-1, 1, HIDDEN))
    surgery.keep(view, view.axis("layers.2.attn.read"), range(5, 30))
    surgery.keep(view, view.axis("layers.3.attn.read"), range(0, HIDDEN, 2))
    surgery.keep(view, view.axis("layers.3.attn.write"), [0, 3, *range(7, 20)])
    if not view.family.experts:
        surgery.keep(view, view.axis("layers.0.mlp.write"), range(8))
        surgery.keep(view, view.axis("layers.3.mlp.read"), range(1, HIDDEN, 3))
        surgery.keep(view, view.axis("layers.4.mlp.write"), [1, 2, 31])
        surgery.keep(view, view.axis("layers.0.mlp.hidden"), range(3, 20))
        surgery.keep(view, view.axis("layers.3.mlp.hidden"), range(0, 48, 3))
        surgery.drop_sublayer(view, 2, "mlp")


def without_sliding(view: View) -> None:
    kinds: Any = view.model.config.layer_types
    for layer in [i for i, kind in enumerate(kinds) if kind == "sliding_attention"]:
        surgery.drop_sublayer(view, layer, "attn")


def without_attention(view: View) -> None:
    for layer in range(LAYERS):
        surgery.drop_sublayer(view, layer, "attn")


def with_maps(view: View) -> None:
    maps = stand_ins(3)
    surgery.replace(view, [0, 1], "linear", maps["linear"])
    surgery.drop_sublayer(view, 2, "attn")
    surgery.replace(view, [3], "lowrank", maps["lowrank"])


def with_cheap_maps(view: View) -> None:
    for layer, spec in ((0, "scale"), (2, "shift"), (4, "lowrank")):
        surgery.replace(view, [layer], spec, stand_ins(3)[spec])


@dataclass(frozen=True)
class Case:
    """A model in memory, what was saved of it, and that loaded again; tests that change a model copy it."""

    name: str
    folder: Path
    view: View
    model: Any

    @property
    def document(self) -> dict[str, Any]:
        return json.loads((self.folder / "config.json").read_text())

    def loaded(self, **options: Any) -> Any:
        kind = getattr(modeling_sned, type(self.model).__name__)
        return kind.from_pretrained(self.folder, **options).eval()


def make_case(root: Path, name: str, change: Callable[[View], None]) -> Case:
    model = load(str(save_model_folder(root / "dense", name)))
    change(model.view)
    folder = root / "pruned"
    folder.mkdir()
    assert not save_model(model, folder).stock
    return Case(name, folder, model.view, load(str(folder)).view.model)


@pytest.fixture(scope="module", params=FAMILY_NAMES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(tmp_path_factory.mktemp("uneven"), request.param, mixed)


def generated(model: Any, **options: Any) -> list[list[int]]:
    """Return greedy continuations of a batch whose first row is padded on the left."""
    mask = torch.ones_like(IDS)
    mask[0, :3] = 0
    out = model.generate(IDS, attention_mask=mask, max_new_tokens=4, do_sample=False, eos_token_id=None, **options)
    return out.tolist()


def test_it_computes_what_was_planned(case: Case) -> None:
    want = logits(case.view.model)
    assert (logits(case.model) - want).abs().max() < CLOSE
    assert_same_logits(decoded(case.model), want)


def test_nothing_is_padded_and_no_part_of_a_branch_stays(case: Case) -> None:
    stored = {name: tuple(tensor.shape) for name, tensor in load_file(case.folder / "model.safetensors").items()}
    live = {name: tuple(tensor.shape) for name, tensor in case.view.model.state_dict().items()}
    tied = case.view.model.config.tie_word_embeddings
    heads = {"lm_head.weight", "embed_out.weight"} if tied else set()
    assert stored == {name: shape for name, shape in live.items() if name not in heads}
    assert {n: tuple(p.shape) for n, p in case.model.state_dict().items()} == live


def test_transformers_reads_the_sizes_from_its_own_schema(case: Case) -> None:
    """The entry means to the stock config class, which builds nothing from it yet, what it means to ours."""
    ours = {"model_type", "auto_map", "sned_layers"} | ({"head_dim"} if model_type(case.name) == "falcon" else set())
    plain = {key: value for key, value in case.document.items() if key not in ours}
    plain["allow_global_per_layer_attribute_access"] = True
    stock = CONFIG_MAPPING[model_type(case.name)].from_dict(plain)
    entries = case.document["per_layer_config"]
    varying = {key for own in entries.values() for key in own}
    assert varying <= case.document.keys() | {"skip"}
    for position in range(LAYERS):
        theirs, mine = stock.per_layer_config[position], case.model.config.per_layer_config[position]
        branches: tuple[tuple[str, Sublayer], ...] = (("attention", "attn"), ("mlp", "mlp"))
        gone = [word for word, which in branches if not case.view.has_branch(position, which)]
        assert theirs.skip == mine.skip == gone
        assert all(getattr(theirs, key) == getattr(mine, key) for key in varying)


def test_it_generates_the_same_with_every_cache(case: Case) -> None:
    want = generated(case.model, use_cache=False)
    assert generated(case.model) == want
    assert generated(case.model, cache_implementation="static", disable_compile=True) == want


def test_kernels_agree(case: Case) -> None:
    assert (logits(case.loaded(attn_implementation="eager")) - logits(case.model)).abs().max() < CLOSE


def test_every_parameter_can_be_trained(case: Case) -> None:
    model = copy.deepcopy(case.model).train().requires_grad_(True)
    model.activation_checkpointing_enable()
    model(IDS, labels=IDS, use_cache=False).loss.backward()
    idle = [name for name, param in model.named_parameters() if param.grad is None or not param.grad.any()]
    assert all(UNSERVED.get(case.name, "no norm") in name for name in idle)


def test_config_survives_what_transformers_does_to_configs(case: Case) -> None:
    config = case.model.config
    entries = case.document["per_layer_config"]
    assert config.to_diff_dict()["per_layer_config"] == config.to_dict()["per_layer_config"] == entries
    for twin in (copy.deepcopy(config), type(config).from_dict(config.to_dict())):
        assert twin.overrides == config.overrides
        assert twin.to_dict()["sned_layers"] == case.document["sned_layers"]
    fresh = type(case.model)(copy.deepcopy(config))
    assert {n: p.shape for n, p in fresh.named_parameters()} == {n: p.shape for n, p in case.model.named_parameters()}
    assert all(torch.isfinite(param).all() for param in fresh.parameters())


def test_it_loads_in_every_way(case: Case) -> None:
    want = logits(case.model)
    for options in ({"device_map": "cpu"}, {"dtype": "auto"}, {"low_cpu_mem_usage": True}):
        assert_same_logits(logits(case.loaded(**options)), want, exact=True)
    tied = case.model.get_input_embeddings().weight is case.model.get_output_embeddings().weight
    assert tied == bool(case.model.config.tie_word_embeddings)


@pytest.mark.parametrize("change", [with_maps, with_cheap_maps])
@pytest.mark.parametrize("name", ["llama", "falcon"])
def test_maps_in_the_place_of_layers_are_made_trained_and_loaded(
    tmp_path: Path, name: str, change: Callable[[View], None]
) -> None:
    """A fresh one passes the stream through, so that training begins at plain removal."""
    case = make_case(tmp_path, name, change)
    placed = {i: layer for i, layer in enumerate(case.view.layers.values()) if isinstance(layer, StandIn)}
    facts = {own["layer"]: own for own in case.document["sned_layers"]["stand_ins"]}
    assert {i: (own["spec"], tuple(own["shape"])) for i, own in facts.items()} == {
        i: (layer.spec, tuple(layer.weight.shape)) for i, layer in placed.items()
    }
    test_every_parameter_can_be_trained(case)
    test_config_survives_what_transformers_does_to_configs(case)
    test_it_loads_in_every_way(case)
    fresh = View(type(case.model)(copy.deepcopy(case.model.config)).eval())
    stream = torch.randn(1, 3, case.model.config.hidden_size)
    for position in placed:
        out = fresh.layer(position)(stream)
        assert torch.equal(out[0] if isinstance(out, tuple) else out, stream)


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "falcon", "gpt2"])
def test_beams_share_a_cache(tmp_path: Path, name: str) -> None:
    model = make_case(tmp_path, name, mixed).model
    assert generated(model, num_beams=3) == generated(model, num_beams=3, use_cache=False)


@pytest.mark.parametrize("name", ["llama", "phi3", "gpt2"])
def test_kernels_are_switched_in_every_layer(tmp_path: Path, name: str) -> None:
    model = make_case(tmp_path, name, mixed).model
    want = generated(model)
    model.set_attn_implementation("eager")
    held = [module.config for module in model.modules() if getattr(module, "config", None) is not None]
    assert {config._attn_implementation for config in held} == {"eager"}
    assert generated(model) == want


def test_kernels_that_a_stock_class_cannot_switch_stay(tmp_path: Path) -> None:
    model = make_case(tmp_path, "falcon", mixed).model
    model.set_attn_implementation("eager")
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    ("name", "change"),
    [
        *((name, without_sliding) for name in ("gemma2", "gemma3_text", "qwen2")),
        *((name, without_attention) for name in ("llama", "mistral", "gemma3_text", "gpt2", "falcon")),
        *((name, with_maps) for name in ("llama", "gemma3_text", "gpt2", "falcon")),
        *((name, with_cheap_maps) for name in ("llama", "gemma3_text", "gpt2", "falcon")),
    ],
)
def test_whole_kinds_of_slots_hold_no_keys(tmp_path: Path, name: str, change: Callable[[View], None]) -> None:
    case = make_case(tmp_path, name, change)
    want = logits(case.view.model)
    assert (logits(case.model) - want).abs().max() < CLOSE
    assert_same_logits(decoded(case.model), want)
    tokens = generated(case.model, use_cache=False)
    assert generated(case.model) == tokens
    assert generated(case.model, cache_implementation="static", disable_compile=True) == tokens


@pytest.mark.parametrize("change", [mixed, without_attention, with_maps, with_cheap_maps])
@pytest.mark.parametrize("name", ["llama", "gemma", "gpt2", "falcon", "mixtral"])
def test_no_stock_class_fills_the_gaps(tmp_path: Path, name: str, change: Callable[[View], None]) -> None:
    """Not even one that is named outright: it would add random weights where branches are gone."""
    case = make_case(tmp_path, name, change)
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        AutoModelForCausalLM.from_pretrained(case.folder, trust_remote_code=False)
    stock = getattr(transformers, type(case.model).__name__.removeprefix("Sned"))
    with pytest.raises((RuntimeError, AttributeError), match=r"per-layer attribute|head_dim"):
        stock.from_pretrained(case.folder)


def test_its_tokenizer_opens_without_a_question(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers would ask on the terminal whether to run the folder's code, and wait for an answer."""
    asked: list[str] = []
    monkeypatch.setattr("builtins.input", lambda prompt="": asked.append(prompt) or "n")
    case = make_case(tmp_path, "llama", mixed)
    assert load(str(case.folder)).tokenizer("a b").input_ids
    assert not asked


def test_what_became_even_again_is_stock_again(tmp_path: Path) -> None:
    case = make_case(tmp_path, "llama", mixed)
    model = load(str(case.folder))
    surgery.drop_layers(model.view, [0, 2, 3, 4])
    (tmp_path / "even").mkdir()
    groups = len(model.view.alive["layers.1.attn.group"])
    assert save_model(model, tmp_path / "even").stock
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "even")
    assert type(stock).__name__ == "LlamaForCausalLM"
    assert stock.config.num_key_value_heads == groups
    assert_same_logits(logits(stock), logits(model.view.model))


@pytest.mark.parametrize(("kind", "stock"), [("llama", False), ("phi3", False), ("gpt2", False), ("mistral", True)])
def test_a_stock_config_that_refuses_a_head_count_is_not_used(tmp_path: Path, kind: str, stock: bool) -> None:
    """Three heads do not divide the hidden size: some classes refuse that, and some cannot say it."""
    settings: dict[str, Any] = CONFIGS[kind] if kind == "gpt2" else CONFIGS[kind] | {"num_key_value_heads": HEADS}
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**settings)).eval()
    fill(model, seed=0)
    view = View(model)
    for layer in view.layers:
        surgery.keep(view, view.axis(f"layers.{layer}.attn.group"), [0, 1, 3])
    proposal = propose(view)
    proposal.config.save_pretrained(tmp_path)
    assert proposal.stock == stock
    (name,) = proposal.config.architectures or []
    twin = getattr(transformers if stock else modeling_sned, name)(proposal.config).eval()
    twin.load_state_dict(model.state_dict(), strict=True)
    assert_same_logits(logits(twin), logits(model))
