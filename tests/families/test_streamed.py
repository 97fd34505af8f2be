"""A view whose layers are read one at a time computes, bit by bit, what the loaded one does."""

from __future__ import annotations

import pytest
import torch
from kit.compare import assert_same_logits, logits, swept
from kit.planted import MemorySource, layers_of, streamed_view
from kit.tiny import DENSE_NAMES, FAMILY_NAMES, LAYERS, STAND_INS, family_of, make_model, stand_ins, tokens

from sned.models.view import View
from sned.plans.ops import DropLayers, DropSublayer, Fold, Keep, Op, Replace
from sned.runtime import sweep as sweeps
from sned.runtime.sweep import Site, Sweep

every_family = pytest.mark.parametrize("name", FAMILY_NAMES)
TENSORS = stand_ins(7)
TENSORS["map"] = TENSORS["linear"]

CUTS: dict[str, list[Op]] = {
    "drop 0,3": [DropLayers(layers=[0, 3])],
    "no attention 2": [DropSublayer(layer=2, which="attn")],
    "one group": [Keep(axis="layers.2.attn.group", units=[0])],
    **{f"{spec} for 1-2": [Replace(layers=[1, 2], spec=spec, tensor=spec)] for spec in STAND_INS},
    "replace, then drop": [Replace(layers=[1, 2], tensor="map"), DropLayers(layers=[0])],
}
MLP_CUTS: dict[str, list[Op]] = {
    "no mlp 2": [DropSublayer(layer=2, which="mlp")],
    "trim twice": [Keep(axis="layers.1.mlp.hidden", units=u) for u in (range(40), range(7, 48, 2))],
    "trim, then replace": [Keep(axis="layers.1.mlp.hidden", units=range(9)), Replace(layers=[1], tensor="map")],
}
FOLDS: dict[str, list[Op]] = {
    "fold and drop": [Fold(layer=1, tensor="map"), DropLayers(layers=[2, 3])],
    "trim and fold twice": [MLP_CUTS["trim twice"][1], *[Fold(layer=1, tensor="map")] * 2],
}
FOLDABLE = [name for name in DENSE_NAMES if not family_of(name).mlp_post]
EVERY_CUT = CUTS | MLP_CUTS | FOLDS
CASES = [
    *((n, c) for n in FAMILY_NAMES for c in CUTS),
    *((n, c) for n in DENSE_NAMES for c in MLP_CUTS),
    *((n, c) for n in FOLDABLE for c in FOLDS),
]


@every_family
def test_the_same_model(name: str) -> None:
    streamed, loaded = streamed_view(name), View(make_model(name))
    assert streamed.streamed
    assert streamed.fingerprint == loaded.fingerprint
    assert streamed.geometry == loaded.geometry
    assert_same_logits(swept(streamed), logits(loaded.model), exact=True)


@every_family
def test_the_same_activations(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeps, "BATCH_TOKENS", 24)
    monkeypatch.setattr(sweeps, "STREAM_CHUNK_TOKENS", 72)
    sites = tuple(Site(kind, layer) for layer in range(LAYERS) for kind in ("resid", "attn", "mlp"))
    groups = [(site,) for site in (*sites, Site("resid", LAYERS))]

    def run(view: View) -> list[list[torch.Tensor]]:
        caught: list[list[torch.Tensor]] = [[] for _ in groups]
        sweep = Sweep(view)
        for chunk in sweep.chunks(tokens(7, 12).ids):
            for number, (value,) in sweep.activations(chunk, groups):
                caught[number].append(value.clone())
        return caught

    for got, want in zip(run(streamed_view(name)), run(View(make_model(name))), strict=True):
        assert len(got) == len(want) == 4
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize(("name", "cut"), CASES)
def test_the_same_model_after_ops(name: str, cut: str) -> None:
    streamed, loaded = streamed_view(name), View(make_model(name))
    for op in EVERY_CUT[cut]:
        op.apply(streamed, TENSORS)
        op.apply(loaded, TENSORS)
    assert_same_logits(swept(streamed), logits(loaded.model), exact=True)
    assert streamed.alive == loaded.alive
    assert {n: p.shape for n, p in streamed.model.named_parameters()} == {
        n: p.shape for n, p in loaded.model.named_parameters()
    }


@pytest.mark.parametrize(("name", "cut"), CASES)
def test_the_same_model_in_trials(name: str, cut: str) -> None:
    streamed, loaded = streamed_view(name), View(make_model(name))
    *done, op = EVERY_CUT[cut]
    for each in done:
        each.apply(streamed, TENSORS)
        each.apply(loaded, TENSORS)
    before = swept(streamed)
    with op.trial(streamed, TENSORS), op.trial(loaded, TENSORS):
        assert_same_logits(swept(streamed), swept(loaded), exact=True)
    assert_same_logits(swept(streamed), before, exact=True)


@every_family
def test_only_the_layer_at_work_is_in_memory(name: str) -> None:
    view = streamed_view(name)
    with view.materialised(2) as layer:
        assert not any(p.is_meta for p in layer.parameters())
        others = [p for i, other in view.layers.items() if i != 2 for p in other.parameters()]
        assert all(p.is_meta for p in others)
    assert all(p.is_meta for other in view.layers.values() for p in other.parameters())


def test_a_layer_leaves_memory_even_when_its_run_fails() -> None:
    view = streamed_view("llama")
    with pytest.raises(KeyboardInterrupt), view.materialised(1):
        raise KeyboardInterrupt
    assert all(p.is_meta for p in view.layer(1).parameters())


def test_each_layer_is_read_once_per_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeps, "BATCH_TOKENS", 24)
    monkeypatch.setattr(sweeps, "STREAM_CHUNK_TOKENS", 72)
    source, model = MemorySource(make_model("llama")), make_model("llama")
    for layer in layers_of(model):
        layer.to("meta")
    view = View(model, source=source)
    sweep = Sweep(view)
    chunks = list(sweep.chunks(tokens(7, 12).ids))
    assert [len(chunk) for chunk in chunks] == [3, 1]
    for chunk in chunks:
        list(sweep.activations(chunk, [(Site("resid", 3),)]))
    assert source.reads == [2, 2, 2, 0, 0]


def test_other_weights_have_another_fingerprint() -> None:
    assert streamed_view("llama", seed=1).fingerprint.weights != streamed_view("llama").fingerprint.weights
    assert streamed_view("llama", seed=1).fingerprint.geometry == streamed_view("llama").fingerprint.geometry
