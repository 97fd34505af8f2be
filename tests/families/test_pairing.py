"""What is left of cut layers is saved as ordinary layers wherever it makes some, and computes the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from kit.compare import assert_differ, assert_same_logits, decoded, logits, swept
from kit.planted import streamed_view
from kit.tiny import CONFIGS, DENSE_NAMES, FAMILY_NAMES, HIDDEN, LAYERS, family_of, make_model, save_model_folder
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from sned.checkpoint.model import load
from sned.checkpoint.native import propose
from sned.checkpoint.pairing import paired
from sned.checkpoint.save import save_model
from sned.models.count import count
from sned.models.view import View
from sned.plans.ops import DropLayers, DropSublayer, Fold, Keep, Op, Replace

if TYPE_CHECKING:
    from pathlib import Path

PARALLEL = ["falcon", "falcon/multi_query", "gpt_neox", "phi"]
SEQUENTIAL = [name for name in DENSE_NAMES if name not in PARALLEL]
every_sequential_family = pytest.mark.parametrize("name", SEQUENTIAL)
TENSORS = {"map": torch.eye(HIDDEN) + 0.2 * torch.randn(HIDDEN, HIDDEN, generator=torch.Generator().manual_seed(9))}


def lone(kept: str) -> list[Op]:
    """The ops that leave of each layer its attention (`a`), its MLP (`m`), both (`b`) or nothing (`-`)."""
    ops: list[Op] = [DropLayers(layers=[i for i, what in enumerate(kept) if what == "-"])] if "-" in kept else []
    ops += [DropSublayer(layer=i, which="mlp") for i, what in enumerate(kept) if what == "a"]
    return ops + [DropSublayer(layer=i, which="attn") for i, what in enumerate(kept) if what == "m"]


def cut(view: View, *ops: Op) -> View:
    for op in ops:
        op.apply(view, TENSORS)
    return view


def kept(view: View) -> str:
    """What is left of each present layer, in the letters of `lone`."""
    letters = {(True, True): "b", (True, False): "a", (False, True): "m", (False, False): "-"}
    return "".join(letters[view.has_branch(i, "attn"), view.has_branch(i, "mlp")] for i in view.layers)


@pytest.mark.parametrize("pattern", ["bambb", "ambbb", "bbbam", "amamb", "am-am", "a-m-b"])
@every_sequential_family
def test_an_attention_and_the_next_mlp_make_an_ordinary_layer(name: str, pattern: str) -> None:
    view = cut(View(make_model(name)), *lone(pattern))
    result = paired(view)
    assert kept(result) == pattern.replace("-", "").replace("am", "b")
    assert_differ(logits(result.model), logits(make_model(name)))
    assert_same_logits(logits(result.model), logits(view.model))
    assert_same_logits(decoded(result.model), logits(view.model))
    assert_same_logits(swept(result), logits(view.model))
    assert count(result).params == count(view).params - leftovers(name) * pattern.count("m")
    assert propose(result).stock


def leftovers(name: str) -> int:
    """Parameters of the one norm that is not known to serve the attention alone, and so outlives it."""
    return 2 * HIDDEN if name == "falcon/serial" else 0


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("bmabb", "bmabb"),
        ("babmb", "babmb"),
        ("aammb", "abmb"),
        ("mamab", "mbab"),
        ("ammbb", "bmbb"),
        ("aaaaa", "aaaaa"),
    ],
)
@pytest.mark.parametrize("name", ["llama", "gemma3_text", "opt", "gpt2", "falcon/serial"])
def test_what_does_not_alternate_stays_as_it_is(name: str, before: str, after: str) -> None:
    view = cut(View(make_model(name)), *lone(before))
    result = paired(view)
    assert kept(result) == after
    assert (result is view) == (before == after)
    assert_same_logits(logits(result.model), logits(view.model))
    assert_same_logits(decoded(result.model), logits(view.model))
    assert not propose(result).stock


@pytest.mark.parametrize("name", [*PARALLEL, *sorted(set(FAMILY_NAMES) - set(DENSE_NAMES))])
def test_parallel_branches_and_experts_are_never_paired(name: str) -> None:
    pattern = "bambb" if name in PARALLEL else "bmbbb"
    view = cut(View(make_model(name)), *lone(pattern))
    assert paired(view) is view


def test_a_linear_layer_stands_between() -> None:
    view = cut(View(make_model("llama")), *lone("ab-mb"), Replace(layers=[1], tensor="map"))
    assert paired(view) is view


@every_sequential_family
def test_the_model_in_memory_stays_unpaired(name: str) -> None:
    view = cut(View(make_model(name)), *lone("bambb"))
    before, config, alive = logits(view.model), view.model.config.to_dict(), dict(view.alive)
    tensors = {n: t.data_ptr() for n, t in view.model.state_dict().items()}
    result = paired(view)
    assert kept(view) == "bambb"
    assert view.model.config.to_dict() == config
    assert view.alive == alive
    assert_same_logits(logits(view.model), before, exact=True)
    assert {t.data_ptr() for t in result.model.state_dict().values()} <= set(tensors.values())


@pytest.mark.parametrize("name", ["smollm3", "gemma3_text", "qwen2"])
def test_a_layer_keeps_the_kind_of_its_attention(name: str) -> None:
    """Layers 1 and 2 differ in what they attend to, and how; the MLP comes from the layer that is not kept."""
    attribute = "no_rope_layers" if name == "smollm3" else "layer_types"
    view = View(make_model(name))
    kinds = list(getattr(view.model.config, attribute))
    assert kinds[1] != kinds[2]
    result = paired(cut(view, *lone("bambb")))
    assert getattr(result.model.config, attribute) == [kinds[i] for i in (0, 1, 3, 4)]


@every_sequential_family
def test_trims_move_with_their_mlp(name: str) -> None:
    """What was cut of the giver, before and after its attention went, is cut of the layer that takes its MLP."""
    groups = View(make_model(name)).axis("layers.1.attn.group").size
    ops = [
        Keep(axis="layers.2.mlp.hidden", units=range(5, 40)),
        *lone("bambb"),
        Keep(axis="layers.2.mlp.hidden", units=range(0, 30, 2)),
        Keep(axis="layers.1.attn.group", units=[groups - 1]),
        *([] if family_of(name).mlp_post else [Fold(layer=2, tensor="map")]),
    ]
    view, hollow = cut(View(make_model(name)), *ops), cut(streamed_view(name), *ops)
    result = paired(view)
    assert result.alive["layers.1.mlp.hidden"] == tuple(range(6, 30, 2))
    assert result.axis("layers.1.mlp.hidden").layer == 1
    for each in (result, paired(hollow)):
        assert_same_logits(swept(each), logits(view.model))
    assert not propose(result).stock


@every_sequential_family
def test_uniform_widths_are_ordinary_layers_too(name: str) -> None:
    trims = [Keep(axis=f"layers.{i}.mlp.hidden", units=range(i, 24 + i)) for i in range(LAYERS) if i != 1]
    view = cut(View(make_model(name)), *trims, *lone("bambb"))
    result = paired(view)
    assert propose(result).stock
    assert_same_logits(logits(result.model), logits(view.model))


@every_sequential_family
def test_a_model_opened_without_an_mlp_can_be_paired(name: str) -> None:
    """Base coordinates then start at the cut model, which has no axis where an MLP was missing."""
    once = cut(View(make_model(name)), *lone("babbb"), Keep(axis="layers.2.mlp.hidden", units=range(20)))
    again = cut(View(once.model), DropSublayer(layer=2, which="attn"))
    result = paired(again)
    assert kept(result) == "bbbb"
    assert result.axis("layers.1.mlp.hidden").size == 20
    assert_same_logits(logits(result.model), logits(again.model))


@every_sequential_family
def test_a_paired_model_can_be_streamed(name: str) -> None:
    loaded, streamed = (paired(cut(view, *lone("amamb"))) for view in (View(make_model(name)), streamed_view(name)))
    assert_same_logits(swept(streamed), swept(loaded), exact=True)
    assert all(p.is_meta for layer in streamed.layers.values() for p in layer.parameters())
    assert {n: p.shape for n, p in streamed.model.named_parameters()} == {
        n: p.shape for n, p in loaded.model.named_parameters()
    }


@pytest.mark.parametrize("name", SEQUENTIAL)
def test_it_is_saved_as_a_shorter_stock_model(tmp_path: Path, name: str) -> None:
    source = save_model_folder(tmp_path / "dense", name)
    written = []
    for mode in ("off", "on"):
        model = load(str(source), stream=mode)
        cut(model.view, *lone("bamam"))
        folder = tmp_path / f"streamed-{mode}"
        folder.mkdir()
        assert save_model(model, folder).stock
        written.append({f.name: f.read_bytes() for f in sorted(folder.iterdir())})
    assert written[0] == written[1]
    assert not (folder / "modeling_sned.py").exists()
    want = logits(cut(View(make_model(name)), *lone("bamam")).model)
    again = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)
    assert again.config.num_hidden_layers == 3
    assert type(again) is type(make_model(name))
    assert_same_logits(logits(again), want)
    assert_same_logits(decoded(again), want)


@pytest.mark.parametrize("name", ["llama", "gemma2", "opt", "gpt2"])
def test_an_uneven_checkpoint_becomes_a_stock_one_when_the_missing_half_goes(tmp_path: Path, name: str) -> None:
    model = load(str(save_model_folder(tmp_path / "dense", name)))
    cut(model.view, *lone("babbb"))
    for folder in (first := tmp_path / "first", second := tmp_path / "second"):
        folder.mkdir()
    assert not save_model(model, first).stock
    again = load(str(first))
    cut(again.view, DropSublayer(layer=2, which="attn"))
    assert save_model(again, second).stock
    assert not (second / "modeling_sned.py").exists()
    stock = AutoModelForCausalLM.from_pretrained(second, trust_remote_code=False)
    assert type(stock) is type(make_model(name))
    assert_same_logits(logits(stock), logits(cut(View(make_model(name)), *lone("bambb")).model))


@pytest.mark.parametrize("name", PARALLEL)
def test_parallel_leftovers_are_saved_as_they_are(tmp_path: Path, name: str) -> None:
    model = load(str(save_model_folder(tmp_path / "dense", name)))
    cut(model.view, *lone("bambb"))
    folder = tmp_path / "pruned"
    folder.mkdir()
    assert not save_model(model, folder).stock
    stored = load_file(folder / "model.safetensors")
    assert sum(t.numel() for t in stored.values()) == sum(p.numel() for p in model.view.model.parameters())
    assert_same_logits(logits(load(str(folder)).view.model), logits(model.view.model))


def test_every_family_is_covered() -> None:
    assert {*SEQUENTIAL, *PARALLEL} == {name for name in CONFIGS if not family_of(name).experts}
    assert [name for name in SEQUENTIAL if View(make_model(name)).parallel] == []
