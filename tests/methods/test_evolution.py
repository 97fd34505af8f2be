"""MultiPruner's evolutionary variant: all widths at once, against two objectives."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest
from kit.planning import calibration
from kit.tiny import make_model

from sned.errors import MissingExtraError
from sned.models.count import count
from sned.models.view import View
from sned.plans.budget import Budget
from sned.runtime.evolution import evolve
from sned.runtime.journal import Journal
from sned.runtime.method import find_method
from sned.runtime.planner import make_plan
from sned.runtime.sweep import Cost

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from sned.plans.plan import Plan

OPTIONS = {"widths": "nsga2", "population": 8, "generations": 4, "mlp_group": 4, "split": "44:52:4"}
GENES = {f"g{i}": 4 for i in range(4)}


def plan(seed: int = 0, folder: Path | None = None, cost: Cost | None = None, **options: object) -> Plan:
    view = View(make_model("llama"))
    return make_plan(
        view,
        find_method("multipruner"),
        calibration(),
        Budget(remove=0.2),
        OPTIONS | options,
        seed=seed,
        journal=Journal(folder),
        cost=cost,
    )


def away_from_two(genomes: Sequence[dict[str, int]]) -> list[tuple[float, int]]:
    return [(sum((v - 2.0) ** 2 for v in g.values()), 100 - sum(g.values())) for g in genomes]


def test_the_budget_is_met_by_widths_of_both_kinds() -> None:
    made = plan()
    view = View(make_model("llama"))
    dense = count(view).params
    made.apply(view)
    assert 1 - count(view).params / dense >= 0.2
    stage = made.stages[0]
    assert stage.scores["evolved"]["params"] == count(view).params
    assert any(op.op == "keep" for op in made.ops)


def test_it_does_not_lose_to_an_even_cut_of_the_same_size() -> None:
    """The even cut is in the first generation, so whatever wins is no worse."""
    few = plan(generations=1, population=4).stages[0].scores["evolved"]["loss"]
    many = plan(generations=6, population=4).stages[0].scores["evolved"]["loss"]
    assert many <= few


def test_the_front_falls_in_loss_as_parameters_grow() -> None:
    front = plan().stages[0].scores["front"]
    params, losses = [row["params"] for row in front], [row["loss"] for row in front]
    assert params == sorted(params)
    assert losses == sorted(losses, reverse=True)


def test_a_seed_decides_and_a_journal_answers(tmp_path: Path) -> None:
    first, again = plan(folder=tmp_path), Cost()
    assert plan(folder=tmp_path, cost=again).ops == first.ops
    assert again.forward_layer_tokens == 0
    assert plan(seed=1).stages[0].scores["front"] != first.stages[0].scores["front"]


def test_evolution_finds_a_known_optimum() -> None:
    judged = evolve(GENES, away_from_two, first=[], population=24, generations=20, seed=0)
    assert len(judged) == 480
    assert min(i.loss for i in judged) == 0


def test_an_individual_without_a_finite_loss_has_no_part() -> None:
    def judge(genomes: Sequence[dict[str, int]]) -> list[tuple[float, int]]:
        return [
            (float("inf") if g["g0"] else loss, n) for g, (loss, n) in zip(genomes, away_from_two(genomes), strict=True)
        ]

    judged = evolve(GENES, judge, first=[], population=8, generations=6, seed=0)
    assert judged
    assert all(i.genome["g0"] == 0 for i in judged)


def test_without_the_package_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingExtraError, match="evolve"):
        evolve(GENES, away_from_two, first=[], population=4, generations=1, seed=0)
