"""A fork is a model of its own that shares every tensor it has not changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from kit.compare import assert_differ, assert_same_logits, logits, swept
from kit.planted import streamed_view
from kit.tiny import DENSE_NAMES, FAMILY_NAMES, LAYERS, STAND_INS, family_of, make_model, stand_ins

from sned.models.view import View
from sned.plans.ops import DropLayers, DropSublayer, Fold, Keep, Op, Replace

if TYPE_CHECKING:
    from collections.abc import Callable

every_family = pytest.mark.parametrize("name", FAMILY_NAMES)
TENSORS = stand_ins(4)
TENSORS["map"] = TENSORS["linear"]


def cuts(name: str) -> list[Op]:
    """One op of every kind that a family allows, none in another's way; one map after the other stands at layer 3."""
    ops: list[Op] = [DropLayers(layers=[0]), DropSublayer(layer=1, which="attn")]
    ops += [Keep(axis="layers.2.attn.group", units=[0])]
    ops += [Replace(layers=[3], spec=spec, tensor=spec) for spec in STAND_INS]
    if name in DENSE_NAMES:
        ops += [Keep(axis="layers.4.mlp.hidden", units=range(5, 30)), DropSublayer(layer=1, which="mlp")]
        ops += [] if family_of(name).mlp_post else [Fold(layer=2, tensor="map")]
    return ops


def storages(view: View) -> dict[str, int]:
    return {name: tensor.data_ptr() for name, tensor in view.model.state_dict().items()}


@every_family
def test_cutting_a_fork_leaves_the_original(name: str) -> None:
    view = View(make_model(name))
    before, config = logits(view.model), view.model.config.to_dict()
    fork = view.fork()
    for op in cuts(name):
        op.apply(fork, TENSORS)
    assert_differ(logits(fork.model), before)
    assert_same_logits(logits(view.model), before, exact=True)
    assert view.model.config.to_dict() == config
    assert list(view.layers) == list(range(LAYERS))
    assert all(view.alive[axis.name] == tuple(range(axis.size)) for axis in view.geometry.axes.values())


@every_family
def test_cutting_the_original_leaves_a_fork(name: str) -> None:
    view = View(make_model(name))
    before, fork = logits(view.model), view.fork()
    for op in cuts(name):
        op.apply(view, TENSORS)
    assert_same_logits(logits(fork.model), before, exact=True)
    assert fork.model.config.num_hidden_layers == LAYERS


@every_family
def test_a_fork_of_a_cut_view_goes_on_from_there(name: str) -> None:
    view, straight = View(make_model(name)), View(make_model(name))
    *first, last = cuts(name)
    for op in first:
        op.apply(view, TENSORS)
    fork = view.fork()
    last.apply(fork, TENSORS)
    for op in (*first, last):
        op.apply(straight, TENSORS)
    assert_same_logits(logits(fork.model), logits(straight.model), exact=True)


@every_family
def test_a_fork_costs_no_memory_until_it_is_edited(name: str) -> None:
    view = View(make_model(name))
    fork = view.fork()
    shared = storages(view)
    assert storages(fork) == shared
    Keep(axis="layers.2.attn.group", units=[0]).apply(fork, TENSORS)
    DropLayers(layers=[4]).apply(fork, TENSORS)
    changed = {n for n, at in storages(fork).items() if at != shared[n]}
    prefix = f"{family_of(name).layers}.2.{family_of(name).attn}."
    assert all(n.startswith(prefix) for n in changed)


@every_family
def test_tied_weights_stay_tied(name: str) -> None:
    view = View(make_model(name))
    fork = view.fork()
    tied = view.model.get_output_embeddings().weight is view.model.get_input_embeddings().weight
    assert (fork.model.get_output_embeddings().weight is fork.model.get_input_embeddings().weight) is tied
    assert sum(p.numel() for p in fork.model.parameters()) == view.geometry.n_params


@pytest.mark.parametrize("make", [lambda name: View(make_model(name)), streamed_view], ids=["loaded", "streamed"])
@every_family
def test_a_trial_on_one_does_not_reach_the_other(name: str, make: Callable[[str], View]) -> None:
    view = make(name)
    before, fork = swept(view), view.fork()
    for op in cuts(name):
        with op.trial(fork, TENSORS):
            assert_same_logits(swept(view), before, exact=True)
    assert_same_logits(swept(fork), before, exact=True)


@every_family
def test_streamed_views_fork_alike(name: str) -> None:
    view = streamed_view(name)
    before, fork = swept(view), view.fork()
    for op in cuts(name):
        op.apply(fork, TENSORS)
    loaded = View(make_model(name))
    for op in cuts(name):
        op.apply(loaded, TENSORS)
    assert_same_logits(swept(fork), logits(loaded.model), exact=True)
    assert_same_logits(swept(view), before, exact=True)
