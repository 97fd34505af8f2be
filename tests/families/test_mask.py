"""Single weights set to zero: tried, applied, streamed and stored, always the same weights and always exactly zero."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
import torch
from kit.compare import assert_differ, assert_same_logits, logits, swept
from kit.planted import layers_of, streamed_view
from kit.tiny import DENSE_NAMES, FAMILY_NAMES, HIDDEN, make_model

from sned.checkpoint.pairing import paired
from sned.errors import PlanError
from sned.models.bits import pack
from sned.models.count import count
from sned.models.matrices import matrices
from sned.models.view import View
from sned.plans.ops import DropLayers, DropSublayer, Keep, Mask, Op
from sned.plans.plan import Base, Plan, Size, Stage
from sned.plans.store import load_plan, save_plan

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from transformers import PreTrainedModel

    from sned.models.matrices import Matrix

    MakeView = Callable[[str], View]

every_dense_family = pytest.mark.parametrize("name", DENSE_NAMES)
MASKED = (1, 2)
"""Layers in which half of the weights go."""
CUTS: list[Op] = [
    DropLayers(layers=[0]),
    Keep(axis="layers.2.mlp.hidden", units=range(3, 40, 2)),
    Keep(axis="layers.1.attn.group", units=[0]),
    DropSublayer(layer=1, which="mlp"),
    DropSublayer(layer=2, which="attn"),
]
"""After them layer 1 has an attention and layer 2 an MLP, neither of them whole."""


def loaded_view(name: str) -> View:
    return View(make_model(name))


def choice(matrix: Matrix) -> torch.Tensor:
    """Which weights of a matrix go, `[rows, columns]`."""
    seed = 10 * matrix.layer + ("q", "k", "v", "o", "gate", "up", "down").index(matrix.role)
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(matrix.rows, matrix.columns, generator=generator) < 0.5


def masks(view: View, layers: tuple[int, ...] = MASKED) -> tuple[list[Mask], dict[str, torch.Tensor]]:
    """Return ops that set half of the weights of some layers, as they are now, to zero."""
    ops: list[Mask] = []
    tensors: dict[str, torch.Tensor] = {}
    for layer in layers:
        shapes = {name: param.shape for name, param in view.layer(layer).named_parameters()}
        gone: dict[str, torch.Tensor] = {}
        for matrix in matrices(view, layer):
            mask = gone.setdefault(matrix.param, torch.zeros(shapes[matrix.param], dtype=torch.bool))
            matrix.write(mask, choice(matrix))
        for param, mask in gone.items():
            name = f"{layer}.{param}"
            tensors[name] = pack(mask)
            ops.append(Mask(layer=layer, param=param, tensor=name, zeros=int(mask.sum()), of=mask.numel()))
    return ops, tensors


def by_hand(name: str) -> PreTrainedModel:
    """Return a model in whose own tensors the same weights are zero."""
    model = make_model(name)
    view = View(model)
    for matrix in [matrix for layer in MASKED for matrix in matrices(view, layer)]:
        stored = layers_of(model)[matrix.layer].get_parameter(matrix.param).data
        values = matrix.read(stored).clone()
        values[choice(matrix)] = 0.0
        matrix.write(stored, values)
    return model


def changed(view: View, ops: list[Mask] | list[Op], tensors: dict[str, torch.Tensor] | None = None) -> View:
    for op in ops:
        op.apply(view, tensors or {})
    return view


@every_dense_family
def test_a_trial_equals_the_op(name: str) -> None:
    view, want = View(make_model(name)), logits(by_hand(name))
    dense = logits(view.model)
    ops, tensors = masks(view)
    with ExitStack() as stack:
        for op in ops:
            stack.enter_context(op.trial(view, tensors))
        assert_same_logits(swept(view), want, exact=True)
    assert_same_logits(swept(view), dense, exact=True)
    assert_same_logits(logits(changed(view, ops, tensors).model), want, exact=True)
    assert_differ(want, dense)


@every_dense_family
def test_these_weights_are_zero_to_the_bit_and_no_others_move(name: str) -> None:
    """Half of the weights that go are negative, and none becomes a negative zero."""
    view, dense = View(make_model(name)), View(make_model(name))
    ops, tensors = masks(view)
    changed(view, ops, tensors)
    for matrix in [matrix for layer in MASKED for matrix in matrices(view, layer)]:
        before, after = (matrix.read(v.layer(matrix.layer).get_parameter(matrix.param)) for v in (dense, view))
        gone = choice(matrix)
        assert (before[gone] < 0).any()
        assert (after[gone].view(torch.int32) == 0).all()
        assert torch.equal(after[~gone], before[~gone])
    masked = {(op.layer, op.param) for op in ops}
    for layer in view.layers:
        for param, tensor in view.layer(layer).named_parameters():
            if (layer, param) not in masked:
                assert torch.equal(tensor, dense.layer(layer).get_parameter(param))
    assert count(view) == count(dense)


@every_dense_family
def test_a_streamed_layer_is_read_with_its_zeros(name: str) -> None:
    streamed, loaded = streamed_view(name), View(make_model(name))
    before: list[Op] = [DropLayers(layers=[0]), Keep(axis="layers.1.attn.group", units=[0])]
    for view in (streamed, loaded):
        changed(view, before)
    (first, *rest), tensors = masks(streamed)
    assert masks(loaded)[0] == [first, *rest]
    dense = swept(streamed)
    changed(loaded, rest, tensors), changed(streamed, rest, tensors)
    assert_same_logits(swept(streamed), swept(loaded), exact=True)
    left = swept(loaded)
    with first.trial(streamed, tensors):
        tried = swept(streamed)
    assert_same_logits(swept(streamed), left, exact=True)
    assert_same_logits(tried, swept(changed(loaded, [first], tensors)), exact=True)
    assert_differ(tried, dense)


@every_dense_family
def test_a_stored_plan_sets_the_same_weights_to_zero(name: str, tmp_path: Path) -> None:
    view = View(make_model(name))
    ops, tensors = masks(view)
    size = Size.of(count(view))
    stage = Stage(method="by hand", options={}, ops=tuple(ops))
    plan = Plan(base=Base.of(view, "here"), stages=(stage,), dense=size, pruned=size, tensors=tensors)
    save_plan(plan, tmp_path)
    again = load_plan(tmp_path)
    assert again.digest == plan.digest
    assert list(again.ops) == ops
    again.apply(view)
    assert_same_logits(logits(view.model), logits(by_hand(name)), exact=True)


@every_dense_family
def test_views_that_share_tensors_keep_their_weights(name: str) -> None:
    view = View(make_model(name))
    dense, fork = logits(view.model), view.fork()
    ops, tensors = masks(view)
    with ops[0].trial(fork, tensors):
        assert_same_logits(swept(view), dense, exact=True)
    changed(fork, ops, tensors)
    assert_same_logits(logits(view.model), dense, exact=True)
    twin = fork.fork()
    changed(view, ops[:1], tensors), changed(twin, list(CUTS))
    assert_same_logits(logits(fork.model), logits(by_hand(name)), exact=True)


@every_dense_family
@pytest.mark.parametrize("make", [loaded_view, streamed_view], ids=["loaded", "streamed"])
def test_zeros_stay_where_they_are_when_layers_are_cut_around_and_through_them(name: str, make: MakeView) -> None:
    view = make(name)
    changed(view, *masks(view))
    changed(view, CUTS)
    want = changed(View(by_hand(name)), CUTS)
    assert_same_logits(swept(view), logits(want.model), exact=True)
    pair, same = paired(view), paired(want)
    assert len(pair.layers) == len(same.layers) == (4 if view.parallel else 3)
    assert_same_logits(swept(pair), logits(same.model), exact=True)


@every_dense_family
@pytest.mark.parametrize("make", [loaded_view, streamed_view], ids=["loaded", "streamed"])
def test_layers_keep_their_number_when_others_went_before(name: str, make: MakeView) -> None:
    view = changed(make(name), [DropLayers(layers=[0, 3])])
    changed(view, *masks(view))
    want = changed(View(by_hand(name)), [DropLayers(layers=[0, 3])])
    assert_same_logits(swept(view), logits(want.model), exact=True)


@pytest.mark.parametrize("name", sorted(set(FAMILY_NAMES) - set(DENSE_NAMES)))
def test_a_parameter_of_any_layer_can_be_masked(name: str) -> None:
    """A mask speaks of a parameter, whether or not that is among the matrices that methods prune."""
    view = View(make_model(name))
    old = view.layer(1).get_parameter("self_attn.q_proj.weight").clone()
    gone = torch.rand(old.shape, generator=torch.Generator().manual_seed(0)) < 0.9
    op = Mask(layer=1, param="self_attn.q_proj.weight", tensor="m", zeros=int(gone.sum()), of=gone.numel())
    op.apply(view, {"m": pack(gone)})
    assert torch.equal(view.layer(1).get_parameter(op.param), torch.where(gone, 0.0, old))
    assert_differ(logits(view.model), logits(make_model(name)))


@pytest.mark.parametrize("make", [loaded_view, streamed_view], ids=["loaded", "streamed"])
@pytest.mark.parametrize("use", ["apply", "trial"])
def test_what_is_not_there_is_named(make: MakeView, use: str) -> None:
    ops, tensors = masks(make("llama"), (1,))
    (op,) = (op for op in ops if op.param == "self_attn.o_proj.weight")
    size = HIDDEN * HIDDEN // 2
    for cut, asked, message in (
        (DropLayers(layers=[1]), op, "layer 1 was already removed"),
        (DropSublayer(layer=1, which="attn"), op, "layer 1 has no parameter 'self_attn.o_proj.weight', or not any"),
        (DropLayers(layers=[0]), op.model_copy(update={"param": "mlp.x"}), "layer 1 has no parameter 'mlp.x'"),
        (DropLayers(layers=[0]), op.model_copy(update={"tensor": "lost"}), "no tensor 'lost'"),
        (
            Keep(axis="layers.1.attn.group", units=[1]),
            op,
            f"self_attn.o_proj.weight of layer 1 has {size} weights, and the mask is for another number",
        ),
    ):
        view = make("llama")
        cut.apply(view, {})
        left = swept(view)
        with pytest.raises(PlanError, match=message):
            getattr(asked, use)(view, tensors)
        assert_same_logits(swept(view), left, exact=True)
