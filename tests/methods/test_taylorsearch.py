"""taylorsearch: what does nothing goes first, a few cuts are tried in each step, and losses decide among them."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from kit.planning import plan_on, small_batches
from kit.planted import dead_units, idle_layers, spoken_by
from kit.searching import block, fresh
from kit.tiny import DENSE_NAMES, LAYERS, make_model

from sned.errors import BudgetError
from sned.methods.taylorsearch import promise
from sned.models.count import Counts
from sned.models.view import View
from sned.plans.ops import DropLayers, DropSublayer, Keep
from sned.runtime import sensitivity
from sned.runtime.greedy import Cut
from sned.runtime.search import Search
from sned.runtime.sweep import Cost

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

    from sned.plans.ops import Op
    from sned.plans.plan import Plan
    from sned.runtime.search import Choice

AXIS = "layers.3.mlp.hidden"


def kind_of(cut: str) -> str:
    """What a cut takes, by its name: ``attn`` and ``mlp`` whole, ``attn:`` and ``mlp:`` some of their units."""
    return cut.partition(".")[0] + ":" * (":" in cut)


def trace(plan: Plan) -> list[dict[str, Any]]:
    return plan.stages[0].scores["trace"]


@pytest.mark.parametrize("name", DENSE_NAMES)
def test_what_does_nothing_goes_before_anything_else(name: str) -> None:
    model = idle_layers(make_model(name), [2])
    plan = plan_on(View(model), "taylorsearch", tokens=spoken_by(model), kinds="mlp", remove=0.03)
    first = plan.ops[0]
    assert isinstance(first, DropSublayer | Keep)
    assert trace(plan)[0]["cut"].startswith("mlp.2")
    assert trace(plan)[0]["increase"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", ["llama", "gpt2", "phi3"])
def test_dead_channels_are_the_cheapest_promise(name: str) -> None:
    view = View(dead_units(make_model(name), AXIS, dead := [1, 4, 5, 9]))
    plan = plan_on(view, "taylorsearch", kinds="mlp", whole_blocks=False, mlp_group=4, proposals=1, remove=0.001)
    (op,) = plan.ops
    assert isinstance(op, Keep)
    assert set(range(view.axis(AXIS).size)) - set(op.units) == set(dead)


def test_losses_decide_among_what_gradients_propose(monkeypatch: pytest.MonkeyPatch) -> None:
    """With gradients that promise the reverse, the more is tried, the less is lost; all axes together lose least."""
    measured = sensitivity.gate_sensitivities

    def reversed_(*args: Any) -> dict[str, torch.Tensor]:
        return {name: 1 / (slopes + 1e-6) for name, slopes in measured(*args).items()}

    monkeypatch.setattr("sned.methods.taylorsearch.gate_sensitivities", reversed_)
    first = [
        trace(plan_on(fresh("llama"), "taylorsearch", proposals=n, kinds="mlp", whole_blocks=False, remove=0.001))[0]
        for n in (1, 3, LAYERS)
    ]
    assert [row["candidates"] for row in first] == [1, 3, LAYERS]
    increases = [row["increase"] for row in first]
    assert increases == sorted(increases, reverse=True)
    assert increases[-1] < increases[0]


def test_a_kind_that_gradients_think_cheap_leaves_room_for_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = sensitivity.gate_sensitivities

    def biased(*args: Any) -> dict[str, torch.Tensor]:
        return {name: slopes / (1e6 if "attn" in name else 1) for name, slopes in measured(*args).items()}

    monkeypatch.setattr("sned.methods.taylorsearch.gate_sensitivities", biased)
    model = dead_units(make_model("llama"), AXIS, [1, 4, 5, 9])
    plan = plan_on(View(model), "taylorsearch", tokens=spoken_by(model), mlp_group=4, proposals=1, remove=0.001)
    assert trace(plan)[0]["cut"].startswith("mlp.3:")


@pytest.mark.parametrize(("proposals", "refresh"), [(3, 2), (1, 100), (5, 1)])
def test_each_step_tries_a_few_and_gradients_are_taken_every_so_often(
    proposals: int, refresh: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_batches(monkeypatch)
    asked: list[int] = []
    measured, best = sensitivity.gate_sensitivities, Search.best

    def counted(*args: Any) -> dict[str, torch.Tensor]:
        asked.append(1)
        return measured(*args)

    def watched(search: Search, candidates: Mapping[str, Sequence[Op]], *args: Any) -> Choice:
        assert max(Counter(map(kind_of, candidates)).values()) == proposals
        return best(search, candidates, *args)

    monkeypatch.setattr("sned.methods.taylorsearch.gate_sensitivities", counted)
    monkeypatch.setattr(Search, "best", watched)
    given = {"proposals": proposals, "refresh": refresh, "mlp_group": 4, "whole_blocks": False}
    plan = plan_on(fresh("llama"), "taylorsearch", remove=0.1, **given)
    assert len(trace(plan)) > 2
    assert len(asked) == -(-len(trace(plan)) // refresh)


def test_a_promise_is_the_sum_over_the_units_that_leave() -> None:
    slopes = {AXIS: {0: 1.0, 1: 2.0, 2: 4.0, 3: 8.0}, "layers.1.attn.group": {0: 16.0, 1: 32.0}}
    alive = {AXIS: [0, 1, 3], "layers.1.attn.group": [0, 1]}
    nothing = Counts(0, 0, 0, 0)
    assert promise(Cut((Keep(axis=AXIS, units=(1,)),), nothing), slopes, alive) == 1 + 8
    assert promise(Cut((block("attn", 1),), nothing), slopes, alive) == 48
    assert promise(Cut((block("attn", 1), block("mlp", 3)), nothing), slopes, alive) == 48 + 11
    with pytest.raises(TypeError, match="takes no units away"):
        promise(Cut((DropLayers(layers=(1,)),), nothing), slopes, alive)


@pytest.mark.parametrize("kinds", ["mlp", "heads"])
@pytest.mark.parametrize("blocks", [True, False])
def test_only_the_kinds_asked_for_go(kinds: str, blocks: bool) -> None:
    plan = plan_on(fresh("llama"), "taylorsearch", kinds=kinds, whole_blocks=blocks, remove=0.05)
    which = "mlp" if kinds == "mlp" else "attn"
    assert all(row["cut"].startswith(which) for row in trace(plan))
    assert blocks or all(isinstance(op, Keep) for op in plan.ops)


@pytest.mark.parametrize(("given", "share"), [({}, 0.95), ({"whole_blocks": False}, 0.9), ({"kinds": "heads"}, 0.5)])
def test_what_no_cuts_can_reach_is_refused_before_anything_runs(given: dict[str, Any], share: float) -> None:
    """The closest reachable share is named, and can be reached."""
    cost = Cost()
    with pytest.raises(BudgetError, match="cannot be removed by such cuts") as caught:
        plan_on(fresh("llama"), "taylorsearch", remove=share, remove_of="body", cost=cost, **given)
    assert cost.forward_layer_tokens == 0
    found = re.search(r"--remove ([\d.]+)", caught.value.hint or "")
    assert found is not None
    plan = plan_on(fresh("llama"), "taylorsearch", remove=float(found[1]), **given)
    assert plan.dense.params - plan.pruned.params >= float(found[1]) * plan.dense.params
