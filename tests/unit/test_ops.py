"""Ops as data: strict, immutable, with one spelling in JSON."""

from __future__ import annotations

import json
from typing import Any, get_args

import pytest
from pydantic import TypeAdapter, ValidationError

from sned.plans.ops import AddBias, DropLayers, DropSublayer, Fold, Keep, Mask, Merge, Op, Replace, SetWeight

ADAPTER: TypeAdapter[Any] = TypeAdapter(Op)

EXAMPLES = [
    (DropLayers(layers=[3, 1, 2, 7]), {"op": "drop_layers", "layers": "1-3,7"}, "remove layers 1-3,7"),
    (
        DropSublayer(layer=4, which="attn"),
        {"op": "drop_sublayer", "layer": 4, "which": "attn"},
        "remove the attn of layer 4",
    ),
    (
        Keep(axis="layers.1.mlp.hidden", units=range(64)),
        {"op": "keep", "axis": "layers.1.mlp.hidden", "units": "0-63"},
        "keep 64 units of layers.1.mlp.hidden",
    ),
    (
        Fold(layer=12, tensor="map.1f"),
        {"op": "fold", "layer": 12, "tensor": "map.1f"},
        "fold a linear map into the MLP of layer 12",
    ),
    (
        Replace(layers=range(13, 19), tensor="map.2e"),
        {"op": "replace", "layers": "13-18", "spec": "linear", "tensor": "map.2e"},
        "replace layers 13-18 by one linear map",
    ),
    (
        Replace(layers=[13, 14], spec="shift", tensor="shift.2e"),
        {"op": "replace", "layers": "13-14", "spec": "shift", "tensor": "shift.2e"},
        "replace layers 13-14 by one constant shift",
    ),
    (
        Replace(layers=[5], spec="scale", tensor="scale.2e"),
        {"op": "replace", "layers": "5", "spec": "scale", "tensor": "scale.2e"},
        "replace layers 5 by one factor per channel",
    ),
    (
        Replace(layers=[5], spec="lowrank", tensor="lowrank.2e"),
        {"op": "replace", "layers": "5", "spec": "lowrank", "tensor": "lowrank.2e"},
        "replace layers 5 by one low-rank update",
    ),
    (
        Merge(into=12, layers=[14, 13], mode="keep_last"),
        {"op": "merge", "into": 12, "layers": "13-14", "mode": "keep_last"},
        "merge layers 13-14 into layer 12 (keep_last)",
    ),
    (
        SetWeight(layer=7, param="mlp.down_proj.weight", tensor="w.3d"),
        {"op": "set_weight", "layer": 7, "param": "mlp.down_proj.weight", "tensor": "w.3d"},
        "set mlp.down_proj.weight of layer 7",
    ),
    (
        AddBias(layer=3, which="mlp", tensor="bias.5c"),
        {"op": "add_bias", "layer": 3, "which": "mlp", "tensor": "bias.5c"},
        "add a bias to the mlp of layer 3",
    ),
    (
        Mask(layer=7, param="mlp.down_proj.weight", tensor="m.3d", zeros=25, of=200),
        {"op": "mask", "layer": 7, "param": "mlp.down_proj.weight", "tensor": "m.3d", "zeros": 25, "of": 200},
        "set 12.5% of mlp.down_proj.weight of layer 7 to zero",
    ),
]


def read(document: dict[str, Any]) -> Any:
    return ADAPTER.validate_json(json.dumps(document))


def test_every_op_has_an_example() -> None:
    kinds = get_args(get_args(Op)[0])
    assert {type(op) for op, _, _ in EXAMPLES} == set(kinds)


@pytest.mark.parametrize(("op", "document", "words"), EXAMPLES)
def test_an_op_has_one_spelling_and_reads_it_back(op: Any, document: dict[str, Any], words: str) -> None:
    assert op.model_dump(mode="json") == document
    assert read(document) == op
    assert op.describe() == words


@pytest.mark.parametrize(("op", "document", "words"), EXAMPLES)
def test_an_unknown_field_is_refused(op: Any, document: dict[str, Any], words: str) -> None:
    assert words
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        read({**document, "note": "x"})
    with pytest.raises(ValidationError, match="frozen"):
        op.op = "other"


@pytest.mark.parametrize(("op", "document", "words"), EXAMPLES)
def test_every_field_is_needed(op: Any, document: dict[str, Any], words: str) -> None:
    assert op.describe() == words
    for field in document.keys() - {"op", "spec"}:
        with pytest.raises(ValidationError, match=field):
            read({k: v for k, v in document.items() if k != field})


@pytest.mark.parametrize(
    "document",
    [
        {"op": "drop_layer", "layers": "1"},
        {"layers": "1"},
        {"op": "drop_layers", "layers": ""},
        {"op": "drop_layers", "layers": []},
        {"op": "drop_layers", "layers": "5-3"},
        {"op": "drop_layers", "layers": "one"},
        {"op": "drop_layers", "layers": [-1]},
        {"op": "drop_layers", "layers": ["1"]},
        {"op": "drop_layers", "layers": [1.5]},
        {"op": "drop_layers", "layers": 3},
        {"op": "drop_sublayer", "layer": -1, "which": "attn"},
        {"op": "drop_sublayer", "layer": "1", "which": "attn"},
        {"op": "drop_sublayer", "layer": 1, "which": "norm"},
        {"op": "keep", "axis": 3, "units": "1"},
        {"op": "replace", "layers": "1-2", "spec": "mlp", "tensor": "x"},
        {"op": "merge", "into": 1, "layers": "2", "mode": "first"},
        {"op": "merge", "into": -1, "layers": "2", "mode": "mean"},
        {"op": "fold", "layer": True, "tensor": "x"},
    ],
    ids=str,
)
def test_what_is_not_an_op_is_refused(document: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        read(document)


@pytest.mark.parametrize("given", ["1-3,7", [7, 3, 2, 1, 1], (1, 2, 3, 7), [1, 2, 3, 7]])
def test_layers_may_be_given_in_any_order_and_are_kept_in_one(given: Any) -> None:
    assert DropLayers(layers=given).layers == (1, 2, 3, 7)


def test_equal_ops_are_equal_and_can_be_collected() -> None:
    assert len({DropLayers(layers="1-3"), DropLayers(layers=[3, 2, 1]), DropLayers(layers=[1])}) == 2
