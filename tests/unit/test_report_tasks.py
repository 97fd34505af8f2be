"""What a report shows of tasks: figures with their errors, changes in points, and how many verdicts stayed."""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import ValidationError

from sned.report import card, facts, html, schema, text
from sned.report.schema import Report

if TYPE_CHECKING:
    from pathlib import Path

HEAD = {"schema": 1, "sned": "0.1.0", "command": "sned eval", "method": "eval", "options": {}, "seed": 0}
PAIR = {"dense": 100, "pruned": 75}
PARAMS = {"dense": 4000, "pruned": 3000, "removed": 0.25, "body_removed": 0.3}
MODEL = {"source": "someone/tiny", "family": "llama", "fingerprint": "f", "params": PARAMS}
STABLE = {
    "stability": 0.8125,
    "agreement": 0.75,
    "legacy": 0.74,
    "flips": {"tp": 110, "fn": 40, "fp": 10, "tn": 40},
    "ddof": 1,
    "score": "nll",
    "agree": "correctness",
}


def tasks() -> dict[str, Any]:
    up, down = {"acc": True}, {"perplexity": False, "acc": True}
    return {
        "protocol": {
            "choices": {"items": 200, "words": "which <of> 4 continuations follows", "higher_is_better": up},
            "lambada": {"items": 5153, "words": "lm-eval 0.4.13, 0-shot", "higher_is_better": down},
        },
        "dense": {
            "results": {
                "choices": {"acc,none": 0.75, "acc_stderr,none": 0.031},
                "lambada": {"perplexity,none": 20.0, "perplexity_stderr,none": 0.5, "acc,none": 0.3},
            }
        },
        "pruned": {
            "results": {
                "choices": {"acc,none": 0.6, "acc_stderr,none": 0.035},
                "lambada": {"perplexity,none": 50.0, "perplexity_stderr,none": None, "acc,none": 0.3},
            }
        },
        "stability": {"choices": STABLE},
    }


def report(block: dict[str, Any] | None) -> Report:
    sizes = {"flops_per_token": PAIR, "kv_bytes_per_token": PAIR}
    return Report.model_validate({**HEAD, "model": {**MODEL, **sizes}, "tasks": block})


def alone() -> dict[str, Any]:
    return tasks() | {"dense": None, "stability": {}}


@pytest.mark.parametrize("block", [tasks(), alone(), None], ids=["both", "alone", "none"])
def test_round_trip(tmp_path: Path, block: dict[str, Any] | None) -> None:
    schema.dump(report(block), tmp_path / "report.json")
    assert schema.load(tmp_path / "report.json") == report(block)
    assert json.loads((tmp_path / "report.json").read_text())["tasks"] == block


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("pruned.results.choices.acc,none", float("nan")),
        ("pruned.results.choices.acc,none", "0.5"),
        ("stability.choices.flips.tp", -1),
        ("stability.choices.ddof", 2),
        ("stability.choices.surprise", 1),
    ],
)
def test_schema_refuses(path: str, value: Any) -> None:
    data = copy.deepcopy(tasks())
    *parents, last = path.split(".")
    target = data
    for name in parents:
        target = target[name]
    target[last] = value
    with pytest.raises(ValidationError):
        report(data)


def test_rows_of_two_models() -> None:
    rows = {row.label: row for row in facts.rows(report(tasks())) if row.section == "Tasks"}
    assert list(rows) == [
        "choices, accuracy",
        "choices, stability",
        "lambada, perplexity",
        "lambada, accuracy",
    ]
    row = rows["choices, accuracy"]
    assert (row.dense, row.pruned, row.change, row.side) == ("75.0% ± 3.1", "60.0% ± 3.5", "−15.0 points", "worse")
    row = rows["lambada, perplexity"]
    assert (row.dense, row.pruned, row.change, row.side) == ("20.0 ± 0.500", "50.0", "+150.0%", "worse")
    row = rows["lambada, accuracy"]
    assert (row.dense, row.pruned, row.change, row.side) == ("30.0%", "30.0%", "same", "")
    row = rows["choices, stability"]
    assert (row.dense, row.pruned, row.change) == ("", "0.812", "75.0% agree")
    assert row.exact == "110 right in both, 40 lost, 10 won, 40 wrong in both"


def test_rows_of_one_model() -> None:
    rows = [row for row in facts.rows(report(alone())) if row.section == "Tasks"]
    assert [(row.label, row.dense, row.pruned, row.change) for row in rows] == [
        ("choices, accuracy", "", "60.0% ± 3.5", ""),
        ("lambada, perplexity", "", "50.0", ""),
        ("lambada, accuracy", "", "30.0%", ""),
    ]


def test_other_metrics_keep_their_names() -> None:
    block = alone()
    block["pruned"]["results"]["choices"] = {
        "acc_norm,none": 0.5,
        "exact_match,strict-match": None,
        "brier_score,none": 0.2,
    }
    labels = [(row.label, row.pruned) for row in facts.rows(report(block)) if row.label.startswith("choices")]
    assert labels == [
        ("choices, accuracy by length", "50.0%"),
        ("choices, exact match (strict-match)", "not finite"),
        ("choices, brier score", "0.200"),
    ]


def test_page_terminal_and_card_show_them() -> None:
    page, shown, written = (
        html.render(report(tasks())),
        text.plain(report(tasks())),
        card.render_card(report(tasks()), {}, name="x"),
    )
    for place in (page, shown, written):
        for words in ("choices, accuracy", "60.0% ± 3.5", "−15.0 points", "0.812"):
            assert words in place
    assert "which &lt;of&gt; 4 continuations follows, 200 items" in page
    assert "which <of> 4 continuations follows, 200 items" in shown.replace("\n", " ")
    assert "Task" not in html.render(report(None))
