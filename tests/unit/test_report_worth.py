"""What a report and `sned show` say of the worth of layers and their parts, and of what stands in their place."""

from __future__ import annotations

import json
from typing import Any, get_args

import pytest
from kit import reports
from kit.planning import plan_on
from kit.searching import fresh
from kit.tiny import LAYERS
from pydantic import ValidationError
from rich.console import Console

from sned.canon import parse_span
from sned.cli import worth as shown
from sned.jobs import compose
from sned.report import html, numbers, worth, worth_picture
from sned.report.schema import Report, StandIn, Valued, Worth
from sned.report.worth import COLUMN, STANDS
from sned.runtime.valuation import Worth as Worths
from sned.score.updates import Kind

UNITS = [
    {"unit": "layer.2", "value": -0.01, "error": 0.02, "removed": True},
    {"unit": "layer.1", "value": 0.3, "error": 0.05, "removed": False},
    {"unit": "layer.3", "value": 4.0, "error": 0.1, "removed": False},
]
FACTS = {"base": 2.0, "all_gone": 6.29, "orders": 16, "tried": 24, "agreement": 0.8125, "gap": 1e-16, "ceiling": 10.8}
SHAPLEY = {"metric": "shapley", "objective": "perplexity", "units": UNITS, **FACTS}
MAPS = [{"start": 2, "end": 3, "which": None, "kind": "shift", "tokens": 900, "left": 0.75}]


def report(**blocks: Any) -> Report:
    """A model of five layers whose layer 2 went, with what is asked for beside it."""
    return reports.report(**{"method": "influence", "stack": reports.stack(5, 2)} | blocks)


def static(**changes: Any) -> Worth:
    units = [unit | {"error": None} for unit in UNITS]
    return Worth.model_validate({"metric": "cosine", "objective": "perplexity", "units": units} | changes)


def printed(scores: dict[str, Any]) -> str:
    console = Console(width=100, color_system=None)
    with console.capture() as capture:
        for part in shown.tables(scores):
            console.print(part)
    return " ".join(capture.get().split())


def text_of(page: str) -> str:
    return " ".join(page.split())


# --- the data -----------------------------------------------------------------------------------------


def test_both_blocks_are_written_and_read_again() -> None:
    made = report(worth=SHAPLEY, stand_ins=MAPS)
    written = json.loads(made.to_json())
    assert written["worth"] == SHAPLEY
    assert written["stand_ins"] == MAPS
    assert Report.model_validate_json(made.to_json()) == made


def test_a_report_from_before_there_were_values_is_still_read() -> None:
    data = json.loads(report().to_json())
    assert data.pop("worth") is data.pop("stand_ins") is None
    assert Report.model_validate(data) == report()


@pytest.mark.parametrize(
    "blocks",
    [
        {"worth": SHAPLEY | {"units": []}},
        {"worth": SHAPLEY | {"metric": "luck"}},
        {"worth": SHAPLEY | {"units": [UNITS[0] | {"unit": "head.3"}]}},
        {"worth": SHAPLEY | {"units": [UNITS[0] | {"unit": "mlp.5"}]}},
        {"worth": SHAPLEY | {"units": [UNITS[0] | {"error": -0.1}]}},
        {"worth": SHAPLEY | {"units": [UNITS[0] | {"value": float("inf")}]}},
        {"stand_ins": [MAPS[0] | {"end": 2}]},
        {"stand_ins": [MAPS[0] | {"end": 6}]},
        {"stand_ins": [MAPS[0] | {"kind": "magic"}]},
    ],
)
def test_schema_refuses(blocks: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        report(**blocks)


@pytest.mark.parametrize(
    ("given", "metric", "kinds"),
    [
        ({"layers": 2, "metric": "shapley", "bounded": False}, "shapley", {"layer"}),
        ({"layers": 2, "metric": "l2", "repair": "lowrank", "rank": 2}, "l2", {"layer"}),
        ({"blocks": 3, "units": "both", "metric": "loo"}, "loo", {"attn", "mlp"}),
    ],
)
def test_a_plan_fills_them(given: dict[str, Any], metric: str, kinds: set[str]) -> None:
    view = fresh("llama")
    plan = plan_on(view, "influence", **given)
    made = report(**{k: v for k, v in compose.of_plan(plan, view.geometry).items() if k in ("worth", "stand_ins")})
    assert made.worth is not None
    assert made.worth.metric == metric
    assert {unit.kind for unit in made.worth.units} == kinds
    gone = [unit for unit in made.worth.units if unit.removed]
    assert gone == made.worth.units[: len(gone)]
    assert len(gone) == given.get("layers", given.get("blocks"))
    assert (made.stand_ins is not None) == ("repair" in given)
    page = html.render(made)
    assert all(f". {word} " in text_of(page).replace("</th>", " ") for word in ("attn 1", "MLP 1") if "attn" in kinds)
    assert printed(plan.stages[0].scores)


# --- words and pictures -------------------------------------------------------------------------------


def test_the_page_explains_values_and_their_errors() -> None:
    page = text_of(html.render(report(worth=SHAPLEY, stand_ins=MAPS)))
    for words in (
        "What each part is worth",
        "How much the loss rises when a part goes, on average over 16 orders",
        "no worse than a uniform guess, 10.8 nats",
        "worth +4.29 nats per token: what the model loses without any of these parts",
        "agree to 0.81 (Kendall&#39;s tau",
        "Orange parts are gone.",
        "1. layer 2</th><td>−0.0100</td><td>0.020</td><td>gone</td>",
        "In the place of the layers that went stands a constant, what the layers added on average",
        "leaves 75.0% of the error",
    ):
        assert words in page, words
    assert 'aria-label="What each of 3 parts is worth"' in page


def test_other_metrics_are_named_and_nothing_is_said_that_was_not_measured() -> None:
    for metric in COLUMN:
        said = worth.meaning(static(metric=metric, orders=2))
        assert said.endswith("what is worth least went.")
    assert "divergence from the base" in worth.meaning(static(metric="loo", objective="kl"))
    assert set(STANDS) == set(get_args(Kind))
    assert set(COLUMN) == set(get_args(Worths))
    several = [StandIn.model_validate(MAPS[0] | {"left": left, "kind": "scale"}) for left in (0.5, 0.9)]
    assert "each run of layers that went stands a factor for each channel" in worth.placed(several)
    assert "leaves 50.0% to 90.0% of the error" in worth.placed(several)
    branch = StandIn.model_validate(MAPS[0] | {"which": "mlp"})
    assert "what went stands a constant, what it added on average, as a bias" in worth.placed([branch])
    assert "MLP 2" in text_of(html.render(report(worth=SHAPLEY, stand_ins=[branch])))
    assert "MLP 2" in printed({"stand_ins": [branch.model_dump()]})


@pytest.mark.parametrize("depth", [LAYERS, 30, 126])
@pytest.mark.parametrize("largest", [0.2, 40.0, 4e4])
@pytest.mark.parametrize("kind", ["layer", "attn", "mlp"])
def test_the_picture_bears_any_depth_and_any_spread(depth: int, largest: float, kind: str) -> None:
    sizes = [0.1 - 0.02 * i for i in range(depth - 1)] + [largest]
    units = [{"unit": f"{kind}.{i}", "value": v, "error": 0.01, "removed": i == 2} for i, v in enumerate(sizes)]
    drawn = worth_picture.worth(Worth.model_validate(SHAPLEY | {"units": units}), depth)
    assert drawn.startswith("<svg")
    assert ("log scale away from 0" in drawn) == (largest > 12 * sorted(map(abs, sizes))[depth // 2])
    assert "nan" not in drawn


@pytest.mark.parametrize(
    "units",
    [
        [Valued(unit="mlp.0", value=None, removed=False)],
        [Valued(unit="mlp.0", value=0.0, error=0.0, removed=True), Valued(unit="attn.0", value=0.0, removed=True)],
    ],
)
def test_the_picture_bears_what_is_not_finite_and_what_is_nothing(units: list[Valued]) -> None:
    drawn = worth_picture.worth(static(units=[unit.model_dump() for unit in units]), 1)
    assert drawn.startswith("<svg")
    assert ("×: nothing works without it" in drawn) == (units[0].value is None)


# --- the terminal -------------------------------------------------------------------------------------


def test_the_terminal_shows_values_lowest_first() -> None:
    text = printed({"values": UNITS, "valuation": {"metric": "shapley", **FACTS}, "stand_ins": MAPS})
    for words in (
        "unit, lowest first",
        "Shapley value, nats per token",
        "layer 2 −0.0100 ± 0.020 removed",
        "layer 3 4.00 ± 0.10",
        "16 orders; their halves agree to 0.81 (Kendall's tau)",
        "2 a constant, what the layers added on average 900 75.0%",
    ):
        assert words in text, words


def test_errors_have_a_column_only_where_there_are_any() -> None:
    values = [unit | {"error": None} for unit in UNITS] + [UNITS[2] | {"value": None, "error": None}]
    text = printed({"values": values, "valuation": {"metric": "loo", "base": 2.0, "tried": 3}})
    assert "standard error" not in text
    assert "layer 3 not finite" in text
    assert printed({}) == ""


def test_merges_stand_in_the_report_in_their_order() -> None:
    view = fresh("llama")
    plan = plan_on(view, "laco", layers=2)
    blocks = compose.of_plan(plan, view.geometry)
    assert sum(len(parse_span(row["layers"])) for row in blocks["merges"]) == 2
    made = report(merges=blocks["merges"])
    page = text_of(html.render(made))
    assert "Merges" in page
    for row in blocks["merges"]:
        assert f"<td>{row['layers']}</td><td>{numbers.decimal(row['similarity'], 4)}</td>" in page
    assert "Merges" not in text_of(html.render(report()))
