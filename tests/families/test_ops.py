"""Every op does for good what its trial pretends, and a trial leaves nothing behind."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from kit.compare import assert_differ, assert_same_logits, logits, swept
from kit.planted import idle_layers, layers_of, streamed_view
from kit.tiny import DENSE_NAMES, FAMILY_NAMES, HIDDEN, IDS, LAYERS, STAND_INS, family_of, make_model, stand_ins

from sned.errors import PlanError, UnsupportedModelError
from sned.models.geometry import path
from sned.models.view import View
from sned.plans.ops import AddBias, DropLayers, DropSublayer, Fold, Keep, Op, Replace
from sned.runtime.sweep import Sweep

if TYPE_CHECKING:
    from collections.abc import Callable

    from sned.models.family import Sublayer
    from sned.plans.ops import Spec

    MakeView = Callable[[str], View]

every_family = pytest.mark.parametrize("name", FAMILY_NAMES)
every_dense_family = pytest.mark.parametrize("name", DENSE_NAMES)

ENDS = (0, 2, LAYERS - 1)
TENSORS = stand_ins(5)
TENSORS["map"] = TENSORS["linear"]

WHOLE_LAYERS: dict[str, Op] = {
    **{f"drop {i}": DropLayers(layers=[i]) for i in ENDS},
    "drop 1-3": DropLayers(layers=[1, 2, 3]),
    "drop 0,2": DropLayers(layers=[0, 2]),
    "drop all but 4": DropLayers(layers=range(4)),
    **{f"no attention {i}": DropSublayer(layer=i, which="attn") for i in ENDS},
    **{f"bias of attention {i}": AddBias(layer=i, which="attn", tensor="shift") for i in ENDS},
    "replace 2": Replace(layers=[2], tensor="map"),
    "replace 0-1": Replace(layers=[0, 1], tensor="map"),
    "replace 3-4": Replace(layers=[3, 4], tensor="map"),
    **{f"{spec} for {i}": Replace(layers=[i], spec=spec, tensor=spec) for spec in STAND_INS for i in ENDS},
    **{f"{spec} for 1-3": Replace(layers=[1, 2, 3], spec=spec, tensor=spec) for spec in STAND_INS},
}
WITH_MLPS: dict[str, Op] = {
    **{f"no mlp {i}": DropSublayer(layer=i, which="mlp") for i in ENDS},
    "bias of mlp 1": AddBias(layer=1, which="mlp", tensor="shift"),
    **{f"trim {i}": Keep(axis=f"layers.{i}.mlp.hidden", units=range(3, 40, 2)) for i in ENDS},
}
FOLDS: dict[str, Op] = {f"fold {i}": Fold(layer=i, tensor="map") for i in ENDS}
FOLDABLE = [name for name in DENSE_NAMES if not family_of(name).mlp_post]

CASES = [
    *((name, op) for name in FAMILY_NAMES for op in WHOLE_LAYERS),
    *((name, op) for name in DENSE_NAMES for op in WITH_MLPS),
    *((name, op) for name in FOLDABLE for op in FOLDS),
]
EVERY_OP = WHOLE_LAYERS | WITH_MLPS | FOLDS


def applied(name: str, *ops: Op) -> torch.Tensor:
    view = View(make_model(name))
    for op in ops:
        op.apply(view, TENSORS)
    return logits(view.model)


@pytest.mark.parametrize(("name", "op"), CASES)
def test_a_trial_equals_the_op(name: str, op: str) -> None:
    view, dense = View(make_model(name)), logits(make_model(name))
    with EVERY_OP[op].trial(view, TENSORS):
        tried = swept(view)
    assert_differ(tried, dense)
    assert_same_logits(swept(view), dense, exact=True)
    assert_same_logits(tried, applied(name, EVERY_OP[op]))


@pytest.mark.parametrize("spec", STAND_INS)
@every_family
def test_trials_nest_like_ops(name: str, spec: Spec) -> None:
    ops = [DropLayers(layers=[1]), DropSublayer(layer=3, which="attn"), Replace(layers=[2], spec=spec, tensor=spec)]
    view, dense = View(make_model(name)), logits(make_model(name))
    with ops[0].trial(view, TENSORS), ops[1].trial(view, TENSORS), ops[2].trial(view, TENSORS):
        tried = swept(view)
    assert_same_logits(swept(view), dense, exact=True)
    assert_same_logits(tried, applied(name, *ops))


@every_family
def test_a_trial_works_on_what_earlier_ops_left(name: str) -> None:
    view = View(make_model(name))
    DropLayers(layers=[0]).apply(view, TENSORS)
    Replace(layers=[1, 2], tensor="map").apply(view, TENSORS)
    with DropSublayer(layer=3, which="attn").trial(view, TENSORS):
        tried = swept(view)
    DropSublayer(layer=3, which="attn").apply(view, TENSORS)
    assert_same_logits(logits(view.model), tried)


def silenced(name: str, layer: int, which: Sublayer) -> torch.Tensor:
    """The logits of a model in which one sublayer writes zeros, everything else being there."""
    model, row = make_model(name), family_of(name)
    out = path(row.attn, row.o) if which == "attn" else path(row.mlp, row.down)
    for param in layers_of(model)[layer].get_submodule(out).parameters():
        param.data.zero_()
    return logits(model)


@every_dense_family
@pytest.mark.parametrize("which", ["attn", "mlp"])
@pytest.mark.parametrize("layer", ENDS)
def test_dropping_a_sublayer_with_its_norms_is_silencing_it(name: str, layer: int, which: Sublayer) -> None:
    view = View(make_model(name))
    DropSublayer(layer=layer, which=which).apply(view, TENSORS)
    assert_differ(logits(view.model), logits(make_model(name)))
    assert_same_logits(logits(view.model), silenced(name, layer, which))
    gone, other = view.parts(layer, which), view.parts(layer, "mlp" if which == "attn" else "attn")
    left = {n.partition(".")[0] for n, _ in view.layer(layer).named_parameters()}
    assert not left & set(gone)
    assert set(other) <= left


@every_dense_family
@pytest.mark.parametrize("make", [lambda name: View(make_model(name)), streamed_view], ids=["loaded", "streamed"])
@pytest.mark.parametrize("order", [("attn", "mlp"), ("mlp", "attn")], ids=["attn first", "mlp first"])
def test_a_layer_without_both_sublayers_is_gone(name: str, order: tuple[Sublayer, ...], make: MakeView) -> None:
    emptied, dropped = make(name), make(name)
    for layer in (0, LAYERS - 1):
        for which in order:
            DropSublayer(layer=layer, which=which).apply(emptied, TENSORS)
    DropLayers(layers=[0, LAYERS - 1]).apply(dropped, TENSORS)
    assert list(emptied.layers) == list(dropped.layers)
    assert emptied.model.config.to_dict() == dropped.model.config.to_dict()
    assert_same_logits(swept(emptied), swept(dropped), exact=True)


@pytest.mark.parametrize("name", ["llama", "opt"])
def test_the_last_sublayer_stays(name: str) -> None:
    view = View(make_model(name))
    DropLayers(layers=[0, 1, 2, 3]).apply(view, TENSORS)
    DropSublayer(layer=4, which="attn").apply(view, TENSORS)
    left = logits(view.model)
    with pytest.raises(PlanError, match="every decoder layer"):
        DropSublayer(layer=4, which="mlp").apply(view, TENSORS)
    assert_same_logits(logits(view.model), left, exact=True)


@every_dense_family
@pytest.mark.parametrize("layer", ENDS)
def test_bypassing_both_sublayers_is_dropping_the_layer(name: str, layer: int) -> None:
    view = View(make_model(name))
    attn, mlp = (DropSublayer(layer=layer, which=which) for which in ("attn", "mlp"))
    with attn.trial(view, TENSORS), mlp.trial(view, TENSORS):
        assert_same_logits(swept(view), applied(name, DropLayers(layers=[layer])))


@every_family
def test_idle_layers_can_go(name: str) -> None:
    model = idle_layers(make_model(name), [1, 3])
    dense = logits(model)
    DropLayers(layers=[1, 3]).apply(View(model), {})
    assert_same_logits(logits(model), dense)


@every_family
def test_a_trial_may_pass_over_every_layer(name: str) -> None:
    """No op may remove all, but what they are worth together can be asked: the stream goes straight to the head."""
    view = View(make_model(name))
    sweep = Sweep(view)
    bare = sweep.logits(IDS, sweep.enter(IDS))
    with DropLayers(layers=range(LAYERS)).trial(view, TENSORS):
        assert view.active == []
        assert_same_logits(swept(view), bare, exact=True)
    with pytest.raises(PlanError, match="every decoder layer"):
        DropLayers(layers=range(LAYERS)).apply(view, TENSORS)


@pytest.mark.parametrize("name", FOLDABLE)
def test_folding_the_identity_changes_nothing_and_zero_silences_the_mlp(name: str) -> None:
    tensors = {"eye": torch.eye(HIDDEN), "zero": torch.zeros(HIDDEN, HIDDEN)}

    def folded(tensor: str) -> torch.Tensor:
        view = View(make_model(name))
        Fold(layer=2, tensor=tensor).apply(view, tensors)
        return logits(view.model)

    assert_same_logits(folded("eye"), logits(make_model(name)))
    assert_same_logits(folded("zero"), applied(name, DropSublayer(layer=2, which="mlp")))


@pytest.mark.parametrize("name", sorted(set(FAMILY_NAMES) - set(FOLDABLE)))
@pytest.mark.parametrize("use", ["apply", "trial"])
def test_a_fold_through_a_norm_or_experts_is_refused(name: str, use: str) -> None:
    view = View(make_model(name))
    with pytest.raises(UnsupportedModelError, match="no linear map can be folded into layer 1"):
        getattr(Fold(layer=1, tensor="map"), use)(view, TENSORS)


@every_family
def test_the_order_of_independent_ops_is_immaterial(name: str) -> None:
    ops = [DropLayers(layers=[1]), DropSublayer(layer=3, which="attn"), Keep(axis="layers.2.attn.group", units=[0])]
    assert_same_logits(applied(name, *ops), applied(name, *reversed(ops)), exact=True)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (DropLayers(layers=[2]), DropLayers(layers=[2]), "layer 2 was already removed"),
        (DropLayers(layers=[2]), DropSublayer(layer=2, which="mlp"), "layer 2 was already removed"),
        (DropLayers(layers=[2]), Keep(axis="layers.2.mlp.hidden", units=[0]), "layer 2 was already removed"),
        (DropLayers(layers=[2]), Fold(layer=2, tensor="map"), "layer 2 was already removed"),
        (DropLayers(layers=[2]), Replace(layers=[2, 3], tensor="map"), "layer 2 was already removed"),
        (DropLayers(layers=[0]), DropLayers(layers=[5]), "layer 5 does not exist"),
        (DropLayers(layers=[0, 1]), DropLayers(layers=[2, 3, 4]), "every decoder layer"),
        (DropLayers(layers=[0]), Replace(layers=[1, 3], tensor="map"), "not consecutive"),
        (DropSublayer(layer=1, which="attn"), DropSublayer(layer=1, which="attn"), "attn of layer 1 was already"),
        (DropSublayer(layer=1, which="mlp"), Keep(axis="layers.1.mlp.hidden", units=[0]), "mlp of layer 1 was already"),
        (Replace(layers=[1], tensor="map"), DropSublayer(layer=1, which="attn"), "attn of layer 1 was already"),
        (Replace(layers=[1, 2], tensor="map"), DropLayers(layers=[2]), "layer 2 was already removed"),
        (Replace(layers=[1], tensor="map"), Keep(axis="layers.1.mlp.hidden", units=[0]), "mlp of layer 1 was already"),
        (DropLayers(layers=[0]), Replace(layers=[1], tensor="lost"), "no tensor 'lost'"),
    ],
)
@pytest.mark.parametrize("name", ["llama", "opt"])
def test_what_is_gone_cannot_be_changed(name: str, first: Op, second: Op, message: str) -> None:
    view = View(make_model(name))
    first.apply(view, TENSORS)
    left = logits(view.model)
    with pytest.raises(PlanError, match=message):
        second.apply(view, TENSORS)
    assert_same_logits(logits(view.model), left, exact=True)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (DropLayers(layers=[2]), DropLayers(layers=[2]), "layer 2 was already removed"),
        (DropLayers(layers=[2]), DropSublayer(layer=2, which="mlp"), "layer 2 was already removed"),
        (DropSublayer(layer=2, which="mlp"), Keep(axis="layers.2.mlp.hidden", units=[0]), "mlp of layer 2 was already"),
        (Replace(layers=[2], tensor="map"), DropSublayer(layer=2, which="attn"), "attn of layer 2 was already"),
        (DropLayers(layers=[0]), Replace(layers=[2, 4], tensor="map"), "not consecutive"),
        (DropLayers(layers=[2]), Replace(layers=[1, 3], tensor="lost"), "no tensor 'lost'"),
    ],
)
def test_a_trial_refuses_what_the_op_would(first: Op, second: Op, message: str) -> None:
    view = View(make_model("llama"))
    first.apply(view, TENSORS)
    with pytest.raises(PlanError, match=message), second.trial(view, TENSORS):
        pass


@pytest.mark.parametrize("name", sorted(set(FAMILY_NAMES) - set(DENSE_NAMES)))
def test_experts_go_with_their_layer_or_not_at_all(name: str) -> None:
    view, op = View(make_model(name)), DropSublayer(layer=2, which="mlp")
    with pytest.raises(UnsupportedModelError, match="only as a whole layer"):
        op.apply(view, TENSORS)
    with pytest.raises(UnsupportedModelError, match="only as a whole layer"), op.trial(view, TENSORS):
        pass


@pytest.mark.parametrize("fails", [True, False])
@every_family
def test_a_trial_ends_with_its_context(name: str, fails: bool) -> None:
    view, dense = View(make_model(name)), logits(make_model(name))

    def within(op: Op, act: Callable[[], None]) -> None:
        with op.trial(view, TENSORS):
            act()

    def act() -> None:
        if fails:
            raise KeyboardInterrupt

    for op in WHOLE_LAYERS.values():
        if fails:
            with pytest.raises(KeyboardInterrupt):
                within(op, act)
        else:
            within(op, act)
    assert_same_logits(swept(view), dense, exact=True)
    assert view.active == list(range(LAYERS))
