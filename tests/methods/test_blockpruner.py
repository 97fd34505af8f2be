"""BlockPruner: each step takes the block whose absence costs least, checked by surgery and plain forward passes."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import pytest
from kit.compare import assert_same_logits, logits
from kit.planning import calibration, plan_on
from kit.planted import spoken_by
from kit.searching import block, blocks, cut, fresh, loss
from kit.tiny import DENSE_NAMES, FAMILY_NAMES, LAYERS, make_model, save_model_folder

from sned.checkpoint.model import load
from sned.checkpoint.native import propose
from sned.checkpoint.pairing import paired
from sned.checkpoint.save import save_model
from sned.errors import BudgetError, ConfigError
from sned.models.count import count
from sned.models.folding import output_projection
from sned.models.view import View
from sned.plans.ops import DropSublayer, Op
from sned.runtime.sweep import SUBLAYERS, Cost

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel

    from sned.models.family import Sublayer
    from sned.plans.plan import Plan

PARALLEL = ["falcon", "falcon/multi_query", "gpt_neox", "phi"]
EXPERTS = sorted(set(FAMILY_NAMES) - set(DENSE_NAMES))
IDS = calibration().ids
WAYS = ["exact", "racing", "exhaustive"]


def plan(view: View, **given: Any) -> Plan:
    return plan_on(view, "blockpruner", **given)


def removed(plan: Plan) -> list[str]:
    """The blocks in the order in which they were removed."""
    return [row["cut"] for row in plan.stages[0].scores["trace"]]


def present(view: View) -> list[tuple[Sublayer, int]]:
    return [(which, i) for i in view.layers for which in SUBLAYERS if view.has_branch(i, which)]


def idle_blocks(model: PreTrainedModel) -> PreTrainedModel:
    """Let the attention of layer 2 and the MLP of layer 3 add nothing."""
    view = View(model)
    for layer, which in ((2, "attn"), (3, "mlp")):
        for param in view.layer(layer).get_submodule(output_projection(view, which)).parameters():
            param.data.zero_()
    return model


@pytest.mark.parametrize(
    ("name", "way", "objective"),
    [(name, "exact", "kl") for name in DENSE_NAMES]
    + [("llama", way, objective) for way in WAYS for objective in ("perplexity", "kl")],
)
def test_blocks_that_do_nothing_go_first_and_cost_nothing(name: str, way: str, objective: str) -> None:
    model = idle_blocks(make_model(name))
    dense, view = logits(model), View(model)
    made = plan(view, blocks=2, tokens=spoken_by(model, 24), search=way, objective=objective)
    assert removed(made) == ["attn.2", "mlp.3"]
    assert [row["increase"] for row in made.stages[0].scores["trace"]] == pytest.approx([0, 0], abs=1e-6)
    assert_same_logits(logits(view.model), dense)


@pytest.mark.parametrize("name", FAMILY_NAMES)
def test_the_first_block_is_the_best_of_all(name: str) -> None:
    text = spoken_by(make_model(name), 16)
    losses = {k: loss(cut(make_model(name), ops).model, text.ids) for k, ops in blocks(name).items()}
    made = plan(fresh(name), blocks=1, tokens=text)
    best, second, *_ = sorted(losses.values())
    assert second - best > 1e-5, "another seed: these are too close to tell apart"
    assert losses[removed(made)[0]] == best
    (row,) = made.stages[0].scores["trace"]
    assert row["loss"] == pytest.approx(best, abs=1e-5)
    assert (row["candidates"], row["params"]) == (len(losses), made.pruned.params)


@pytest.mark.parametrize("types", ["mix", "mha", "mlp"])
def test_every_step_is_the_best_there_is(types: str) -> None:
    made, done = plan(fresh("llama"), blocks=4, types=types), list[Op]()
    kinds = {"mix": SUBLAYERS, "mha": ("attn",), "mlp": ("mlp",)}[types]
    for row in made.stages[0].scores["trace"]:
        view = cut(make_model("llama"), done)
        tried = [block(which, i) for which, i in sorted(present(view)) if which in kinds]
        losses = {f"{op.which}.{op.layer}": loss(cut(make_model("llama"), [*done, op]).model, IDS) for op in tried}
        assert losses[row["cut"]] == min(losses.values())
        assert row["increase"] == pytest.approx(losses[row["cut"]] - loss(view.model, IDS), abs=1e-5)
        which, _, layer = row["cut"].partition(".")
        done.append(block(which, int(layer)))
    assert list(made.ops) == done
    assert {op.which for op in made.ops if isinstance(op, DropSublayer)} <= set(kinds)


@pytest.mark.parametrize("name", ["llama", "falcon", "gpt2", "mixtral"])
def test_what_fewer_blocks_take_more_blocks_take_too(name: str) -> None:
    orders = [removed(plan(fresh(name), blocks=n)) for n in range(1, 5)]
    assert all(longer[: len(shorter)] == shorter for shorter, longer in itertools.pairwise(orders))
    assert [len(order) for order in orders] == [1, 2, 3, 4]


@pytest.mark.parametrize("remove", [0.05, 0.2, 0.5])
@pytest.mark.parametrize("name", ["llama", "gpt2", "falcon"])
def test_a_share_is_reached_with_one_block_to_spare(name: str, remove: float) -> None:
    made = plan(fresh(name), remove=remove)
    goal = remove * made.dense.params
    assert made.dense.params - made.pruned.params >= goal
    assert made.dense.params - count(cut(make_model(name), made.ops[:-1])).params < goal


SAVED = {
    "per-parameter": lambda counts: counts.params,
    "per-flop": lambda counts: counts.flops_per_token,
    "per-kv-byte": lambda counts: counts.kv_bytes_per_token,
}


@pytest.mark.parametrize("criterion", SAVED)
@pytest.mark.parametrize("name", ["llama", "gpt_neox", "opt"])
def test_a_criterion_weighs_what_a_block_saves(name: str, criterion: str) -> None:
    """What a cut saves is counted after it was made."""
    text = spoken_by(make_model(name), 16)
    base, dense = loss(make_model(name), text.ids), count(fresh(name))
    scores: dict[str, float] = {}
    for key, ops in blocks(name).items():
        view = cut(make_model(name), ops)
        if saved := SAVED[criterion](dense - count(view)):
            scores[key] = (loss(view.model, text.ids) - base) / saved
    made = plan(fresh(name), blocks=1, tokens=text, criterion=criterion)
    assert removed(made) == [min(scores, key=lambda k: scores[k])]
    assert made.stages[0].scores["trace"][0]["candidates"] == len(scores)


def test_one_shot_ranks_once() -> None:
    made = plan(fresh("llama"), blocks=4, one_shot=True)
    losses = {k: loss(cut(make_model("llama"), ops).model, IDS) for k, ops in blocks("llama").items()}
    ranked = sorted(losses, key=lambda k: losses[k])
    ranking = made.stages[0].scores["ranking"]
    assert [row["cut"] for row in ranking] == ranked
    assert [row["loss"] for row in ranking] == pytest.approx([losses[k] for k in ranked], abs=1e-5)
    assert [f"{op.which}.{op.layer}" for op in made.ops if isinstance(op, DropSublayer)] == ranked[:4]


def test_a_layer_that_lost_both_goes_altogether() -> None:
    view = fresh("llama")
    made = plan(view, blocks=9)
    assert len(present(view)) == 1
    assert len(view.layers) == 1
    assert_same_logits(logits(cut(make_model("llama"), made.ops).model), logits(view.model), exact=True)


@pytest.mark.parametrize("name", EXPERTS)
def test_experts_stay(name: str) -> None:
    view = fresh(name)
    plan(view, blocks=LAYERS - 1)
    assert [which for which, _ in present(view)].count("mlp") == LAYERS


class TestStock:
    @pytest.mark.parametrize("name", ["llama", "gemma2", "opt", "gpt2", "falcon/serial"])
    @pytest.mark.parametrize("blocks", [2, 4])
    def test_an_ordinary_model_is_left(self, name: str, blocks: int) -> None:
        view = fresh(name)
        plan(view, blocks=blocks, stock=True)
        kinds = [which for which, _ in present(view)]
        assert kinds == ["attn", "mlp"] * (LAYERS - blocks // 2)
        ordinary = paired(view)
        assert propose(ordinary).stock
        assert len(ordinary.layers) == LAYERS - blocks // 2
        assert_same_logits(logits(ordinary.model), logits(view.model))

    def test_it_is_saved_without_code_of_ours(self, tmp_path: Path) -> None:
        model = load(str(save_model_folder(tmp_path / "dense", "llama")))
        plan(model.view, blocks=4, stock=True)
        (out := tmp_path / "pruned").mkdir()
        assert save_model(model, out).stock
        assert not list(out.glob("*.py"))
        assert "auto_map" not in (out / "config.json").read_text()

    @pytest.mark.parametrize("name", PARALLEL)
    def test_layers_with_parallel_branches_go_whole(self, name: str) -> None:
        view = fresh(name)
        plan(view, blocks=4, stock=True)
        assert len(view.layers) == LAYERS - 2
        assert propose(view).stock

    def test_the_best_pair_goes_first(self) -> None:
        """Neighbours may belong to two layers: an MLP and the attention after it."""
        order = [(which, i) for i in range(LAYERS) for which in SUBLAYERS]
        losses = {
            f"{a}.{i}+{b}.{j}": loss(cut(make_model("llama"), [block(a, i), block(b, j)]).model, IDS)
            for (a, i), (b, j) in itertools.pairwise(order)
        }
        assert removed(plan(fresh("llama"), blocks=2, stock=True)) == [min(losses, key=lambda k: losses[k])]

    def test_an_odd_number_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="--blocks 3 cannot be met 2 at a time") as caught:
            plan(fresh("llama"), blocks=3, stock=True)
        assert caught.value.hint == "give an even number"

    @pytest.mark.parametrize("given", [{"types": "mha"}, {"one_shot": True}], ids=str)
    def test_what_contradicts_it_is_refused(self, given: dict[str, Any]) -> None:
        with pytest.raises(ConfigError, match="--stock removes attentions and MLPs together"):
            plan(fresh("llama"), stock=True, **given)


class TestUnreachable:
    @pytest.mark.parametrize(
        ("name", "given", "message"),
        [
            ("llama", {"blocks": 10}, r"--blocks 10 is out of reach\n.*give 1 to 9"),
            ("llama", {"blocks": 0}, r"--blocks 0 is out of reach\n.*give 1 to 9"),
            ("llama", {"blocks": 6, "types": "mha"}, r"--blocks 6 is too many: only 5 may go\n.*give 1 to 5"),
            ("mixtral", {"blocks": 5}, r"--blocks 5 is too many: only 4 may go\n.*give 1 to 4"),
            ("llama", {"remove": 0.95}, r"--remove 95.0% is more than all decoder layers together\n.*they hold"),
            ("mixtral", {"remove": 0.6}, r"60.0% of the parameters cannot be removed by such cuts\n.*the closest"),
        ],
    )
    def test_it_is_refused_before_anything_is_measured(self, name: str, given: dict[str, Any], message: str) -> None:
        cost = Cost()
        with pytest.raises(BudgetError, match=message):
            plan(fresh(name), cost=cost, **given)
        assert cost.forward_layer_tokens == 0

    @pytest.mark.parametrize("seed", range(3))
    @pytest.mark.parametrize("name", ["mixtral", "qwen3_moe"])
    def test_the_closest_that_is_named_can_be_asked_for(self, name: str, seed: int) -> None:
        """Rounding in the message must not send the user in a circle."""
        with pytest.raises(BudgetError) as caught:
            plan(fresh(name, seed), remove=0.6)
        share = float((caught.value.hint or "").split("--remove ")[1].split()[0])
        view = fresh(name, seed)
        plan(view, remove=share)
        assert sum(view.has_branch(i, "attn") for i in view.layers) == 1

    def test_a_search_that_runs_dry_says_how_far_it_came(self) -> None:
        with pytest.raises(BudgetError, match="nothing is left to remove after 4 cuts") as caught:
            plan(fresh("llama"), remove=0.9, remove_of="body", stock=True)
        share = float((caught.value.hint or "").partition("--remove ")[2].rstrip(")"))
        view = fresh("llama")
        plan(view, remove=share, stock=True)
        assert len(present(view)) == 2
