"""What a result is held against: chance at the same shape, and methods of another budget at the same size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from kit.planning import Messages
from kit.tiny import make_model, tokens

from sned.checkpoint.model import Model
from sned.errors import NumericalError
from sned.jobs import compare
from sned.jobs.compare import TWIN, Comparisons
from sned.jobs.plan import run_method
from sned.jobs.request import LoadRequest, PruneRequest
from sned.jobs.session import Recorder, Session
from sned.models.view import View
from sned.plans.budget import Budget, layers_to_remove
from sned.runtime.journal import Journal
from sned.runtime.method import find_method

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sned.plans.plan import Plan

Rows = list[dict[str, Any]]
CALIBRATION = tokens(4, 16, seed=3)


@pytest.fixture
def heard() -> Messages:
    return Messages()


@pytest.fixture
def beside(tmp_path: Path, heard: Messages) -> Callable[..., tuple[Rows, Plan]]:
    """Plan with a method, and compare."""

    def run(name: str, method: str, budget: Budget, *baselines: str) -> tuple[Rows, Plan]:
        session, journal = Session(Recorder(heard)), Journal(tmp_path / "work")
        request = PruneRequest(LoadRequest(name), method, budget, tmp_path / "out", baselines=baselines)
        dense = Model(View(make_model(name)), name, tmp_path)
        view = dense.view.fork()
        plan = run_method(request, find_method(method), view, CALIBRATION, journal, session, source=name)
        return Comparisons(request, plan, dense, tokens(2, 16), journal, session).rows(CALIBRATION), plan

    return run


def removed(plan: Plan) -> float:
    return 1 - plan.pruned.params / plan.dense.params


def test_blocks_stand_beside_as_many_at_random(beside: Callable[..., tuple[Rows, Plan]]) -> None:
    (row,), plan = beside("llama", "blockpruner", Budget(blocks=3))
    assert row["method"] == TWIN
    assert row["removed"] == pytest.approx(removed(plan))
    assert row["perplexity"] > 1


def test_whole_layers_have_a_method_for_that(beside: Callable[..., tuple[Rows, Plan]]) -> None:
    rows, plan = beside("llama", "shortgpt", Budget(layers=2), "random")
    assert [row["method"] for row in rows] == ["random"]
    assert rows[0]["removed"] == pytest.approx(removed(plan))
    assert (rows[0]["note"], rows[0]["layers"] != "") == ("", True)


def test_another_kind_of_budget_is_met_at_the_same_size(beside: Callable[..., tuple[Rows, Plan]]) -> None:
    (layers, _), plan = beside("llama", "blockpruner", Budget(blocks=3), "shortgpt")
    assert layers["removed"] >= removed(plan)
    assert layers["note"] == f"asked to remove {removed(plan):.1%}"
    (blocks,), plan = beside("llama", "shortgpt", Budget(layers=1), "blockpruner")
    assert blocks["removed"] == pytest.approx(removed(plan), abs=0.11)
    assert blocks["removed"] >= removed(plan)


def test_a_share_that_is_a_number_of_layers_takes_no_layer_more(beside: Callable[..., tuple[Rows, Plan]]) -> None:
    (_, plan) = beside("llama", "shortgpt", Budget(layers=2))
    view = View(make_model("llama"))
    assert layers_to_remove(compare.same_size(plan), view.geometry, range(1, 4)) == 2


def test_rows_are_not_measured_twice(beside: Callable[..., tuple[Rows, Plan]], monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = beside("llama", "blockpruner", Budget(blocks=3), "shortgpt")
    monkeypatch.setattr(compare, "measure_quality", lambda *_, **__: pytest.fail("measured again"))
    again, _ = beside("llama", "blockpruner", Budget(blocks=3), "shortgpt")
    assert again == first


def test_what_cannot_be_compared_is_told_and_left_out(
    beside: Callable[..., tuple[Rows, Plan]], heard: Messages, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, _ = beside("llama", "blockpruner", Budget(blocks=8), "shortgpt")
    assert [row["method"] for row in rows] == [TWIN]
    assert "no comparison with shortgpt: --remove" in heard.warnings[-1]
    rows, _ = beside("qwen3_moe", "blockpruner", Budget(blocks=2))
    assert rows == []
    assert f"no comparison with {TWIN}: layers 1,3 differ in size" in heard.warnings[-1]

    def broken(*_: Any, **__: Any) -> None:
        raise NumericalError("layer 2 returns NaN")

    monkeypatch.setattr(compare, "measure_quality", broken)
    assert beside("llama", "blockpruner", Budget(blocks=4))[0] == []
    assert "layer 2 returns NaN" in heard.warnings[-1]
