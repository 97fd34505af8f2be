"""What a report says of learned chances: the losses of all steps, in data, page and picture."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from kit.planning import plan_on
from kit.reports import report
from kit.tiny import make_model
from pydantic import ValidationError

from sned.jobs.stage_blocks import of_stages
from sned.models.view import View
from sned.report import html, policy_picture
from sned.report.schema import Policy, Report

if TYPE_CHECKING:
    from collections.abc import Sequence


def policy(losses: Sequence[float], objective: str = "perplexity") -> dict[str, Any]:
    rows = [{"step": i, "loss": loss} for i, loss in enumerate(losses, 1)]
    return {"objective": objective, "parts": 720, "masks": 4, "steps": rows}


def test_every_step_of_a_plan_is_in_the_data() -> None:
    plan = plan_on(View(make_model("llama")), "policygrad", epochs=2)
    found = of_stages(plan)["policy"]
    assert [row["step"] for row in found["steps"]] == list(range(1, 13))
    assert [row["loss"] for row in found["steps"]] == [row["loss"] for row in plan.stages[0].scores["learning"]]
    assert found["parts"] == len(plan.stages[0].scores["chances"])
    made = report(policy=found)
    assert Report.model_validate_json(made.to_json()) == made


def test_a_report_without_is_read_and_shows_nothing() -> None:
    data = json.loads(report().to_json())
    assert data.pop("policy") is None
    assert "learned" not in html.render(Report.model_validate(data))


def test_the_page_says_what_was_tried() -> None:
    page = " ".join(html.render(report(policy=policy([4.0, 3.5, 3.6, 3.2]))).split())
    assert "In each of 4 steps, 4 random masks of 720 parts were tried" in page
    assert 'id="policy' in page or "Loss of random masks over 4 steps" in page


@pytest.mark.parametrize(
    "losses", [[3.0], [3.0, 3.0], [9.0, 3.0, 2.0] * 50, [3.0 - 0.001 * i for i in range(400)]], ids=len
)
@pytest.mark.parametrize("objective", ["perplexity", "kl"])
def test_any_curve_can_be_drawn(losses: list[float], objective: str) -> None:
    drawn = policy_picture.policy(Policy.model_validate(policy(losses, objective)))
    assert f"over {len(losses)} steps" in drawn
    title = "KL divergence from the base with random masks" if objective == "kl" else "Perplexity with random masks"
    assert title in drawn
    assert ("log scale" in drawn) == (objective == "perplexity" and max(losses) > 8)


def test_a_block_without_steps_is_refused() -> None:
    with pytest.raises(ValidationError):
        report(policy=policy([]))
