"""The result as pictures: the stack, quality and speed beside the base. Imports facts, numbers, svg.

Every function takes data, never a file, and returns the same bytes for the same data. Axis titles stand above
the axes, read left to right. Colour never carries a meaning alone: removed parts are dashed or said in words.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from sned.report import numbers, svg
from sned.report.facts import gone, span
from sned.report.svg import LIGHT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from sned.report.schema import Baseline, Layer, Quality, Speed

WIDE, NARROW = 32, 12  # layers in one row of the stack, on a desk and on a telephone
# Pixels: the stack's left margin, a layer, half its height, a row; a chart, its labels, its values, a row.
_MARGIN, _CELL, _HALF, _STACK_ROW = 36, 30, 22, 82
_LETTER = 6.6  # pixels that a letter takes on average, generously
_CHART, _LABEL, _VALUE, _ROW = 460, 136, 180, 31


def stack(layers: list[Layer], per_row: int = WIDE) -> str:
    """Draw every layer of the base model as a cell, attention over MLP, with what became of it."""
    name = f"stack{per_row}"
    across = math.ceil(len(layers) / math.ceil(len(layers) / per_row))
    rows = [layers[first : first + across] for first in range(0, len(layers), across)]
    width, height, pitch = _MARGIN + across * _CELL + 6, len(rows) * _STACK_ROW - 12, _STACK_ROW
    with svg.style(name):
        figure = svg.canvas(width, height)
        axes = svg.panel(figure, 0, 0, width, height)
        axes.set(xlim=(0, width), ylim=(height, 0))
        axes.set_axis_off()
        for number, row in enumerate(rows):
            _stack_row(axes, row, number * pitch + 18)
        label = f"The {len(layers)} layers of the base model; gone: {span(gone(layers)) or 'none'}"
        return svg.render(figure, name, label)


def _stack_row(axes: Axes, row: list[Layer], top: float) -> None:
    """Draw the stream as a line, and the layers standing on it."""
    middle, end = top + _HALF, _MARGIN + len(row) * _CELL
    axes.plot([_MARGIN - 4, end + 4], [middle, middle], color=LIGHT["line"], linewidth=2.5, zorder=0)
    for text, place in (("attn", top + _HALF / 2), ("MLP", top + 1.5 * _HALF)):
        axes.text(_MARGIN - 7, place, text, ha="right", va="center", fontsize=9.5, color=LIGHT["muted"])
    for position, item in enumerate(row):
        left = _MARGIN + position * _CELL + 2
        colour = LIGHT["removed" if item.state in ("removed", "replaced") else "muted"]
        centre = left + _CELL / 2 - 2
        axes.text(centre, top - 8, str(item.layer), ha="center", va="center", fontsize=9.5, color=colour)
        if item.state == "replaced":
            _half(axes, left, top + _HALF / 2, "replaced", "kept")
            continue
        for part, y in (("attention", top), ("mlp", top + _HALF)):
            folded = item.state == "folded" and part == "mlp"
            role = "folded" if folded else "kept" if part == "attention" else "mlp"
            state = "removed" if item.state == "removed" else getattr(item, part)
            _half(axes, left, y, role, state, getattr(item, f"{part}_left"))


def _half(axes: Axes, left: float, top: float, role: str, state: str, share: float | None = None) -> None:
    """Draw half a layer: filled when kept, a dashed outline when removed; when trimmed filled up to what is left."""
    from matplotlib.patches import Rectangle

    width, height = _CELL - 4, _HALF - 2
    if state != "kept":
        look = {"linestyle": (0, (2.5, 2)), "linewidth": 1, "edgecolor": LIGHT["removed"]}
        axes.add_patch(Rectangle((left, top + 1), width, height, facecolor="none", **look))
    if state != "removed":
        filled = (0.5 if share is None else share) if state == "trimmed" else 1
        axes.add_patch(Rectangle((left, top + 1), filled * width, height, facecolor=LIGHT[role], edgecolor="none"))


def quality(result: Quality, method: str, baselines: list[Baseline]) -> str:
    """Draw the perplexity of the base, of this model, and of the simpler methods beside it."""
    rows = [("base", result.dense.perplexity, "", "muted")] if result.dense else []
    rows.append((method, result.pruned.perplexity, "this model", "kept"))
    for item in sorted(baselines, key=lambda item: item.perplexity):
        note = f"layers {item.layers}".replace("-", "–").replace(",", ", ") if item.layers else ""
        rows.append((item.method, item.perplexity, note, "mlp"))
    values = [value for _, value, _, _ in rows]
    log = min(values) >= 1 and max(values) > 10 * min(values)
    with svg.style("quality"):
        figure = svg.canvas(_CHART, 34 + _ROW * len(rows))
        axes = _rows(figure, 28, rows, log)
        svg.caption(axes, "Perplexity", "lower is better" + (", log scale" if log else ""), indent=-_LABEL)
        return svg.render(figure, "quality", "Perplexity of the base, this model and simpler methods")


def speed(result: Speed) -> str:
    """Draw the speed of both models, prefill and decode each on its own scale."""
    with svg.style("speed"):
        pitch = 42 + 2 * _ROW
        figure = svg.canvas(_CHART, 2 * pitch - 8)
        for index, (title, field) in enumerate((("Prefill", "prefill"), ("Decode", "decode"))):
            before = getattr(result.dense, f"{field}_tokens_per_s")
            after = getattr(result.pruned, f"{field}_tokens_per_s")
            ratio = numbers.times(getattr(result, f"{field}_ratio"))
            rows = [("base", before, "", "muted"), ("this model", after, ratio, "kept")]
            axes = _rows(figure, 28 + index * pitch, rows, log=False)
            svg.caption(axes, title, "tokens per second, higher is better", indent=-_LABEL)
        return svg.render(figure, "speed", "Speed of both models")


def _rows(figure: Figure, top: float, rows: list[tuple[str, float, str, str]], log: bool) -> Axes:
    """Draw labelled horizontal bars; on a logarithmic scale they begin at 1."""
    axes = svg.panel(figure, _LABEL, top, _CHART - _LABEL - _VALUE, _ROW * len(rows))
    if log:
        axes.set_xscale("log")
    values = [value for _, value, _, _ in rows]
    axes.set_xlim(1 if log else 0, (max(values) or 1) * (1.0001 if log else 1))
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_axis_off()
    axes.barh(range(len(rows)), values, height=0.62, color=[LIGHT[role] for _, _, _, role in rows])
    for row, (label, value, note, _) in enumerate(rows):
        edge, end = ("axes fraction", "data"), (value, row)
        svg.write(axes, _shorten(label, 19), (0, row), (-_LABEL, 0), edge, va="center", fontsize=12)
        figures = numbers.decimal(value)
        shown = svg.write(axes, figures, end, (6, 0), "data", va="center", fontsize=12, fontweight="bold")
        extent = shown.get_window_extent()
        room = int((_CHART - extent.x1 - 8) / _LETTER)
        shift = (extent.width + 14, 0)
        svg.write(axes, _shorten(note, room), end, shift, "data", va="center", color=LIGHT["muted"])
    return axes


def _shorten(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
