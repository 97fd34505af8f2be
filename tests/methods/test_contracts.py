"""What every method promises on every family; methods are found, not listed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from kit.compare import assert_differ, assert_same_logits, logits, swept
from kit.planning import (
    METHODS,
    PAIRS,
    REFUSED,
    Kill,
    Steps,
    budget_for,
    calibration,
    plan_on,
    planned,
    small_batches,
)
from kit.planted import streamed_view
from kit.sparse import count_zeros
from kit.tiny import LAYERS, make_model, tokens

from sned.errors import UnsupportedModelError
from sned.models.count import count
from sned.models.view import View
from sned.plans.budget import Budget
from sned.plans.plan import Size
from sned.plans.store import load_plan, save_plan
from sned.runtime import journal as journals
from sned.runtime.method import find_method
from sned.runtime.planner import make_plan
from sned.runtime.sweep import SUBLAYERS, Cost

if TYPE_CHECKING:
    from pathlib import Path

    from sned.plans.plan import Plan

everywhere = pytest.mark.parametrize(("method", "name"), PAIRS)
every_method = pytest.mark.parametrize("method", METHODS)
whole_layers = pytest.mark.parametrize("method", [m for m in METHODS if "layers" in find_method(m).budgets])
MOMENTS = 8
"""Where a run has more steps than that, it is killed at so many of them, evenly spread."""


def as_typed(value: object) -> str:
    """An option's value as on a command line."""
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def files(plan: Plan, folder: Path) -> dict[str, bytes]:
    """What a plan is on disk."""
    folder.mkdir()
    save_plan(plan, folder)
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture
def saved_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three batches in a pass, each saved."""
    small_batches(monkeypatch)
    monkeypatch.setattr(journals, "SAVE_EVERY_SECONDS", 0.0)


@every_method
def test_the_same_input_gives_the_same_plan(method: str) -> None:
    """On the other families, the run that was killed and resumed says so."""
    first = planned(method, "llama")
    view = View(make_model("llama"))
    again = plan_on(view, method)
    assert again.digest == first.plan.digest
    assert again.stages == first.plan.stages
    assert_same_logits(logits(view.model), first.logits, exact=True)


@everywhere
def test_a_plan_on_disk_makes_the_planned_model(method: str, name: str, tmp_path: Path) -> None:
    made = planned(method, name)
    save_plan(made.plan, tmp_path)
    loaded = load_plan(tmp_path)
    assert loaded.digest == made.plan.digest
    assert loaded.stages == made.plan.stages
    view = View(make_model(name))
    loaded.apply(view)
    assert_same_logits(logits(view.model), made.logits, exact=True)
    assert_differ(made.logits, logits(make_model(name)))


@everywhere
def test_the_budget_is_met(method: str, name: str) -> None:
    plan, budget = planned(method, name).plan, budget_for(method)
    view = View(make_model(name))
    assert plan.dense == Size.of(count(view))
    plan.apply(view)
    assert plan.pruned == Size.of(count(view))
    assert budget.as_options().items() <= plan.stages[0].options.items()
    if budget.layers is not None:
        maps = sum(op.op == "replace" for op in plan.ops)
        assert len(view.layers) == LAYERS - budget.layers + maps
    elif budget.blocks is not None:
        left = sum(view.has_branch(i, which) for i in view.layers for which in SUBLAYERS)
        assert left == 2 * LAYERS - budget.blocks
    elif budget.sparsity is not None:
        zeros, of = count_zeros(view)
        assert zeros == round(budget.sparsity * of)
        assert plan.pruned == plan.dense
    else:
        assert 1 - plan.pruned.body_params / plan.dense.body_params >= (budget.remove or 0)


@everywhere
def test_scores_and_options_are_json(method: str, name: str) -> None:
    stage = planned(method, name).plan.stages[0]
    assert json.loads(json.dumps(stage.scores, allow_nan=False)) == stage.scores
    given = {k: v for k, v in stage.options.items() if k not in (*budget_for(method).as_options(), "seed")}
    kind = find_method(method)
    assert given.keys() == {option.name for option in kind.options}
    assert kind.parse(json.loads(json.dumps(given))) == given
    assert kind.parse({k: as_typed(v) for k, v in given.items()}) == given


@everywhere
def test_a_streamed_model_gives_the_same_plan(method: str, name: str) -> None:
    view = streamed_view(name)
    plan = plan_on(view, method)
    assert plan.digest == planned(method, name).plan.digest
    assert_same_logits(swept(view), planned(method, name).logits, exact=True)


@everywhere
@pytest.mark.usefixtures("saved_batches")
def test_a_killed_run_goes_on_where_it_stopped(method: str, name: str, tmp_path: Path) -> None:
    steps, whole = Steps(), Cost()
    straight = plan_on(View(make_model(name)), method, progress=steps, cost=whole)
    if steps.total:
        with pytest.raises(KeyboardInterrupt):
            plan_on(View(make_model(name)), method, tmp_path, progress=Kill(after=steps.total // 2))
    spent = Cost()
    view = View(make_model(name))
    resumed = plan_on(view, method, tmp_path, cost=spent)
    assert resumed.digest == straight.digest
    assert resumed.stages == straight.stages
    assert spent.forward_layer_tokens < whole.forward_layer_tokens or not whole.forward_layer_tokens
    straight.apply(other := View(make_model(name)))
    assert_same_logits(logits(view.model), logits(other.model), exact=True)


@every_method
@pytest.mark.usefixtures("saved_batches")
def test_no_step_is_a_bad_moment_to_be_killed(method: str, tmp_path: Path) -> None:
    steps = Steps()
    straight = plan_on(View(make_model("llama")), method, progress=steps)
    written = files(straight, tmp_path / "straight")
    for after in range(0, steps.total, -(-steps.total // MOMENTS) or 1):
        folder = tmp_path / str(after)
        with pytest.raises(KeyboardInterrupt):
            plan_on(View(make_model("llama")), method, folder, progress=Kill(after))
        resumed = plan_on(View(make_model("llama")), method, folder)
        assert files(resumed, tmp_path / f"{after}-plan") == written, "the same bytes"


@every_method
@pytest.mark.usefixtures("saved_batches")
def test_a_run_killed_again_and_again_arrives(method: str, tmp_path: Path) -> None:
    """Each attempt gets through a few steps only, counting those it skips."""
    steps = Steps()
    straight = plan_on(View(make_model("mistral")), method, progress=steps)
    for after in range(1, steps.total + 20, 1 + steps.total // 20):
        try:
            plan = plan_on(View(make_model("mistral")), method, tmp_path, progress=Kill(after))
        except KeyboardInterrupt:
            continue
        assert plan.digest == straight.digest
        return
    pytest.fail("never arrived")


@every_method
def test_a_finished_run_costs_nothing_to_repeat(method: str, tmp_path: Path) -> None:
    first = plan_on(View(make_model("llama")), method, tmp_path)
    cost = Cost()
    assert plan_on(View(make_model("llama")), method, tmp_path, cost=cost).digest == first.digest
    assert cost.forward_layer_tokens == 0


@every_method
def test_other_tokens_or_weights_do_not_meet_old_results(method: str, tmp_path: Path) -> None:
    """One journal serves several runs; only what was measured on the same input may be taken from it."""
    plan_on(View(make_model("llama")), method, tmp_path)
    for seed, text in ((1, calibration()), (0, tokens(6, 16, seed=4))):
        fresh = plan_on(View(make_model("llama", seed)), method, tokens=text)
        assert plan_on(View(make_model("llama", seed)), method, tmp_path, tokens=text).stages == fresh.stages


@whole_layers
def test_the_first_and_the_last_layer_stay(method: str) -> None:
    view = View(make_model("llama"))
    plan_on(view, method, layers=LAYERS - 2)
    assert 0 in view.layers
    assert LAYERS - 1 in view.layers


@every_method
def test_a_seed_is_part_of_the_plan(method: str) -> None:
    plans = [plan_on(View(make_model("llama")), method, seed=seed) for seed in (0, 1)]
    assert [plan.stages[0].options["seed"] for plan in plans] == [0, 1]
    assert plans[0].digest != plans[1].digest


@every_method
def test_a_second_stage_goes_on_from_the_first(method: str) -> None:
    """It speaks base coordinates, chooses among what is left, and both stages in a row make the model."""
    view = View(make_model("llama"))
    first = plan_on(view, "uidl", layers=1, span="2:3")
    second = plan_on(view, method)
    if "layers" in find_method(method).budgets:
        assert list(view.layers) == [0, LAYERS - 1] or second.ops[-1].op == "replace"
    fresh = View(make_model("llama"))
    first.then(second).apply(fresh)
    assert_same_logits(logits(fresh.model), logits(view.model), exact=True)


@every_method
def test_methods_describe_themselves(method: str) -> None:
    found = find_method(method)
    assert found.name == method
    assert found.summary.endswith(".")
    assert found.title
    assert all(option.help for option in found.options), f"options of {method} need help texts"
    assert found.budgets


@pytest.mark.parametrize(("method", "name"), [(m, name) for m in REFUSED for name in sorted(REFUSED[m])])
def test_a_model_that_a_method_cannot_prune_is_refused_in_words(method: str, name: str) -> None:
    view = View(make_model(name))
    before = count(view)
    with pytest.raises(UnsupportedModelError, match=r"of this model are .*\n"):
        plan_on(view, method)
    assert count(view) == before


def test_a_share_of_the_parameters_is_a_budget_too() -> None:
    view = View(make_model("llama"))
    plan = make_plan(view, find_method("deepest"), None, Budget(remove=0.3, remove_of="body"))
    assert plan.stages[0].options["layers"] == 2
    assert 1 - plan.pruned.body_params / plan.dense.body_params >= 0.3
