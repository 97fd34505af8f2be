"""A cut whose trial breaks is set aside and recorded; where every trial breaks, planning stops."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from kit.tiny import make_model, tokens

from sned.errors import NumericalError
from sned.models.view import View
from sned.plans.budget import Budget
from sned.plans.store import load_plan, save_plan
from sned.runtime.context import Context
from sned.runtime.method import find_method
from sned.runtime.planner import make_plan


def plan_with_losses(monkeypatch: pytest.MonkeyPatch, *losses: float):
    monkeypatch.setattr(Context, "losses", lambda _ctx, candidates, **_: list(losses[: len(candidates)]))
    return make_plan(View(make_model("llama")), find_method("replaceme"), tokens(), Budget(layers=1))


def test_a_trial_that_is_not_finite_is_set_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_with_losses(monkeypatch, math.inf, 2.0, 3.0)
    save_plan(plan, tmp_path)
    scores = load_plan(tmp_path).stages[0].scores
    assert [row["nll"] for row in scores["probe"]] == [None, 2.0, 3.0]
    assert scores["cuts"][0]["start"] == scores["probe"][1]["start"]


def test_planning_stops_where_no_trial_is_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NumericalError, match="no cut that was tried"):
        plan_with_losses(monkeypatch, math.inf, math.inf, math.inf)
