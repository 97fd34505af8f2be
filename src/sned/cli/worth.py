"""Why units went and what stands in their place, from the scores of a stage. Imports rich; its neighbours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sned.canon import format_span
from sned.cli.tables import table
from sned.report import numbers
from sned.report.facts import spell_cut
from sned.report.worth import COLUMN, STANDS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import RenderableType


def tables(scores: Mapping[str, Any]) -> list[RenderableType]:
    """Return what every unit was worth, lowest first, and how well each map does what the layers did."""
    shown: list[RenderableType] = []
    if values := scores.get("values"):
        facts = scores["valuation"]
        judged = any(row["error"] is not None for row in values)
        headers = ("unit, lowest first", COLUMN[facts["metric"]], *["standard error"] * judged, "")
        rows = [_row(row, judged) for row in values]
        shown += ["", table(headers, rows, left=(0, len(headers) - 1))]
        if facts.get("agreement") is not None:
            tau = numbers.decimal(facts["agreement"], 2)
            shown += [f"{facts['orders']} orders; their halves agree to {tau} (Kendall's tau)"]
    if maps := scores.get("stand_ins"):
        rows = [
            (_layers(row), STANDS[row["kind"]], numbers.grouped(row["tokens"]), numbers.percent(row["left"]))
            for row in maps
        ]
        shown += ["", table(("removed", "in its place", "tokens", "error left"), rows, left=(0, 1))]
    return shown


def _row(row: Mapping[str, Any], judged: bool) -> tuple[str, ...]:
    value = "not finite" if row["value"] is None else numbers.decimal(row["value"])
    error = "" if row["error"] is None else f"± {numbers.decimal(row['error'], 2)}"
    return (spell_cut(row["unit"]), value, *[error] * judged, "removed" if row["removed"] else "")


def _layers(row: Mapping[str, Any]) -> str:
    if row.get("which"):
        return spell_cut(f"{row['which']}.{row['start']}")
    return format_span(range(row["start"], row["end"])).replace("-", "–")
