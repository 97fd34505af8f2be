"""What two plans do differently, layer by layer."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from sned.plans.diff import Difference, LayerState, diff_plans, layer_states
from sned.plans.ops import AddBias, DropLayers, DropSublayer, Fold, Keep, Merge, Replace, SetWeight
from sned.plans.plan import Base, Plan, Size, Stage

if TYPE_CHECKING:
    from sned.plans.ops import Op

SIZE = Size(params=1, body_params=1, flops_per_token=1, kv_bytes_per_token=1)


def plan(*ops: Op, depth: int = 8) -> Plan:
    base = Base(source="", model_type="llama", geometry="g", weights="w", n_layers=depth, hidden=4, n_params=9)
    return Plan(base=base, stages=(Stage(method="x", options={}, ops=ops),), dense=SIZE, pruned=SIZE)


def test_a_plan_that_does_nothing_keeps_everything() -> None:
    assert layer_states(plan()) == [LayerState()] * 8


def test_every_op_leaves_its_mark() -> None:
    states = layer_states(
        plan(
            DropLayers(layers=[1]),
            DropSublayer(layer=2, which="attn"),
            Keep(axis="layers.3.mlp.hidden", units=range(10)),
            Keep(axis="layers.4.attn.group", units=[0]),
            Fold(layer=5, tensor="t"),
            Replace(layers=[6, 7], tensor="t"),
        )
    )
    assert states[0] == LayerState()
    assert states[1] == LayerState("removed", "removed", "removed")
    assert states[2] == LayerState(attn="removed")
    assert (states[3].mlp, states[3].note) == ("trimmed", "10 mlp units kept")
    assert (states[4].attn, states[4].note) == ("trimmed", "1 attn units kept")
    assert states[5] == LayerState("folded", note="a linear map is folded into its MLP")
    replaced = LayerState("replaced", "removed", "removed", stand_in="one linear map")
    assert states[6] == replace(replaced, note="one linear map stands here")
    assert states[7] == replaced


def test_later_ops_come_on_top() -> None:
    trimmed = [Keep(axis="layers.1.mlp.hidden", units=u) for u in (range(8), range(4))]
    assert layer_states(plan(*trimmed))[1].note == "4 mlp units kept"
    both = layer_states(plan(*trimmed, DropSublayer(layer=1, which="attn")))[1]
    assert (both.attn, both.mlp) == ("removed", "trimmed")
    assert layer_states(plan(*trimmed, DropLayers(layers=[1])))[1] == LayerState("removed", "removed", "removed")


def test_features_of_the_stream_are_told_apart_from_units() -> None:
    ops = [
        Keep(axis="layers.1.mlp.read", units=range(5)),
        Keep(axis="layers.1.mlp.hidden", units=range(9)),
        Keep(axis="layers.1.attn.write", units=[1, 3]),
    ]
    state = layer_states(plan(*ops))[1]
    assert (state.attn, state.mlp, state.attn_units, state.mlp_units) == ("trimmed", "trimmed", "", "0-8")
    assert state.features == (("mlp.read", "0-4"), ("attn.write", "1,3"))
    assert state.note == "9 mlp units kept; mlp reads 5 features, attn writes 2 features"
    gone = layer_states(plan(*ops, DropSublayer(layer=1, which="mlp")))[1]
    assert gone.features == (("attn.write", "1,3"),)
    (difference,) = diff_plans(plan(*ops), plan(*ops[:2], Keep(axis="layers.1.attn.write", units=[1, 4])))
    assert ("attn.write 1,3" in difference.first, "attn.write 1,4" in difference.second) == (True, True)


def test_a_layer_that_lost_both_parts_is_gone() -> None:
    lost = [DropSublayer(layer=3, which="mlp"), DropSublayer(layer=3, which="attn")]
    whole = layer_states(plan(DropLayers(layers=[3])))[3]
    assert layer_states(plan(Keep(axis="layers.3.mlp.hidden", units=[0]), *lost))[3] == whole


def test_a_plan_does_not_differ_from_itself() -> None:
    one = plan(DropLayers(layers=[2, 3]))
    assert diff_plans(one, one) == []
    assert diff_plans(one, plan(DropLayers(layers=[2]), DropLayers(layers=[3]))) == []


def test_layers_that_differ_alike_are_told_together() -> None:
    found = diff_plans(plan(DropLayers(layers=[1, 2, 5])), plan(DropLayers(layers=[5, 6])))
    assert found == [Difference("1-2", "removed", "kept"), Difference("6", "kept", "removed")]


def test_the_trimmed_and_the_folded_are_told_apart() -> None:
    first = plan(Fold(layer=1, tensor="t"), DropSublayer(layer=2, which="mlp"))
    second = plan(Keep(axis="layers.1.mlp.hidden", units=[0]))
    one, two = diff_plans(first, second)
    assert (one.layers, one.first) == ("1", "folded")
    assert one.second.startswith("kept, mlp trimmed")
    assert two == Difference("2", "kept, mlp removed", "kept")


def test_different_maps_in_the_place_of_layers_are_a_difference() -> None:
    first, second = (plan(Replace(layers=[2, 3], spec=spec, tensor="t")) for spec in ("linear", "shift"))
    words = ("replaced by one linear map", "replaced by one constant shift")
    assert diff_plans(first, second) == [Difference("2-3", *words)]
    assert diff_plans(second, second) == []


def test_merged_layers_are_gone_and_their_base_says_so() -> None:
    ops = [
        Merge(into=1, layers=[2], mode="mean"),
        Merge(into=1, layers=[3, 4], mode="keep_last"),
        Merge(into=5, layers=[6], mode="keep_first"),
    ]
    states = layer_states(plan(*ops))
    gone = layer_states(plan(DropLayers(layers=[2, 3, 4, 6])))
    note = "layers 2 merged into it (mean); layers 3-4 merged into it (keep_last)"
    assert states[1] == LayerState(note=note, merged="2 (mean), 3-4 (keep_last)")
    assert [state for i, state in enumerate(states) if i != 1] == [state for i, state in enumerate(gone) if i != 1]
    other = [Merge(into=1, layers=[2, 3, 4], mode="keep_last"), ops[2]]
    words = ("kept, merged with 2 (mean), 3-4 (keep_last)", "kept, merged with 2-4 (keep_last)")
    assert diff_plans(plan(*ops), plan(*other)) == [Difference("1", *words)]


def test_what_was_merged_into_a_layer_goes_with_it() -> None:
    ops = [Merge(into=3, layers=[4], mode="mean"), Merge(into=1, layers=[2, 3], mode="keep_last")]
    assert layer_states(plan(*ops))[3] == LayerState("removed", "removed", "removed")


def test_different_units_of_one_axis_are_a_difference() -> None:
    first, second = (plan(Keep(axis="layers.1.mlp.hidden", units=units)) for units in (range(10), range(20)))
    assert diff_plans(first, second) != []


def test_a_bias_that_was_added_is_marked() -> None:
    cut = DropSublayer(layer=2, which="mlp")
    bias = AddBias(layer=2, which="attn", tensor="t")
    state = layer_states(plan(cut, bias))[2]
    assert (state.note, state.refitted, state.biased) == ("bias added", False, True)
    (difference,) = diff_plans(plan(cut), plan(cut, bias))
    assert difference.second.endswith("bias added")


def test_refitted_layers_are_marked_and_told_apart() -> None:
    cuts = [Keep(axis="layers.1.mlp.hidden", units=range(4)), DropSublayer(layer=3, which="attn")]
    values = [SetWeight(layer=i, param="mlp.down_proj.weight", tensor="t") for i in (1, 2)]
    states = layer_states(plan(*cuts, *values))
    assert [(s.note, s.refitted) for s in states[1:4]] == [
        ("4 mlp units kept; refitted", True),
        ("refitted", True),
        ("", False),
    ]
    assert [d.layers for d in diff_plans(plan(*cuts), plan(*cuts, *values))] == ["1", "2"]
    gone = layer_states(plan(*values, DropLayers(layers=[1])))[1]
    assert gone == LayerState("removed", "removed", "removed")
