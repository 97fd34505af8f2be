"""What a report says of a repair and of an evolution: every refit and the chosen model, in data, page and picture."""

from __future__ import annotations

import json
from typing import Any

import pytest
from kit import reports
from pydantic import ValidationError

from sned.report import facts, html, repair_picture, search_picture
from sned.report.schema import Evolution, Repair, Report

REFITS = [
    {"layer": 1, "which": "attn", "ridge": 0.3, "left": 0.66},
    {"layer": 1, "which": "mlp", "ridge": None, "left": 1.0},
    {"layer": 3, "which": "mlp", "ridge": 0.0, "left": 0.412},
]
FRONT = [{"loss": 3.2, "params": 700}, {"loss": 2.5, "params": 800}, {"loss": 2.25, "params": 950}]
EVOLUTION = {"objective": "perplexity", "judged": 160, "chosen": FRONT[1], "front": FRONT}


def report(**blocks: Any) -> Report:
    """A model of four layers whose layer 2 went, with what is asked for beside it."""
    return reports.report(**{"method": "multipruner", "stack": reports.stack(4, 2)} | blocks)


def refits(*rows: dict[str, Any]) -> list[Repair]:
    return [Repair.model_validate(row) for row in rows]


def evolution(**changes: Any) -> Evolution:
    return Evolution.model_validate(EVOLUTION | changes)


def text_of(page: str) -> str:
    return " ".join(page.split())


# --- the data -----------------------------------------------------------------------------------------


def test_both_blocks_are_written_as_plans_hold_them_and_read_again() -> None:
    made = report(repair=REFITS, evolution=EVOLUTION)
    written = json.loads(made.to_json())
    assert written["repair"] == REFITS
    assert written["evolution"] == EVOLUTION
    assert Report.model_validate_json(made.to_json()) == made


def test_a_report_from_before_there_were_repairs_is_still_read() -> None:
    data = json.loads(report().to_json())
    assert data.pop("repair") is data.pop("evolution") is None
    assert Report.model_validate(data) == report()


@pytest.mark.parametrize(
    "blocks",
    [
        {"repair": [REFITS[0] | {"which": "norm"}]},
        {"repair": [REFITS[0] | {"left": -0.1}]},
        {"repair": [REFITS[0] | {"left": float("nan")}]},
        {"repair": [REFITS[0] | {"layer": 4}]},
        {"evolution": EVOLUTION | {"chosen": None}},
        {"evolution": EVOLUTION | {"front": [{"loss": float("inf"), "params": 1}]}},
    ],
)
def test_schema_refuses(blocks: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        report(**blocks)


# --- a repair -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (REFITS[:1], "1 of 1 output projection was refitted, which leaves 66.0% of the error there."),
        (REFITS[1:2], "No refit of the one output projection helped, so everything stayed as it was."),
        (REFITS[1:2] * 2, "No refit of any of the 2 output projections helped, so everything stayed as it was."),
        (
            REFITS,
            "2 of 3 output projections were refitted, which leaves 41.2% to 66.0% of the error there; "
            "1 stayed as it was, for no refit helped.",
        ),
    ],
    ids=["one", "none", "none of two", "some"],
)
def test_a_repair_in_plain_words(rows: list[dict[str, Any]], words: str) -> None:
    assert facts.repaired(refits(*rows)) == words


def test_page_shows_every_refit_and_what_stayed() -> None:
    page = text_of(html.render(report(repair=REFITS)))
    assert "<h2>What was repaired</h2>" in page
    for row in (
        '<th scope="row">attn 1</th><td>0.300</td><td>66.0%</td>',
        '<th scope="row">MLP 1</th><td>left as it was</td><td>100.0%</td>',
        '<th scope="row">MLP 3</th><td>0</td><td>41.2%</td>',
    ):
        assert row in page


@pytest.mark.parametrize("repair", [None, []])
def test_page_is_silent_where_nothing_was_to_be_repaired(repair: list[Any] | None) -> None:
    page = html.render(report(repair=repair))
    assert "What was repaired" not in page
    assert "How the search went" not in page


def test_picture_has_a_row_for_each_part_that_was_refitted() -> None:
    stack = report().stack
    both = repair_picture.repair(refits(*REFITS), stack)
    assert ">Attention<" in both
    assert ">MLP<" in both
    assert ">MLP<" not in repair_picture.repair(refits(REFITS[0]), stack)


def test_picture_says_what_its_marks_mean_only_where_they_occur() -> None:
    whole = report(stack=[{"layer": n, "state": "kept", "attention": "kept", "mlp": "kept"} for n in range(4)]).stack
    plain = repair_picture.repair(refits(REFITS[0]), whole)
    assert "dashed" not in plain
    assert "gone" not in plain
    assert "dashed: left as it was" in repair_picture.repair(refits(REFITS[1]), whole)
    assert "×: gone" in repair_picture.repair(refits(REFITS[0]), report().stack)


def test_picture_shows_how_much_is_left() -> None:
    little, much = (repair_picture.repair(refits(REFITS[0] | {"left": left}), report().stack) for left in (0.1, 0.9))
    assert little != much


@pytest.mark.parametrize("depth", [1, 12, 126])
def test_a_repair_of_any_depth_can_be_drawn_even_without_the_stack(depth: int) -> None:
    rows = [REFITS[0] | {"layer": n, "which": which} for n in range(depth) for which in ("attn", "mlp")]
    assert f"each of {2 * depth} refits" in repair_picture.repair(refits(*rows), [])


# --- an evolution -------------------------------------------------------------------------------------


def test_page_shows_the_front_and_names_the_chosen_model() -> None:
    page = text_of(html.render(report(evolution=EVOLUTION)))
    assert "<h2>How the search went</h2>" in page
    assert "NSGA-II judged 160 models" in page
    assert "perplexity 12.2 with 20.0% of the parameters removed" in page
    assert "best of 160 models" in page


def test_a_divergence_is_shown_as_it_is() -> None:
    found = EVOLUTION | {"objective": "kl"}
    assert "divergence 2.50 with 20.0%" in text_of(html.render(report(evolution=found)))
    assert "KL divergence from the base" in search_picture.front(evolution(objective="kl"), 1000)


def test_evolution_stands_below_the_steps_that_went_before_it() -> None:
    step = {"cut": "mlp.2", "loss": 2.1, "increase": 0.1, "tokens": 9, "measured": 4, "candidates": 8, "params": 900}
    search = {"objective": "perplexity", "mode": "exact", "steps": [step]}
    page = text_of(html.render(report(search=search, evolution=EVOLUTION)))
    assert page.count("<h2>How the search went</h2>") == 1
    assert page.index("1. MLP 2") < page.index("<h3>Widths, evolved all at once</h3>") < page.index("NSGA-II")


def test_picture_marks_another_model_when_another_is_chosen() -> None:
    drawn = [search_picture.front(evolution(chosen=model), 1000) for model in FRONT]
    assert len(set(drawn)) == len(FRONT)
    assert all(">chosen<" in picture for picture in drawn)


@pytest.mark.parametrize(
    "front",
    [FRONT[:1], [{"loss": 2.0, "params": 900}] * 2, [{"loss": 900.0, "params": 1}, {"loss": 0.0, "params": 1000}]],
    ids=["one", "equal", "extreme"],
)
@pytest.mark.parametrize("objective", ["perplexity", "kl"])
def test_any_front_can_be_drawn(front: list[dict[str, Any]], objective: str) -> None:
    assert ">chosen<" in search_picture.front(evolution(front=front, chosen=front[0], objective=objective), 1000)
