"""A pruned model decodes with a cache as it does without: comparing logits, since tokens hide small errors."""

from __future__ import annotations

import pytest
import torch
from kit.compare import assert_same_logits, decoded, logits
from kit.tiny import DENSE_NAMES, FAMILY_NAMES, IDS, LAYERS, STAND_INS, make_model, stand_ins

from sned.models.view import View
from sned.plans.ops import DropLayers, DropSublayer, Keep, Op, Replace

TENSORS = stand_ins(8)
TENSORS["map"] = TENSORS["linear"]
ATTENTION = {i: DropSublayer(layer=i, which="attn") for i in range(LAYERS)}
CUTS: dict[str, list[Op]] = {
    "nothing": [],
    **{f"no attention {i}": [op] for i, op in ATTENTION.items()},
    "no attention 0,2": [ATTENTION[0], ATTENTION[2]],
    "no attention 0-3": [ATTENTION[i] for i in range(4)],
    "no attention at all": [ATTENTION[i] for i in range(LAYERS)],
    **{f"drop {i}": [DropLayers(layers=[i])] for i in (0, 2, LAYERS - 1)},
    "drop 0,2": [DropLayers(layers=[0, 2])],
    "drop 0, no attention 1": [DropLayers(layers=[0]), ATTENTION[1]],
    "no attention 2, drop 0-1": [ATTENTION[2], DropLayers(layers=[0, 1])],
    "one group 1": [Keep(axis="layers.1.attn.group", units=[0])],
    **{f"{spec} for 0": [Replace(layers=[0], spec=spec, tensor=spec)] for spec in STAND_INS},
    "replace 0-1": [Replace(layers=[0, 1], tensor="map")],
    "replace 2-4": [Replace(layers=[2, 3, 4], tensor="map")],
    "replace 1, no attention 0": [Replace(layers=[1], tensor="map"), ATTENTION[0]],
}
MLP_CUTS: dict[str, list[Op]] = {
    "no mlp 0,2,4": [DropSublayer(layer=i, which="mlp") for i in (0, 2, 4)],
    "no mlp 1, no attention 0": [DropSublayer(layer=1, which="mlp"), ATTENTION[0]],
    "trim 2": [Keep(axis="layers.2.mlp.hidden", units=range(1, 48, 2))],
}
CASES = [*((n, c) for n in FAMILY_NAMES for c in CUTS), *((n, c) for n in DENSE_NAMES for c in MLP_CUTS)]


@pytest.mark.parametrize(("name", "cut"), CASES)
def test_cached_decoding_equals_a_full_pass(name: str, cut: str) -> None:
    view = View(make_model(name))
    for op in (CUTS | MLP_CUTS)[cut]:
        op.apply(view, TENSORS)
    assert_same_logits(decoded(view.model), logits(view.model))


@pytest.mark.parametrize("name", FAMILY_NAMES)
def test_a_pruned_model_generates(name: str) -> None:
    """Greedy generation through the public entry point, against a loop without a cache."""
    view = View(make_model(name))
    for op in (ATTENTION[0], DropLayers(layers=[2])):
        op.apply(view, TENSORS)
    ids = IDS[:1, :6]
    want = ids
    for _ in range(5):
        want = torch.cat([want, logits(view.model, want)[:, -1:].argmax(-1)], dim=1)
    got = view.model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False, eos_token_id=None
    )
    assert got.tolist() == want.tolist()
