"""The result files of BlockPruner and MultiPruner: read for what they mean, written so that they mean the same."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from kit.compare import assert_differ, assert_same_logits, logits
from kit.planted import layers_of, streamed_view
from kit.tiny import GROUPS, HEAD_DIM, HEADS, LAYERS, MLP, make_model

from sned.errors import PlanError
from sned.models.view import View
from sned.models.weights import LiveWeights
from sned.plans.ops import DropLayers, DropSublayer, Fold, Keep, Op
from sned.plans.plan import Base, Plan, Size, Stage
from sned.plans.published import (
    ops_from_blockpruner,
    ops_from_multipruner,
    read_published,
    to_blockpruner,
    to_multipruner,
)
from sned.score.magnitude import largest_first, unit_magnitudes

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel

WIDTH = HEADS * HEAD_DIM
GROUP = WIDTH // GROUPS
SIZE = Size(params=1, body_params=1, flops_per_token=1, kv_bytes_per_token=1)
BLOCKS = {
    "1": [["mha", 3]],
    "2": [["mlp", 1], ["mha", 3]],
    "3": [["mlp", 1], ["mha", 3], ["mlp", 3]],
    "4": [["mha", 0], ["mlp", 1], ["mha", 3], ["mlp", 3]],
}
ORDER = [(3, "attn"), (1, "mlp"), (3, "mlp"), (0, "attn")]


def document(attn: dict[int, int] | None = None, mlp: dict[int, int] | None = None, **changes: Any) -> dict[str, Any]:
    """A MultiPruner result as they write it: widths of all layers, whatever happened to them."""
    whole = {
        "pruned_attn_idx": [3, 1],
        "pruned_mlp_idx": [2],
        "pruned_attn_width": {str(i): (attn or {}).get(i, WIDTH) for i in range(LAYERS)},
        "pruned_mlp_width": {str(i): (mlp or {}).get(i, MLP) for i in range(LAYERS)},
    }
    return whole | changes


def plan(view: View, *ops: Op, method: str = "x", **options: Any) -> Plan:
    return Plan(
        base=Base.of(view, ""), stages=(Stage(method=method, options=options, ops=ops),), dense=SIZE, pruned=SIZE
    )


def pruned(name: str, ops: list[Op]) -> torch.Tensor:
    view = View(make_model(name))
    for op in ops:
        op.apply(view, {})
    return logits(view.model)


def drops(*which: tuple[int, str]) -> list[Op]:
    return [DropSublayer.model_validate({"layer": layer, "which": what}) for layer, what in which]


def sort_units(model: PreTrainedModel) -> PreTrainedModel:
    """Permute channels and KV groups by the magnitude of their weights, as MultiPruner does before its search."""
    ratio = HEADS // GROUPS
    for layer in layers_of(model):
        attn, mlp = layer.self_attn, layer.mlp
        norms = {n: getattr(attn, f"{n}_proj").weight.abs().sum(1).view(-1, HEAD_DIM) for n in "qkv"}
        shared = {n: norms[n].repeat_interleave(ratio if n in "kv" else 1, 0) for n in "qkv"}
        groups = sum(shared.values()).view(GROUPS, -1).mean(1).argsort(descending=True)
        heads = torch.cat([torch.arange(g * ratio, (g + 1) * ratio) for g in groups.tolist()])
        rows = {
            n: torch.arange(norms[n].numel()).view(-1, HEAD_DIM)[heads if n == "q" else groups].flatten() for n in "qkv"
        }
        channels = (mlp.gate_proj.weight.abs().sum(1) + mlp.up_proj.weight.abs().sum(1)).argsort(descending=True)
        outputs = {attn.q_proj: rows["q"], attn.k_proj: rows["k"], attn.v_proj: rows["v"]}
        for linear, order in (outputs | {mlp.gate_proj: channels, mlp.up_proj: channels}).items():
            linear.weight.data = linear.weight.data[order]
            if linear.bias is not None:
                linear.bias.data = linear.bias.data[order]
        attn.o_proj.weight.data = attn.o_proj.weight.data[:, rows["q"]]
        mlp.down_proj.weight.data = mlp.down_proj.weight.data[:, channels]
    return model


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2"])
def test_widths_by_magnitude_give_the_model_of_their_extraction(name: str) -> None:
    given = document(attn={0: GROUP, 4: GROUP}, mlp={0: 20, 3: 12, 4: 47})
    ours = pruned(name, ops_from_multipruner(given, View(make_model(name)), reorder=True))
    sorted_view = View(sort_units(make_model(name)))
    assert_same_logits(logits(sorted_view.model), logits(make_model(name)))
    for op in ops_from_multipruner(given, sorted_view, reorder=False):
        op.apply(sorted_view, {})
    assert_same_logits(ours, logits(sorted_view.model))
    assert_differ(ours, pruned(name, ops_from_multipruner(given, View(make_model(name)), reorder=False)))


def test_a_multipruner_result_is_removals_in_order_and_then_units() -> None:
    given = document(attn={0: GROUP, 3: GROUP}, mlp={0: 20, 2: 7})
    ops = ops_from_multipruner(given, View(make_model("llama")), reorder=False)
    kept = [Keep(axis="layers.0.attn.group", units=(0,)), Keep(axis="layers.0.mlp.hidden", units=tuple(range(20)))]
    assert ops == [*drops((3, "attn"), (1, "attn"), (2, "mlp")), *kept]  # what is gone has no width


def test_by_magnitude_the_largest_units_stay() -> None:
    view = View(make_model("llama"))
    (*_, op) = ops_from_multipruner(document(mlp={4: 10}), view, reorder=True)
    order = largest_first(unit_magnitudes(view.axis("layers.4.mlp.hidden"), LiveWeights(view.layer(4))))
    assert op == Keep(axis="layers.4.mlp.hidden", units=tuple(order[:10]))
    assert op.units != tuple(range(10))


def test_a_streamed_model_gives_the_same_units() -> None:
    given = document(attn={0: GROUP, 4: GROUP}, mlp={0: 20, 3: 12})
    loaded = ops_from_multipruner(given, View(make_model("llama")), reorder=True)
    assert ops_from_multipruner(given, streamed_view("llama"), reorder=True) == loaded


def test_a_file_that_says_how_it_counts_is_believed() -> None:
    view = View(make_model("llama"))
    natural, sorted_ = (ops_from_multipruner(document(mlp={4: 10}), view, reorder=flag) for flag in (False, True))
    for said, expected in ((False, natural), (True, sorted_)):
        for asked in (False, True):
            assert ops_from_multipruner(document(mlp={4: 10}, weight_reorder=said), view, reorder=asked) == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (document(pruned_attn_idx=[3, 5, 40]), r"pruned_attn_idx names layers 5,40; the model has 0-4"),
        (document(pruned_mlp_idx=[-1]), r"pruned_mlp_idx names layers -1"),
        (document(pruned_mlp_idx=[2, 2]), "lists a layer twice"),
        (
            document(pruned_mlp_width={str(i + LAYERS): MLP for i in range(LAYERS)}),
            r"names layers 5-9; the model has 0-4\n.*adds 32",
        ),
        (document(pruned_mlp_width={"0": MLP, "1": MLP}), "lists 2 layers, the model has 5"),
        (document(attn={0: GROUP + 1}), r"17 in layer 0, which is no whole number of KV groups of 16"),
        (document(attn={2: 2 * WIDTH}), r"keeps 64 in layer 2, the model has 32"),
        (document(mlp={4: MLP + 1}), r"pruned_mlp_width keeps 49 in layer 4, the model has 48"),
        (document(mlp={4: 0}), r"keeps 0 in layer 4\n.*pruned_mlp_idx instead"),
        (document(pruned_attn_idx=["3"]), r"pruned_attn_idx.0: .*integer"),
        (document(pruned_head_width={}), "pruned_head_width: Extra inputs"),
        (document(mlp={0: 4.5}), r"pruned_mlp_width.0: .*integer"),
    ],
)
def test_a_multipruner_result_that_does_not_fit_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        ops_from_multipruner(given, View(make_model("llama")), reorder=False)


@pytest.mark.parametrize("reorder", [False, True])
def test_a_multipruner_result_survives_a_round_trip(reorder: bool) -> None:
    view, order = View(make_model("qwen2")), "magnitude" if reorder else "stored"
    given = document(attn={0: GROUP}, mlp={0: 20, 3: 12})
    ops = ops_from_multipruner(given, view, reorder=reorder)
    written = json.loads(json.dumps(to_multipruner(plan(view, *ops, method="multipruner", order=order), view.geometry)))
    assert written == given | {"weight_reorder": reorder}
    assert ops_from_multipruner(written, view, reorder=not reorder) == ops


def test_whole_layers_and_repeated_trims_can_be_written() -> None:
    view = View(make_model("llama"))
    ops: list[Op] = [
        Keep(axis="layers.0.mlp.hidden", units=tuple(range(40))),
        Keep(axis="layers.4.mlp.hidden", units=tuple(range(9))),
        DropLayers(layers=(2,)),
        Keep(axis="layers.0.mlp.hidden", units=tuple(range(30))),
        DropSublayer(layer=4, which="mlp"),
    ]
    written = to_multipruner(plan(view, *ops), view.geometry)
    assert (written["pruned_attn_idx"], written["pruned_mlp_idx"]) == ([2], [2, 4])
    assert written["pruned_mlp_width"] == {str(i): 30 if i == 0 else MLP for i in range(LAYERS)}


def test_what_the_multipruner_format_cannot_say_is_refused() -> None:
    view = View(make_model("llama"))
    scattered = Keep(axis="layers.0.mlp.hidden", units=(3, 5, 7))
    for refused in (
        plan(view, scattered),
        plan(view, scattered, method="multipruner", order="stored"),
        plan(view, scattered, method="multipruner", order="wandasp"),
        plan(view, scattered, method="imported", reorder=False),
        plan(view, scattered, method="wandasp", order="magnitude"),
    ):
        with pytest.raises(PlanError, match=r"how many units are kept, not which; .* layers.0.mlp.hidden"):
            to_multipruner(refused, view.geometry)
    with pytest.raises(PlanError, match="fold a linear map into the MLP of layer 2"):
        to_multipruner(plan(view, Fold(layer=2, tensor="t")), view.geometry)
    with pytest.raises(PlanError, match="another model"):
        to_multipruner(plan(view), View(make_model("qwen2")).geometry)


def test_a_blockpruner_result_gives_back_the_order_of_removals() -> None:
    view = View(make_model("llama"))
    assert ops_from_blockpruner(BLOCKS, view) == drops(*ORDER)
    assert ops_from_blockpruner(BLOCKS, view, 2) == drops(*ORDER[:2])


def test_a_blockpruner_result_survives_a_round_trip() -> None:
    view = View(make_model("llama"))
    written = json.loads(json.dumps(to_blockpruner(plan(view, *drops(*ORDER)))))
    assert written == BLOCKS
    assert ops_from_blockpruner(written, view) == drops(*ORDER)
    layer = to_blockpruner(plan(view, DropSublayer(layer=4, which="mlp"), DropLayers(layers=(1, 4))))
    assert layer["4"] == [["mha", 1], ["mlp", 1], ["mlp", 4], ["mha", 4]]
    assert list(layer) == ["1", "2", "3", "4"]
    with pytest.raises(PlanError, match=r"the plan trims layers\.0\.mlp\.hidden"):
        to_blockpruner(plan(view, Keep(axis="layers.0.mlp.hidden", units=(0,))))


@pytest.mark.parametrize(
    ("given", "n", "message"),
    [
        (BLOCKS, 5, "holds 1 to 4 removals, not 5"),
        (BLOCKS, 0, "holds 1 to 4 removals, not 0"),
        ({"1": [["mha", 9]]}, None, "step 1 names layers 9; the model has 0-4"),
        ({"1": [["attn", 1]]}, None, "1.0.0: Input should be 'mha' or 'mlp'"),
        ({"2": [["mha", 1], ["mha", 2]]}, None, "numbered from 1 without gaps, not 2"),
        ({"1": [["mha", 1]], "2": [["mha", 2], ["mlp", 3]]}, None, "step 2 should list the removals of step 1"),
        ({"1": [["mha", 1]], "2": [["mha", 1]]}, None, "step 2 should"),
    ],
)
def test_a_blockpruner_result_that_does_not_fit_is_refused(given: dict[str, Any], n: int | None, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        ops_from_blockpruner(given, View(make_model("llama")), n)


def test_a_model_that_was_cut_is_refused() -> None:
    for cut in (Keep(axis="layers.0.mlp.hidden", units=(0, 1)), DropLayers(layers=(1,))):
        view = View(make_model("llama"))
        cut.apply(view, {})
        with pytest.raises(PlanError, match="cut already"):
            ops_from_multipruner(document(), view, reorder=False)


def test_a_file_is_recognised(tmp_path: Path) -> None:
    view, file = View(make_model("llama")), tmp_path / "result.json"
    file.write_text(json.dumps(BLOCKS))
    assert read_published(file, view, blocks=3) == drops(*ORDER[:3])
    file.write_text(json.dumps(document(mlp={4: 10})))
    assert read_published(file, view) == ops_from_multipruner(document(mlp={4: 10}), view, reorder=True)
    natural = ops_from_multipruner(document(mlp={4: 10}), view, reorder=False)
    assert read_published(file, view, reorder=False) == natural
    with pytest.raises(PlanError, match=r"result.json: only a BlockPruner result"):
        read_published(file, view, blocks=3)


@pytest.mark.parametrize("text", ["", "[]", "{}", "{", '{"format": 1}', '{"1": 3}'])
def test_a_file_that_is_neither_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "result.json"
    file.write_text(text)
    with pytest.raises(PlanError, match=r"result\.json"):
        read_published(file, View(make_model("llama")))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"nowhere\.json"):
        read_published(tmp_path / "nowhere.json", View(make_model("llama")))
