"""Simple maps in the place of removed layers: exact where the layers were such maps, and counted, saved and told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from kit.compare import assert_differ, assert_same_logits, logits, swept
from kit.planning import Messages, plan_on
from kit.planted import idle_layers, layers_of, quiet_layers
from kit.searching import fresh
from kit.tiny import FAMILY_NAMES, HIDDEN, LAYERS, family_of, make_model, save_model_folder, stand_ins, tokens

from sned.checkpoint.model import load
from sned.checkpoint.save import save_model
from sned.checkpoint.verify import verify
from sned.errors import UnsupportedModelError
from sned.models.count import count
from sned.models.folding import output_projection
from sned.models.view import View
from sned.plans.ops import DropLayers, DropSublayer, Op, Replace
from sned.plans.store import load_plan, save_plan
from sned.runtime.stand_ins import home_of, runs_of
from sned.runtime.sweep import Cost

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel

    from sned.plans.plan import Plan

every_family = pytest.mark.parametrize("name", FAMILY_NAMES)
MANY = tokens(40, 16, seed=3)
KINDS = ("shift", "scale", "lowrank")
WITH_BIAS = ["llama", "gpt2", "opt", "phi", "gpt_neox", "gpt_neox/serial", "falcon/multi_query"]
"""Families whose MLP can add a constant."""


def repaired(view: View, repair: str | None, **given: Any) -> Plan:
    given = {"layers": 1, "metric": "l2", "tokens": MANY} | given
    return plan_on(view, "influence", repair=repair, **given)


def fits(plan: Plan) -> list[dict[str, Any]]:
    return plan.stages[0].scores["stand_ins"]


def constant_layers(name: str, layers: list[int], size: float = 0.1) -> PreTrainedModel:
    """Return a model some of whose layers add a small constant, each its own."""
    model, row = idle_layers(make_model(name), layers), family_of(name)
    generator = torch.Generator().manual_seed(3)
    for i in layers:
        bias = layers_of(model)[i].get_parameter(".".join(filter(None, (row.mlp, row.down, "bias"))))
        bias.data = size * torch.randn(HIDDEN, generator=generator)
    return model


def simple_layer(name: str, kind: Any, at: int = 2) -> View:
    """Return a view one of whose layers is such a map already."""
    view = fresh(name)
    tensors = stand_ins(7)
    Replace(layers=[at], spec=kind, tensor=kind).apply(view, {**tensors, "scale": tensors["scale"].abs()})
    return view


class TestExact:
    @pytest.mark.parametrize("sequential", [False, True])
    @pytest.mark.parametrize("name", WITH_BIAS)
    def test_what_adds_a_constant_is_emulated(self, name: str, sequential: bool) -> None:
        """Runs of neighbours by one shift, that of their sum."""
        model = constant_layers(name, [0, 2, 3])
        dense, view = logits(model), View(model)
        plain = repaired(fork := view.fork(), None, layers=3, min_start=0)
        assert plain.ops == (DropLayers(layers=[0, 2, 3]),)
        assert_differ(logits(fork.model), dense)
        plan = repaired(view, "shift", layers=3, min_start=0, sequential=sequential)
        assert [(type(op), op.touched) for op in plan.ops] == [(Replace, (0,)), (Replace, (2, 3))]
        assert_same_logits(logits(view.model), dense)
        assert all(row["left"] < 1e-2 for row in fits(plan))

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "falcon"])
    def test_a_layer_that_is_such_a_map_is_recovered(self, name: str, kind: str) -> None:
        view = simple_layer(name, kind)
        dense = logits(view.model)
        plan = repaired(view, kind, rank=3, min_start=2, max_end=3)
        assert [(op.op, op.touched) for op in plan.ops] == [("replace", (2,))]
        assert (logits(view.model) - dense).abs().max() < 5e-3
        assert fits(plan)[0]["left"] < 1e-3

    @pytest.mark.parametrize("kind", KINDS)
    @every_family
    def test_what_does_nothing_is_replaced_by_nothing(self, name: str, kind: str) -> None:
        model = idle_layers(make_model(name), [2])
        dense = logits(model)
        plan = repaired(View(model), kind)
        assert plan.ops[0].touched == (2,)
        assert_same_logits(logits(model), dense)
        assert fits(plan)[0]["left"] == 0


class TestFitted:
    @pytest.mark.parametrize("kind", ["shift", "lowrank"])
    @every_family
    def test_less_is_lost_than_by_plain_removal(self, name: str, kind: str) -> None:
        plan = repaired(fresh(name), kind, layers=2)
        assert all(0 < row["left"] < 1 for row in fits(plan))
        assert {i for row in fits(plan) for i in range(row["start"], row["end"])} == {
            i for op in plan.ops for i in op.touched
        }

    def test_a_shift_is_the_mean_update_of_the_dense_model_with_weights_for_tokens(self) -> None:
        plan = repaired(fresh("gemma2"), "shift", min_start=2, max_end=4, layers=2)
        model, caught = make_model("gemma2"), {}
        for at in (2, 4):
            layers_of(model)[at].register_forward_pre_hook(lambda _m, args, at=at: caught.update({at: args[0]}))
        logits(model, MANY.ids)
        weights = 1 / caught[4].square().sum(-1, keepdim=True)
        want = (weights * (caught[4] - caught[2])).sum((0, 1)) / weights.sum()
        (tensor,) = plan.tensors.values()
        torch.testing.assert_close(tensor, want, atol=1e-5, rtol=1e-5)
        assert fits(plan)[0]["tokens"] == MANY.n_tokens

    def test_in_sequence_later_maps_see_what_earlier_ones_left(self) -> None:
        quiet = quiet_layers(make_model("llama"), [1, 3], 0.3)
        views = [View(quiet).fork() for _ in range(3)]
        at_once, in_turn = (repaired(views[s], "shift", sequential=bool(s), layers=2) for s in (False, True))
        assert [op.touched for op in at_once.ops] == [op.touched for op in in_turn.ops] == [(1,), (3,)]
        first, second = zip(at_once.tensors.values(), in_turn.tensors.values(), strict=True)
        assert torch.equal(*first)
        assert not torch.equal(*second)
        in_turn.ops[0].apply(views[2], in_turn.tensors)
        (want,) = repaired(views[2], "shift", min_start=3, max_end=4).tensors.values()
        assert torch.equal(second[1], want)

    def test_all_layers_may_go_where_something_stands_in_their_place(self) -> None:
        view = fresh("llama")
        plan = repaired(view, "lowrank", layers=LAYERS, min_start=0, max_end=LAYERS, rank=4)
        assert [op.touched for op in plan.ops] == [tuple(range(LAYERS))]
        assert list(view.layers) == [0]
        assert count(view).body_params == 2 * 4 * HIDDEN


@pytest.mark.parametrize(
    ("present", "gone", "runs"),
    [
        (range(LAYERS), [1, 2, 4], [(1, 3), (4, 5)]),
        ([0, 1, 3, 4], [1, 3], [(1, 4)]),
        ([0, 2, 4], [0, 4], [(0, 2), (4, 5)]),
        (range(LAYERS), [], []),
    ],
)
def test_neighbours_are_those_that_are_left(present: Any, gone: list[int], runs: list[tuple[int, int]]) -> None:
    view = fresh("llama")
    if lost := set(range(LAYERS)) - set(present):
        DropLayers(layers=sorted(lost)).apply(view, {})
    assert runs_of(view, gone) == runs


@pytest.mark.parametrize(("kind", "name"), [("shift", "llama"), ("scale", "gemma3_text"), ("lowrank", "falcon")])
def test_the_plan_and_the_checkpoint_hold_all_there_is(kind: str, name: str, tmp_path: Path) -> None:
    """A plan on disk makes the same model; a saved one computes the same streamed, and where sned is not known."""
    model = load(str(save_model_folder(tmp_path / "dense", name)))
    plan = repaired(model.view, kind, layers=2, rank=3)
    for folder in ("plan", "pruned"):
        (tmp_path / folder).mkdir()
    save_plan(plan, tmp_path / "plan")
    view = View(make_model(name))
    load_plan(tmp_path / "plan").apply(view)
    assert_same_logits(logits(view.model), logits(model.view.model), exact=True)
    stock = save_model(model, tmp_path / "pruned").stock
    assert not stock
    assert verify(model.view, tmp_path / "pruned", stock=stock).max_logit_error < 1e-4
    assert_same_logits(swept(load(str(tmp_path / "pruned"), stream="on").view), logits(model.view.model))
    kept: tuple[Op, ...] = load_plan(tmp_path / "plan").ops
    assert [op.model_dump()["spec"] for op in kept] == [kind] * len(kept)


class TestBranches:
    """The mean update of an attention or an MLP, as a bias of the branch before it."""

    NORMED = ("gemma2", "gemma3_text", "olmo2")
    PLAIN = tuple(name for name in FAMILY_NAMES if not family_of(name).experts and not family_of(name).mlp_post)

    @staticmethod
    def constant(name: str, which: Any, layer: int) -> PreTrainedModel:
        """Return a model one of whose branches adds a constant."""
        model = make_model(name)
        weight, bias = (
            dict(layers_of(model)[layer].named_parameters())[f"{output_projection(View(model), which)}.{kind}"]
            for kind in ("weight", "bias")
        )
        weight.data.zero_()
        bias.data = 0.1 * torch.randn(HIDDEN, generator=torch.Generator().manual_seed(3))
        return model

    @pytest.mark.parametrize("which", ["attn", "mlp"])
    @pytest.mark.parametrize("name", ["gpt2", "opt", "phi", "gpt_neox", "gpt_neox/serial"])
    def test_what_adds_a_constant_is_emulated(self, name: str, which: Any) -> None:
        view = View(self.constant(name, which, 2))
        dense = logits(view.model)
        given: dict[str, Any] = {"units": which, "layers": None, "blocks": 1, "min_start": 2, "max_end": 3}
        plain = repaired(fork := view.fork(), None, **given)
        assert plain.ops == (DropSublayer(layer=2, which=which),)
        assert_differ(logits(fork.model), dense)
        plan = repaired(view, "shift", **given)
        assert [op.op for op in plan.ops] == ["drop_sublayer", "add_bias"]
        assert_same_logits(logits(view.model), dense)
        assert [(row["which"], row["start"], row["left"] < 1e-2) for row in fits(plan)] == [(which, 2, True)]

    def test_the_mean_is_that_of_what_the_branch_adds_with_weights_for_tokens(self) -> None:
        given: dict[str, Any] = {"units": "mlp", "layers": None, "blocks": 1, "min_start": 2, "max_end": 3}
        plan = repaired(fresh("granite"), "shift", **given)
        model, caught = make_model("granite"), {}
        layer: Any = layers_of(model)[2]
        layer.register_forward_pre_hook(lambda _m, args: caught.update(before=args[0]))
        layer.mlp.register_forward_hook(lambda _m, _a, out: caught.update(out=out))
        logits(model, MANY.ids)
        added = caught["out"] * model.config.residual_multiplier
        weights = 1 / (caught["before"] + added).square().sum(-1, keepdim=True)
        want = (weights * added).sum((0, 1)) / weights.sum() / model.config.residual_multiplier
        (tensor,) = plan.tensors.values()
        torch.testing.assert_close(tensor, want, atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize("name", ["llama", "phi", "gpt2", "gpt_neox/serial", "falcon", "opt"])
    def test_the_budget_counts_biases_and_the_result_is_saved(self, name: str, tmp_path: Path) -> None:
        model = load(str(save_model_folder(tmp_path / "dense", name)))
        plan = repaired(model.view, "shift", units="both", layers=None, remove=0.15, remove_of="body")
        assert plan.dense.params - plan.pruned.params >= 0.15 * plan.dense.body_params
        assert all(0 < row["left"] < 1 for row in fits(plan))
        (tmp_path / "pruned").mkdir()
        stock = save_model(model, tmp_path / "pruned").stock
        assert verify(model.view, tmp_path / "pruned", stock=stock).max_logit_error < 1e-4

    @pytest.mark.parametrize(
        ("name", "branch", "gone", "home"),
        [
            ("llama", (2, "mlp"), [], (2, "attn")),
            ("llama", (2, "attn"), [], (1, "mlp")),
            ("llama", (2, "mlp"), [(2, "attn"), (1, "mlp")], (1, "attn")),
            ("llama", (0, "attn"), [], None),
            ("llama", (0, "mlp"), [(0, "attn")], None),
            ("phi", (2, "attn"), [], (2, "mlp")),
            ("phi", (2, "attn"), [(2, "mlp")], (1, "mlp")),
            ("phi", (0, "attn"), [], (0, "mlp")),
        ],
    )
    def test_the_home_is_the_last_branch_that_stays(self, name: str, branch: Any, gone: Any, home: Any) -> None:
        assert home_of(fresh(name), branch, [branch, *gone]) == home

    def test_who_has_nothing_before_it_is_named(self) -> None:
        given: dict[str, Any] = {"units": "attn", "layers": None, "blocks": 1, "min_start": 0, "max_end": 1}
        plan = repaired(fresh("llama"), "shift", progress=(messages := Messages()), **given)
        assert [op.op for op in plan.ops] == ["drop_sublayer"]
        assert any("nothing stands before the attn of layer 0" in text for text in messages.warnings)

    @pytest.mark.parametrize("name", [*NORMED, "mixtral"])
    def test_where_something_is_in_between_it_is_refused(self, name: str) -> None:
        cost = Cost()
        with pytest.raises(UnsupportedModelError, match=r"norm|experts"):
            repaired(fresh(name), "shift", units="attn", layers=None, blocks=1, cost=cost)
        assert cost.forward_layer_tokens == 0
