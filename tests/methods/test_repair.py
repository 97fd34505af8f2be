"""Linear repair: what can be made up for linearly is, and where nothing can, nothing happens."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
import torch
from kit.compare import assert_differ, assert_same_logits, logits, swept
from kit.planning import Kill, Messages, Steps, plan_on, small_batches
from kit.planted import layers_of, streamed_view
from kit.tiny import CONFIGS, DENSE_NAMES, family_of, fill, make_model, tokens
from transformers import AutoModelForCausalLM, MistralConfig

import sned
from sned.errors import DataError
from sned.models.count import count
from sned.models.view import View
from sned.plans.ops import DropLayers, DropSublayer, Keep, Op, SetWeight
from sned.plans.store import load_plan, save_plan
from sned.runtime.context import Context
from sned.runtime.repair import Spot, find_spots, repair
from sned.runtime.sweep import Cost

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel

    from sned.data.tokens import Tokens
    from sned.plans.plan import Plan

REPAIRABLE = [name for name in DENSE_NAMES if not family_of(name).mlp_post]
MANY = tokens(60, 16, seed=3)
"""Ten tokens and more for every feature, also without those held out."""
UNSEEN = tokens(20, 16, seed=4).ids
CUTS: list[Op] = [
    Keep(axis="layers.0.mlp.hidden", units=range(30)),
    Keep(axis="layers.1.attn.group", units=[0]),
    DropSublayer(layer=2, which="attn"),
    DropLayers(layers=[3]),
]


@sned.method(paper="", prunes="width")
def cut_and_repair(ctx: Context, *, layers: int) -> Iterator[Op]:
    """Make the same cuts whatever the budget, and repair them."""
    yield from CUTS
    yield from repair(ctx)


def plan(view: View, **given: Any) -> Plan:
    return plan_on(view, cut_and_repair, **{"tokens": MANY, **given})


def repaired(view: View, *cuts: Op, calib: Tokens = MANY, progress: Messages | None = None) -> list[Op]:
    """Cut and repair a view, and return the ops of the repair."""
    ctx = Context(view, view.fork(), calib, progress=progress or Messages())
    for op in cuts:
        op.apply(view, {})
        ctx.ops.append(op)
    for op in repair(ctx):
        op.apply(view, ctx.tensors)
        ctx.ops.append(op)
    return ctx.ops[len(cuts) :]


def cut_fork(view: View, *cuts: Op) -> View:
    """Return a fork of a view, cut and not repaired."""
    fork = view.fork()
    for op in cuts:
        op.apply(fork, {})
    return fork


def divergence(got: torch.Tensor, want: torch.Tensor) -> float:
    """The mean divergence per token of what a model says from what it should say."""
    gap = want.log_softmax(-1) - got.log_softmax(-1)
    return float((want.softmax(-1) * gap).sum(-1).mean())


def gone(*blocks: str) -> list[Op]:
    return [DropSublayer.model_validate({"which": b[:-1], "layer": int(b[-1])}) for b in blocks]


class TestWhatIsRefitted:
    @pytest.mark.parametrize(
        ("cuts", "spots"),
        [
            ([], []),
            (gone("attn2"), [Spot(1, "mlp", 5)]),
            (gone("mlp2"), [Spot(2, "attn", 6)]),
            (gone("mlp1", "attn2"), [Spot(1, "attn", 5)]),
            (gone("attn1", "mlp3"), [Spot(0, "mlp", 3), Spot(3, "attn", 8)]),
            (gone("attn0"), [Spot(0, "mlp", 2)]),
            (gone("mlp4"), [Spot(4, "attn", 10)]),
            ([DropLayers(layers=[2, 3])], [Spot(1, "mlp", 8)]),
            ([DropLayers(layers=[0])], [Spot(1, "attn", 3)]),
            ([DropLayers(layers=[4]), *gone("mlp3")], [Spot(3, "attn", 10)]),
            ([Keep(axis="layers.1.mlp.hidden", units=[3])], [Spot(1, "mlp", 4)]),
            ([Keep(axis="layers.1.attn.group", units=[0])], [Spot(1, "attn", 3)]),
            ([Keep(axis="layers.1.mlp.hidden", units=[3]), *gone("attn2")], [Spot(1, "mlp", 5)]),
        ],
    )
    def test_one_after_the_other(self, cuts: list[Op], spots: list[Spot]) -> None:
        self.check("llama", cuts, spots)

    @pytest.mark.parametrize(
        ("cuts", "spots"),
        [
            (gone("attn2"), [Spot(2, "mlp", 6)]),
            (gone("mlp2"), [Spot(2, "attn", 6)]),
            (gone("attn0"), [Spot(0, "mlp", 2)]),
            (gone("mlp1", "attn2"), [Spot(1, "attn", 4), Spot(2, "mlp", 6)]),
            ([DropLayers(layers=[2, 3])], [Spot(1, "mlp", 8)]),
            ([DropLayers(layers=[2]), *gone("mlp1")], [Spot(1, "attn", 6)]),
            ([Keep(axis="layers.1.mlp.hidden", units=[3])], [Spot(1, "mlp", 4)]),
            ([Keep(axis="layers.1.attn.group", units=[0])], [Spot(1, "attn", 3)]),
        ],
    )
    def test_side_by_side(self, cuts: list[Op], spots: list[Spot]) -> None:
        self.check("gpt_neox", cuts, spots)

    def test_what_an_earlier_stage_cut_is_not_missed(self) -> None:
        view = View(make_model("llama"))
        DropLayers(layers=[2]).apply(view, {})
        assert find_spots(view.fork(), view) == []

    @staticmethod
    def check(name: str, cuts: list[Op], spots: list[Spot]) -> None:
        dense = View(make_model(name))
        assert find_spots(dense, cut_fork(dense, *cuts)) == spots


class TestPlanted:
    @pytest.mark.parametrize("kind", ["mlp.hidden", "attn.group"])
    @pytest.mark.parametrize("name", REPAIRABLE)
    def test_what_a_twin_did_is_done_by_its_twin(self, name: str, kind: str) -> None:
        model = make_model(name)
        axis = View(model).axis(f"layers.1.{kind}")
        if axis.size == 1:
            pytest.skip("it has one KV group, which has no twin")
        for slot in axis.slots:  # each writes to the stream in its own way
            if not slot.param.startswith(axis.taps[0]):
                tensor = layers_of(model)[1].get_parameter(slot.param).data
                first = tensor.narrow(slot.dim, slot.offset, slot.block)
                tensor.narrow(slot.dim, slot.offset + slot.block, slot.block).copy_(first)
        dense, view = logits(model), View(model)
        cut = Keep(axis=axis.name, units=[u for u in range(axis.size) if u != 1])
        assert_differ(logits(cut_fork(view, cut).model), dense)
        ops = repaired(view, cut, calib=tokens(110, 16))
        assert {op.layer for op in ops if isinstance(op, SetWeight)} == {1}
        torch.testing.assert_close(logits(view.model), dense, atol=1e-3, rtol=1e-3)

    @pytest.mark.parametrize("name", ["opt", "gpt2", "gpt_neox", "gpt_neox/serial", "phi", "falcon/multi_query"])
    def test_an_attention_that_adds_a_constant_goes_into_a_bias(self, name: str) -> None:
        model, row = make_model(name), family_of(name)
        projection = layers_of(model)[2].get_submodule(f"{row.attn}.{row.o}")
        projection.get_parameter("weight").data.zero_()
        projection.get_parameter("bias").data.mul_(5)
        dense, view = logits(model), View(model)
        cut = logits(cut_fork(view, *gone("attn2")).model)
        ops = repaired(view, *gone("attn2"))
        assert [op.param.rpartition(".")[2] for op in ops if isinstance(op, SetWeight)] == ["bias", "weight"]
        assert_differ(cut, dense)
        torch.testing.assert_close(logits(view.model), dense, atol=1e-3, rtol=1e-3)

    def test_an_attention_that_maps_what_the_mlp_before_it_wrote_is_folded_into_that(self) -> None:
        model = linear_model()
        dense, view = logits(model), View(model)
        cut = cut_fork(view, *gone("attn2"))
        repaired(view, *gone("attn2"))
        before, after = divergence(logits(cut.model), dense), divergence(logits(view.model), dense)
        assert before > 0.01
        assert after < 1e-4 * before

    def test_where_nothing_linear_is_missing_nothing_changes(self) -> None:
        view = View(make_model("llama"))
        assert repaired(view) == []


def linear_model() -> PreTrainedModel:
    """Return a model whose third attention is a linear map of what the second MLP wrote, and of nothing else.

    A huge constant feature makes all norms constant; attention sees its own token only; and features 24-31, which
    that attention alone reads, are written by that MLP alone.
    """
    model = AutoModelForCausalLM.from_config(MistralConfig(**{**CONFIGS["mistral"], "sliding_window": 1})).eval()
    fill(model, 0)
    huge, private = 1e4, slice(24, 32)
    model.get_input_embeddings().weight.data[:, 0] = huge
    model.get_input_embeddings().weight.data[:, private] = 0
    for i, layer in enumerate(layers_of(model)):
        for norm in (layer.input_layernorm, layer.post_attention_layernorm):
            norm.weight.data[0] = 0
            norm.weight.data[1:] = huge / CONFIGS["mistral"]["hidden_size"] ** 0.5
        for out in (layer.self_attn.o_proj, layer.mlp.down_proj):
            out.weight.data[0] = 0
            if (i, out) != (1, layer.mlp.down_proj):
                out.weight.data[private] = 0
    layers_of(model)[2].self_attn.v_proj.weight.data[:, :24] = 0
    model.model.norm.weight.data[0] = 0
    model.model.norm.weight.data[1:] = huge / CONFIGS["mistral"]["hidden_size"] ** 0.5
    return model


@pytest.mark.parametrize("name", REPAIRABLE)
class TestEveryFamily:
    def test_it_helps_on_text_it_has_not_seen(self, name: str) -> None:
        view = View(make_model(name))
        dense, cut = swept(view, UNSEEN), cut_fork(view, *CUTS)
        repaired(view, *CUTS)
        assert divergence(swept(view, UNSEEN), dense) < 0.95 * divergence(swept(cut, UNSEEN), dense)

    def test_a_plan_repeats_it(self, name: str, tmp_path: Path) -> None:
        view = View(make_model(name))
        made = plan(view)
        assert made.pruned.params == count(cut_fork(View(make_model(name)), *CUTS)).params
        save_plan(made, tmp_path)
        again = View(make_model(name))
        load_plan(tmp_path).apply(again)
        assert_same_logits(logits(again.model), logits(view.model), exact=True)

    def test_a_streamed_model_gets_the_same(self, name: str) -> None:
        view, loaded = streamed_view(name), View(make_model(name))
        assert plan(view).digest == plan(loaded).digest
        assert_same_logits(swept(view), swept(loaded), exact=True)


class TestResuming:
    def test_a_killed_run_goes_on_where_it_stopped(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        small_batches(monkeypatch, 320)
        steps, whole = Steps(), Cost()
        straight = plan(View(make_model("llama")), progress=steps, cost=whole)
        rows = straight.stages[0].scores["repair"]
        assert steps.tasks == {"repair": 3 * len(rows)}
        for moment in range(steps.total):
            folder = tmp_path / str(moment)
            with pytest.raises(KeyboardInterrupt):
                plan(View(make_model("llama")), folder=folder, progress=Kill(after=moment))
            rest = Steps()
            resumed = plan(View(make_model("llama")), folder=folder, progress=rest)
            assert (resumed.digest, resumed.stages) == (straight.digest, straight.stages)
            assert rest.total == steps.total - 2 * (moment // 3)  # what is done already takes one step
        done = Cost()
        plan(View(make_model("llama")), folder=folder, cost=done)
        assert done.forward_layer_tokens == 0 < whole.forward_layer_tokens

    def test_other_cuts_are_other_work(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        first = plan(View(make_model("llama")), folder=tmp_path)
        monkeypatch.setattr(sys.modules[__name__], "CUTS", CUTS[1:])
        second = plan(View(make_model("llama")), folder=tmp_path)
        assert second.tensors.keys().isdisjoint(first.tensors)


class TestWhereItCannot:
    @pytest.mark.parametrize("name", sorted(set(DENSE_NAMES) - set(REPAIRABLE)))
    def test_a_norm_after_a_branch_is_told(self, name: str) -> None:
        progress, view = Messages(), View(make_model(name))
        assert repaired(view, *CUTS, progress=progress) == []
        attn, mlp = progress.warnings
        assert attn.startswith("no repair of the attn of layers 1: the norm post_attention_layernorm stands")
        assert mlp.startswith("no repair of the mlp of layers 0-2: the norm post_feedforward_layernorm stands")

    def test_experts_stay_and_attentions_are_refitted(self) -> None:
        progress, view = Messages(), View(make_model("mixtral"))
        cuts = [DropSublayer(layer=2, which="attn"), Keep(axis="layers.4.attn.group", units=[1])]
        ops = repaired(view, *cuts, progress=progress)
        assert progress.warnings == ["no repair of the mlp of layers 1: it is a mixture of experts"]
        assert [op.layer for op in ops if isinstance(op, SetWeight)] == [4]

    def test_one_window_is_too_little(self) -> None:
        with pytest.raises(DataError, match="two windows"):
            plan(View(make_model("llama")), tokens=MANY.take(1))
        plan(View(make_model("llama")), tokens=MANY.take(2))


@pytest.mark.parametrize(("method", "amount"), [("blockpruner", {"blocks": 3}), ("multipruner", {"remove": 0.15})])
def test_a_method_repairs_when_asked_and_cuts_the_same(method: str, amount: dict[str, Any]) -> None:
    given = {**amount, "tokens": MANY, "search": "racing"}
    plain, made = (plan_on(View(make_model("qwen2")), method, repair=r, **given) for r in (None, "linear"))
    assert not any(isinstance(op, SetWeight) for op in plain.ops)
    assert made.ops[: len(plain.ops)] == plain.ops
    assert {op.op for op in made.ops[len(plain.ops) :]} == {"set_weight"}
    assert made.pruned == plain.pruned
    assert set(made.tensors) == {op.tensor for op in made.ops if isinstance(op, SetWeight)}
