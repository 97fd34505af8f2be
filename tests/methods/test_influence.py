"""Influence: the idle is worth nothing and goes first, values are those of the definition, and goals are met."""

from __future__ import annotations

import math
from itertools import combinations
from typing import TYPE_CHECKING, Any

import pytest
import torch
from kit.compare import assert_same_logits, logits
from kit.planning import Kill, Messages, Steps, calibration, plan_on, small_batches
from kit.planted import idle_layers, quiet_layers
from kit.searching import context_of, fresh, loss
from kit.tiny import DENSE_NAMES, FAMILY_NAMES, LAYERS, family_of, make_model, tokens

from sned.errors import BudgetError, ConfigError, NumericalError, UnsupportedModelError
from sned.models.count import count
from sned.models.view import View
from sned.plans.ops import DropLayers, DropSublayer
from sned.runtime import journal as journals
from sned.runtime import valuation
from sned.runtime.context import Context
from sned.runtime.statistics import METRICS
from sned.runtime.sweep import Cost
from sned.runtime.valuation import Unit, find_units, value_units

if TYPE_CHECKING:
    from pathlib import Path

    from sned.plans.plan import Plan

every_family = pytest.mark.parametrize("name", FAMILY_NAMES)
EVERY_METRIC = ["shapley", "loo", *METRICS]
ALL = {"min_start": 0, "max_end": LAYERS}
"""Lets the ends go, too."""


def plan_by(view: View, **given: Any) -> Plan:
    """Unbounded: tiny random models know no more than a guess."""
    return plan_on(view, "influence", **{"bounded": False} | given)


def values(plan: Plan) -> dict[str, float]:
    return {row["unit"]: row["value"] for row in plan.stages[0].scores["values"]}


def valued(view: View, units: Any = "layers", metric: Any = "shapley", permutations: int = 4) -> valuation.Valuation:
    """All units, on the tokens of the contracts."""
    found = find_units(view, units, 0, LAYERS)
    context = context_of(view)
    return value_units(
        context, found, metric, permutations=permutations, windows=None, objective="perplexity", bounded=False
    )


class TestIdle:
    @pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "falcon", "granite", "mixtral"])
    def test_what_does_nothing_is_worth_nothing_and_goes(self, name: str) -> None:
        model = idle_layers(make_model(name), [1, 3])
        dense = logits(model)
        for metric in EVERY_METRIC:
            view = View(model).fork()
            plan = plan_by(view, metric=metric, objective="kl")
            assert plan.ops == (DropLayers(layers=[1, 3]),), metric
            assert_same_logits(logits(view.model), dense)
            found = values(plan)
            assert found["layer.1"] == pytest.approx(0, abs=1e-5), metric
            assert found["layer.3"] == pytest.approx(0, abs=1e-5), metric
            assert found["layer.2"] > 1e-3, metric

    @pytest.mark.parametrize("name", ["llama", "gemma2", "phi", "opt", "falcon"])
    def test_so_do_its_parts(self, name: str) -> None:
        model = idle_layers(make_model(name), [2])
        for metric in EVERY_METRIC:
            plan = plan_by(View(model).fork(), metric=metric, units="both", blocks=2, objective="kl")
            assert set(plan.ops) == {DropSublayer(layer=2, which=which) for which in ("attn", "mlp")}, metric
            found = values(plan)
            assert found.keys() == {f"{which}.{i}" for which in ("attn", "mlp") for i in (1, 2, 3)}
            assert all(abs(value) < 1e-5 for unit, value in found.items() if unit.endswith(".2")), metric

    @pytest.mark.parametrize("metric", METRICS)
    @pytest.mark.parametrize("name", [name for name in FAMILY_NAMES if not family_of(name).mlp_post])
    def test_the_quietest_layers_are_preferred(self, name: str, metric: str) -> None:
        """Where no norm makes up for it."""
        plan = plan_by(View(quiet_layers(make_model(name), [2, 3])), metric=metric)
        assert plan.ops == (DropLayers(layers=[2, 3]),)


class TestOtherMethods:
    @every_family
    def test_the_cosine_of_layers_is_shortgpt(self, name: str) -> None:
        assert plan_by(fresh(name), metric="cosine").ops == plan_on(fresh(name), "shortgpt").ops

    @pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "falcon", "mixtral"])
    def test_leaving_one_out_is_the_first_step_of_blockpruner(self, name: str) -> None:
        mine = plan_by(fresh(name), units="both", metric="loo", blocks=1, **ALL)
        theirs = plan_on(fresh(name), "blockpruner", one_shot=True, blocks=1)
        assert mine.ops == theirs.ops
        ranking = theirs.stages[0].scores["ranking"]
        scores = mine.stages[0].scores
        assert [row["unit"] for row in scores["values"]] == [row["cut"] for row in ranking]
        rises = [row["loss"] - scores["valuation"]["base"] for row in ranking]
        assert list(values(mine).values()) == pytest.approx(rises, abs=1e-9)


class TestShapley:
    def exact(self, view: View, units: list[Unit]) -> list[float]:
        """By the definition, over all subsets."""
        n, context = len(units), context_of(view)
        sets = [frozenset(chosen) for size in range(n + 1) for chosen in combinations(range(n), size)]
        losses = dict(zip(sets, context.losses([[units[i].op for i in gone] for gone in sets]), strict=True))
        found = []
        for unit in range(n):
            sizes: dict[int, list[float]] = {}
            for gone in (gone for gone in sets if unit not in gone):
                sizes.setdefault(len(gone), []).append(losses[gone | {unit}] - losses[gone])
            found.append(sum(sum(rises) / len(rises) for rises in sizes.values()) / n)
        return found

    @pytest.mark.parametrize(("name", "kind"), [("llama", "layers"), ("gpt2", "layers"), ("mixtral", "attn")])
    def test_sampling_tends_to_what_enumeration_gives(self, name: str, kind: Any) -> None:
        want = self.exact(fresh(name), find_units(fresh(name), kind, 0, LAYERS))
        got = valued(fresh(name), kind, permutations=600)
        assert got.errors is not None
        for value, error, true in zip(got.values, got.errors, want, strict=True):
            assert abs(value - true) < 4 * error
            assert error < 0.1 * max(map(abs, want))

    @pytest.mark.parametrize("name", [name for name in DENSE_NAMES if "granite" not in name][::3])
    def test_layers_and_their_parts_add_up_to_the_whole_body_in_double_precision(self, name: str) -> None:
        """With every part gone the embeddings go straight to the head: as in a model whose layers are all idle."""
        model = make_model(name).double()
        silent = idle_layers(make_model(name), range(LAYERS)).double()
        whole = loss(silent, calibration().ids) - loss(model, calibration().ids)
        for units in ("layers", "both"):
            found = valued(View(make_model(name).double()), units)
            assert sum(found.values) == pytest.approx(whole, abs=1e-6), units
            assert abs(found.facts["gap"]) < 1e-9
            assert found.facts["all_gone"] - found.facts["base"] == pytest.approx(whole, abs=1e-6)

    def test_the_seed_decides(self) -> None:
        one, same, other = (
            values(plan_by(fresh("llama"), metric="shapley", permutations=2, seed=seed, **ALL)) for seed in (0, 0, 1)
        )
        assert one == same
        assert one != other
        assert sum(one.values()) == pytest.approx(sum(other.values()), abs=1e-9)

    def test_more_orders_go_on_from_fewer(self, tmp_path: Path) -> None:
        given, costs = {"metric": "shapley", **ALL}, [Cost() for _ in range(2)]
        plan_by(fresh("llama"), folder=tmp_path, permutations=2, **given)
        more = plan_by(fresh("llama"), folder=tmp_path, permutations=6, cost=costs[0], **given)
        assert values(more) == values(plan_by(fresh("llama"), permutations=6, cost=costs[1], **given))
        assert costs[0].forward_layer_tokens < costs[1].forward_layer_tokens

    def test_orders_share_what_they_have_in_common(self) -> None:
        """All 32 sets of five layers: 31 runs of a layer, not 80."""
        view, cost = fresh("llama"), Cost()
        units = find_units(view, "layers", 0, LAYERS)
        context = context_of(view, cost=cost)
        found = value_units(
            context, units, "shapley", permutations=600, windows=2, objective="perplexity", bounded=False
        )
        assert found.facts["tried"] == 32
        assert cost.forward_layer_tokens == (1 + 2 + 4 + 8 + 16) * 2 * calibration().length

    def test_the_scores_say_what_values_rest_on(self) -> None:
        plan = plan_by(fresh("llama"), layers=1, metric="shapley", permutations=8)
        scores = plan.stages[0].scores
        assert [row["unit"] for row in scores["values"] if row["removed"]] == [scores["values"][0]["unit"]]
        assert [row["value"] for row in scores["values"]] == sorted(row["value"] for row in scores["values"])
        assert all(row["error"] > 0 for row in scores["values"])
        facts = scores["valuation"]
        assert facts["metric"] == "shapley"
        assert facts["orders"] == 8
        assert -1 <= facts["agreement"] <= 1
        assert facts["base"] == pytest.approx(loss(make_model("llama"), calibration().ids))


def knowing() -> View:
    """A model that predicts its tokens better than a guess, since it was trained on them for a moment."""
    model = make_model("llama")
    for param in model.parameters():
        param.requires_grad_()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    ids = calibration().ids
    for _ in range(30):
        optimizer.zero_grad()
        model(ids, labels=ids).loss.backward()
        optimizer.step()
    return View(model.eval().requires_grad_(False))


class TestBounded:
    """A loss counts no more than that of a uniform guess."""

    def test_values_add_up_to_what_the_model_is_better_than_that(self) -> None:
        view = knowing()
        plan = plan_by(view.fork(), metric="shapley", bounded=True, permutations=8, units="both", blocks=1, **ALL)
        facts = plan.stages[0].scores["valuation"]
        assert facts["ceiling"] == pytest.approx(math.log(view.geometry.vocab))
        assert facts["all_gone"] <= facts["ceiling"]
        assert facts["base"] == pytest.approx(loss(view.model, calibration().ids), rel=1e-5)
        assert sum(values(plan).values()) == pytest.approx(facts["all_gone"] - facts["base"], abs=1e-6)

    def test_an_order_that_reached_it_is_not_gone_along_further(self) -> None:
        given = {"metric": "shapley", "permutations": 4, "units": "both", "blocks": 1, **ALL}
        whole, cut_off = (
            plan_by(knowing(), bounded=bounded, **given).stages[0].scores["valuation"] for bounded in (False, True)
        )
        assert cut_off["tried"] < whole["tried"]

    def test_a_model_no_better_than_a_guess_is_refused(self) -> None:
        with pytest.raises(NumericalError, match="uniform guess"):
            plan_by(fresh("llama"), metric="shapley", bounded=True)


class TestBroken:
    @pytest.fixture(autouse=True)
    def broken_layer(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without layer 2 no loss is finite."""
        whole = Context.losses

        def losses(self: Context, candidates: Any, **given: Any) -> list[float]:
            found = whole(self, candidates, **given)
            broken = [any(2 in op.touched for op in ops) for ops in candidates]
            return [float("inf") if bad else value for bad, value in zip(broken, found, strict=True)]

        monkeypatch.setattr(Context, "losses", losses)

    def test_a_unit_without_which_nothing_works_goes_last(self) -> None:
        plan = plan_by(fresh("llama"))
        assert plan.ops == (DropLayers(layers=[1, 3]),)
        assert plan.stages[0].scores["values"][-1] == {
            "unit": "layer.2",
            "removed": False,
            "value": None,
            "error": None,
        }

    def test_it_has_no_shapley_value(self) -> None:
        with pytest.raises(NumericalError, match="losses are not finite"):
            plan_by(fresh("llama"), metric="shapley")

    def test_bounded_it_is_worth_what_a_model_is_worth_beyond_a_guess(self) -> None:
        plan = plan_by(knowing(), metric="shapley", bounded=True, permutations=8, **ALL)
        found = values(plan)
        assert all(math.isfinite(value) for value in found.values())
        assert found["layer.2"] > max(found[f"layer.{i}"] for i in (1, 3, 4))


class TestGoals:
    @pytest.mark.parametrize("units", ["attn", "mlp", "both"])
    @pytest.mark.parametrize("name", ["llama", "phi3", "opt"])
    def test_so_many_blocks_go(self, name: str, units: str) -> None:
        view = fresh(name)
        plan = plan_by(view, units=units, metric="relative_l2", blocks=3)
        assert len(plan.ops) == 3
        wanted = {"attn", "mlp"} if units == "both" else {units}
        assert {op.which for op in plan.ops if isinstance(op, DropSublayer)} <= wanted
        assert all(0 < op.touched[0] < LAYERS - 1 for op in plan.ops)

    def test_blocks_may_be_counted_in_whole_layers(self) -> None:
        assert plan_by(fresh("llama"), blocks=4).ops == plan_by(fresh("llama"), layers=2).ops

    @pytest.mark.parametrize("repair", [None, "shift", "lowrank"])
    @pytest.mark.parametrize("share", [0.15, 0.2, 0.35])
    def test_a_share_is_reached_with_all_that_stands_in_the_place_of_layers(self, repair: Any, share: float) -> None:
        plan = plan_by(fresh("llama"), remove=share, remove_of="body", metric="l2", repair=repair, rank=4)
        assert plan.dense.body_params - plan.pruned.body_params >= share * plan.dense.body_params
        layers = sum(len(op.touched) for op in plan.ops)
        assert layers == (1 if share < 0.2 or (share == 0.2 and repair is None) else 2)

    @pytest.mark.parametrize(
        ("given", "error", "message"),
        [
            ({"units": "attn", "layers": 1}, BudgetError, "counts whole layers"),
            ({"blocks": 3}, BudgetError, "no number of whole layers"),
            ({"blocks": 8}, BudgetError, "4 layers are too many: only 3 may go"),
            ({"layers": LAYERS, **ALL}, BudgetError, "5 layers are too many: only 4 may go"),
            ({"remove": 0.9, "remove_of": "body"}, BudgetError, "cannot be removed by whole layers here"),
            ({"remove": 0.59, "remove_of": "body", "repair": "lowrank"}, BudgetError, "cannot be removed by whole"),
            ({"units": "mlp", "blocks": 4}, BudgetError, "only 3 may go"),
            ({"units": "both", "blocks": 1, "repair": "scale"}, ConfigError, "makes up for whole layers"),
            ({"units": "both", "blocks": 1, "repair": "shift", "sequential": True}, ConfigError, "for whole layers"),
            ({"repair": "lowrank", "rank": 33}, ConfigError, "more than the 32 channels"),
            ({"permutations": 5}, ConfigError, "multiple of 2"),
        ],
        ids=str,
    )
    def test_what_cannot_be_met_is_refused_before_anything_is_measured(
        self, given: dict[str, Any], error: type[Exception], message: str
    ) -> None:
        view, cost = fresh("llama"), Cost()
        before = count(view)
        with pytest.raises(error, match=message):
            plan_by(view, cost=cost, **given)
        assert count(view) == before
        assert cost.forward_layer_tokens == 0

    @pytest.mark.parametrize("name", sorted(set(FAMILY_NAMES) - set(DENSE_NAMES)))
    def test_mixtures_of_experts_lose_layers_and_attentions(self, name: str) -> None:
        with pytest.raises(UnsupportedModelError, match="no mlp of layers 1 to 3"):
            plan_by(fresh(name), units="mlp", blocks=1)
        plan = plan_by(fresh(name), units="both", metric="cosine", blocks=2)
        assert all(isinstance(op, DropSublayer) and op.which == "attn" for op in plan.ops)


@pytest.mark.parametrize(
    "given",
    [
        {"units": "both", "metric": "loo", "blocks": 3},
        {"units": "attn", "windows": 4, "blocks": 2, "metric": "shapley", "permutations": 4},
        {"metric": "shapley"},
        {"metric": "cosine", "repair": "shift"},
        {"metric": "l1", "repair": "lowrank", "rank": 2, "sequential": True, "layers": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_killed_run_goes_on_where_it_stopped(
    name: str, given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_batches(monkeypatch)
    monkeypatch.setattr(journals, "SAVE_EVERY_SECONDS", 0.0)
    steps = Steps()
    straight = plan_by(fresh(name), progress=steps, **given)
    for after in range(0, steps.total, 1 + steps.total // 8):
        folder = tmp_path / str(after)
        with pytest.raises(KeyboardInterrupt):
            plan_by(fresh(name), folder=folder, progress=Kill(after), **given)
        resumed = plan_by(fresh(name), folder=folder, **given)
        assert resumed.digest == straight.digest
        assert resumed.stages == straight.stages


def test_only_the_windows_asked_for_are_looked_at() -> None:
    for metric in ("shapley", "loo", "l2"):
        few = plan_by(fresh("llama"), metric=metric, windows=2)
        assert values(few) == values(plan_by(fresh("llama"), metric=metric, tokens=tokens(6, 16, seed=3).take(2)))


def test_few_tokens_for_a_low_rank_update_are_told() -> None:
    messages = Messages()
    plan_by(fresh("llama"), metric="l2", repair="lowrank", progress=messages)
    assert [w for w in messages.warnings if "few for a map of 32 features" in w]
