"""Plain tables and bars for a terminal, drawn alike everywhere. Imports rich and the numbers of `report`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_EIGHTHS = " ▏▎▍▌▋▊▉█"
LOG_FROM = 10.0
"""Bars are logarithmic where the largest value is so many times the smallest."""


def table(
    headers: Sequence[str],
    rows: Iterable[Sequence[str | Text]],
    *,
    left: Sequence[int] = (0,),
    whole: Sequence[int] = (),
) -> Table:
    """Return a table; nothing in it is markup.

    Args:
        headers: One per column.
        rows: As many cells each.
        left: Columns aligned to the left; they give way when the terminal is narrow.
        whole: Those of them that do not.
    """
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 2, 0, 0))
    for number, header in enumerate(headers):
        text = number in left
        made.add_column(
            Text(header), justify="left" if text else "right", no_wrap=not text or number in whole, overflow="fold"
        )
    for row in rows:
        made.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in row))
    return made


def facts(rows: Iterable[tuple[str, str]]) -> Table:
    """Return names and values without a heading."""
    made = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    made.add_column(style="dim", no_wrap=True)
    made.add_column(overflow="fold")
    for name, value in rows:
        made.add_row(Text(name), Text(value))
    return made


def wants_log(values: Sequence[float | None]) -> bool:
    """Tell whether bars of these values should be logarithmic."""
    positive = _positive(values)
    return bool(positive) and max(positive) > LOG_FROM * min(positive)


def bars(values: Sequence[float | None], width: int, *, log: bool) -> list[str]:
    """Return a bar of at most `width` characters for each value; nothing for none, and for zero."""
    positive = _positive(values)
    low, high = min(positive, default=1.0), max(positive, default=1.0)
    floor = math.log(low) - 0.08 * math.log(high / low) - 0.01 if log else 0.0  # the smallest is still seen

    def share(value: float | None) -> float:
        if value is None or value <= 0:
            return 0.0
        return (math.log(value) - floor) / (math.log(high) - floor) if log else value / high

    return [_bar(share(value) * width) for value in values]


def _positive(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None and value > 0]


def _bar(length: float) -> str:
    whole, part = divmod(round(8 * length), 8)
    return "█" * whole + (_EIGHTHS[part] if part else "")
