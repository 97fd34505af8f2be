"""MultiPruner: three stages, each of which takes the best step there is, checked by surgery one step at a time."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
from kit.compare import assert_same_logits, logits
from kit.planning import Messages, calibration
from kit.planted import dead_units, spoken_by
from kit.searching import context_of
from kit.tiny import CONFIGS, fill, make_model
from transformers import AutoModelForCausalLM, FalconConfig

from sned.errors import BudgetError, ConfigError, UnsupportedModelError
from sned.methods.multipruner import multipruner, thresholds
from sned.models.count import count
from sned.models.view import View
from sned.plans.budget import Budget
from sned.plans.ops import DropSublayer, Keep, Op
from sned.plans.plan import merged
from sned.plans.published import ops_from_multipruner, to_multipruner
from sned.runtime.parts import fluctuations, unit_worths
from sned.runtime.planner import make_plan
from sned.runtime.widths import present_axes
from sned.score.magnitude import units_by_magnitude

if TYPE_CHECKING:
    from sned.plans.plan import Plan

IDS = calibration().ids


def plan(view: View, remove: float = 0.2, **options: Any) -> Plan:
    progress = options.pop("progress", Messages())
    return make_plan(view, multipruner, calibration(), Budget(remove=remove), options, progress=progress)


def cut(name: str, ops: list[Op]) -> View:
    view = View(make_model(name))
    for op in ops:
        op.apply(view, {})
    return view


def loss(view: View) -> float:
    """The mean loss of a model by its own forward pass."""
    chances = logits(view.model, IDS)[:, :-1].log_softmax(-1)
    return -float(chances.gather(2, IDS[:, 1:, None]).double().mean())


def candidates(name: str, view: View, stage: int, group: int) -> list[Op]:
    """All that a stage may do next, in the order that breaks ties."""
    there = {which: [i for i in view.layers if view.has_branch(i, which)] for which in ("attn", "mlp")}
    if stage == 0:
        return [DropSublayer.model_validate({"layer": i, "which": w}) for w in ("attn", "mlp") for i in there[w]]
    which, kind = ("mlp", "mlp.hidden") if stage == 1 else ("attn", "attn.group")
    names = [f"layers.{i}.{kind}" for i in there[which]]
    orders = units_by_magnitude(View(make_model(name)), names)
    widths = {axis: len(view.alive[axis]) - group for axis in names}
    return [Keep(axis=axis, units=tuple(orders[axis][:n])) for axis, n in widths.items() if n > 0]


@pytest.mark.parametrize("name", ["llama", "gpt_neox/serial", "opt", "gpt2"])
def test_every_step_is_the_best_there_is(name: str) -> None:
    made = plan(View(make_model(name)), 0.25, split="40:40:20", mlp_group=16)
    dense, goal, done = count(View(make_model(name))).params, 0.0, list[Op]()
    for stage, share in enumerate((0.4, 0.8, 1.0)):
        goal = share * math.ceil(0.25 * dense)
        while dense - count(view := cut(name, done)).params < goal:
            tried = candidates(name, view, stage, 16 if stage == 1 else 1)
            losses = [loss(cut(name, [*done, op])) for op in tried]
            best, second, *_ = sorted(losses)
            assert second - best > 1e-5, "another seed: these candidates are too close to tell apart"
            assert made.stages[0].scores["trace"][len(done)]["loss"] == pytest.approx(best, abs=1e-5)
            done.append(tried[losses.index(best)])
    assert list(made.ops) == merged(done)
    assert {getattr(op, "axis", "block").split(".")[-1] for op in done} == {"block", "hidden", "group"}


@pytest.mark.parametrize(
    ("total", "parts", "stops"),
    [(22, (44, 52, 4), (9.68, 21.12, 22)), (20, (30, 70, 0), (6, 20, 20)), (9, (0, 1, 2), (0, 3, 9))],
)
def test_thresholds_add_up(total: float, parts: tuple[float, ...], stops: tuple[float, ...]) -> None:
    assert thresholds(total, parts) == pytest.approx(stops)
    assert thresholds(total, parts)[2] == total


@pytest.mark.parametrize(
    ("name", "split"), [("opt", (44, 52, 4)), ("llama", (30, 70, 0)), ("falcon/multi_query", (30, 70, 0))]
)
def test_shared_keys_and_values_spare_the_heads(name: str, split: tuple[int, ...]) -> None:
    view = View(make_model(name))
    goal = math.ceil(0.2 * count(view).params)
    stops = plan(view).stages[0].scores["thresholds"]
    assert stops == pytest.approx(thresholds(goal, split))


@pytest.mark.parametrize("remove", [0.06, 0.13, 0.2, 0.3])
@pytest.mark.parametrize("name", ["gpt_neox", "qwen2", "phi3"])
def test_the_budget_is_met_with_one_step_to_spare(name: str, remove: float) -> None:
    made = plan(View(make_model(name)), remove)
    goal = math.ceil(remove * made.dense.params)
    assert made.dense.params - made.pruned.params >= goal
    before_last = count(cut(name, list(made.ops[:-1]))).params
    assert made.dense.params - before_last < goal


def test_more_is_removed_by_going_on() -> None:
    """Blocks go in the same order whatever the budget."""
    few, many = (plan(View(make_model("qwen2")), remove, split="1:0:0").ops for remove in (0.12, 0.35))
    assert len(few) < len(many)
    assert many[: len(few)] == few


@pytest.mark.parametrize("order", ["magnitude", "stored", "wandasp", "flap"])
def test_units_leave_in_the_order_that_is_asked_for(order: str) -> None:
    """By size, by what the methods of that name think of the dense model, or the last ones first."""
    view = View(make_model("gpt_neox"))
    first, ctx = {axis.name: list(range(axis.size)) for axis in view.geometry.axes.values()}, context_of(view)
    axes = present_axes(view, ("attn.group", "mlp.hidden"))
    if order == "magnitude":
        first = units_by_magnitude(view, first)
    elif order == "wandasp":
        first = {name: own.argsort(descending=True).tolist() for name, own in unit_worths(ctx, axes).items()}
    elif order == "flap":
        first = {name: own.argsort(descending=True).tolist() for name, (own, _) in fluctuations(ctx, axes).items()}
    ops = plan(View(make_model("gpt_neox")), split="0:80:20", order=order).ops
    assert len(ops) > 4
    for op in ops:
        assert isinstance(op, Keep)
        assert set(op.units) == set(first[op.axis][: len(op.units)])


def test_every_axis_keeps_a_unit() -> None:
    view = View(make_model("gpt_neox"))
    plan(view, 0.37, split="0:75:25", mlp_group=20)
    assert all(view.alive.values())
    assert min(len(units) for name, units in view.alive.items() if name.endswith("hidden")) == 8  # 48 - 2 * 20


def test_dead_channels_go_first_and_cost_nothing() -> None:
    dead = [3, 8, 9, 17, 30, 31, 40, 47]
    model = dead_units(make_model("qwen2"), "layers.3.mlp.hidden", dead)
    want, text, view = logits(model), spoken_by(model), View(model)
    options = {"split": "0:1:0", "mlp_group": 8}
    made = make_plan(view, multipruner, text, Budget(remove=0.001), options)
    alive = tuple(u for u in range(48) if u not in dead)
    assert made.ops == (Keep(axis="layers.3.mlp.hidden", units=alive),)
    assert_same_logits(logits(view.model), want)


@pytest.mark.parametrize("order", ["magnitude", "stored"])
def test_a_plan_can_be_written_in_the_format_of_the_authors(order: str) -> None:
    view = View(make_model("gpt_neox"))
    made = plan(view, 0.3, split="30:50:20", order=order)
    written = to_multipruner(made, view.geometry)
    assert written["pruned_attn_idx"] or written["pruned_mlp_idx"]
    base = View(make_model("gpt_neox"))
    again = cut("gpt_neox", ops_from_multipruner(written, base, reorder=order == "stored"))
    assert_same_logits(logits(again.model), logits(view.model))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("llama", {"split": "44:52"}, "'44:52' is not three shares"),
        ("llama", {"split": "a:b:c"}, "is not three shares"),
        ("llama", {"split": "0:0:0"}, "is not three shares"),
        ("llama", {"split": "-1:2:0"}, "is not three shares"),
        ("llama", {"mlp_group": 0}, "mlp_group=0"),
        ("llama", {"attn_group": 0}, "attn_group=0"),
        ("falcon/multi_query", {"split": "1:1:1"}, "all its heads share one key-value head"),
    ],
)
def test_options_that_make_no_sense_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(View(make_model(name)), **options)


def test_heads_that_carry_positions_stay() -> None:
    model = AutoModelForCausalLM.from_config(FalconConfig(**CONFIGS["falcon/serial"], alibi=True)).eval()
    fill(model, 0)
    with pytest.raises(ConfigError, match=r"number of the head \(ALiBi\)"):
        plan(View(model), split="44:52:4")
    assert not [op for op in plan(View(model)).ops if isinstance(op, Keep) and op.axis.endswith("attn.group")]


def test_experts_are_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="mixtures of experts"):
        plan(View(make_model("mixtral")))


def test_a_norm_over_all_heads_is_told() -> None:
    progress = Messages()
    plan(View(make_model("olmo2")), 0.1, split="0:50:50", progress=progress)
    assert ["a norm spans all heads" in message for message in progress.warnings] == [True]


def test_a_budget_out_of_reach_is_refused_at_once() -> None:
    with pytest.raises(BudgetError, match=r"45.0% of the parameters cannot be removed .*\n.*less than 41"):
        plan(View(make_model("llama")), 0.45, split="0:1:0", mlp_group=20)


@pytest.mark.parametrize(
    ("group", "problem"),
    [
        ({"mlp_group": 48}, "mlp_group=48 would take all 48 channels"),
        ({"attn_group": 3}, "attn_group=3 does not divide the 2 KV groups"),
    ],
)
def test_a_group_that_does_not_fit_is_refused(group: dict[str, int], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        plan(View(make_model("llama")), 0.1, **group)


def test_a_stage_that_runs_dry_says_how_far_it_came() -> None:
    with pytest.raises(BudgetError, match=r"nothing is left to remove after \d+ cuts\n.*closest reachable: \d"):
        # whichever blocks go first, the channels of the others are too few
        plan(View(make_model("llama")), 0.69, split="20:49:0", mlp_group=20)
