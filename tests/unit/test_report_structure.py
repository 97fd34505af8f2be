"""What a report says of a learned structure: what was kept where, and how the gates were learned."""

from __future__ import annotations

import pytest
from kit.planning import plan_on
from kit.reports import report
from kit.tiny import LAYERS, make_model
from pydantic import ValidationError

from sned.jobs.stage_blocks import of_stages
from sned.models.count import count
from sned.models.view import View
from sned.plans.ops import Keep
from sned.report import html, structure_picture
from sned.report.schema import Report, Structure

KINDS = {"attn.read", "attn.write", "mlp.read", "mlp.hidden", "mlp.write"}


@pytest.fixture(scope="module")
def found() -> dict[str, object]:
    return of_stages(plan_on(View(make_model("llama")), "displlm"))["structure"]


def test_what_is_kept_is_what_the_plan_keeps() -> None:
    view = View(make_model("llama"))
    body = count(view).body_params
    plan = plan_on(view, "displlm", remove=0.3, remove_of="body")
    block = Structure.model_validate(of_stages(plan)["structure"])
    left = {op.axis: len(op.units) / view.axis(op.axis).size for op in plan.ops if isinstance(op, Keep)}
    assert left
    assert len(block.kept) == LAYERS
    for item in block.kept:
        assert item.shares == {kind: left.get(f"layers.{item.layer}.{kind}", 1.0) for kind in KINDS}
    assert block.aimed == pytest.approx(0.7 * body, abs=1)
    assert len(block.curve) > 2


def test_the_page_shows_both_pictures_and_says_what_does_not_shrink(found: dict[str, object]) -> None:
    page = " ".join(html.render(report(structure=found)).split())
    assert "How the structure was learned" in page
    assert "the cache is as large as before" in page
    assert "What the layers keep of 5 kinds of units" in page
    assert "The loss while gates were learned" in page
    assert "How the structure was learned" not in html.render(report())


def test_only_what_was_gated_is_drawn(found: dict[str, object]) -> None:
    block = Structure.model_validate(found)
    for item in block.kept:
        item.shares.pop("attn.read")
    drawn = structure_picture.structure(block, LAYERS)
    assert "Features that attention writes" in drawn
    assert "Features that attention reads" not in drawn


def test_features_are_spoken_of_where_they_had_gates(found: dict[str, object]) -> None:
    narrow = Structure.model_validate(found)
    for item in narrow.kept:
        item.shares.clear()
        item.shares["mlp.hidden"] = 0.5
    said = "picks its features out of it"
    assert said in html.render(report(structure=found))
    assert said not in html.render(report(structure=narrow.model_dump()))


def test_the_data_are_checked(found: dict[str, object]) -> None:
    made = report(structure=found)
    assert Report.model_validate_json(made.to_json()) == made
    with pytest.raises(ValidationError, match="best_step"):
        Structure.model_validate(found | {"best_step": 12345})
