"""What units are worth, as a picture: a row of bars for each kind, with their errors. Imports svg."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from sned.report import svg
from sned.report.svg import LIGHT

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from sned.report.worth_blocks import Valued, Worth

_LEFT, _PITCH, _BARS = 52, 160, 104  # pixels: a margin, from one row of bars to the next, the height of one
_ROWS = (("layer", "Layer", "kept"), ("attn", "Attention", "kept"), ("mlp", "MLP", "mlp"))
_UNEVEN, _LINEAR = 12, 100
"""From values so many times the middle one on the axis bends; below the largest by so many it is even again."""


def worth(found: Worth, depth: int) -> str:
    """Draw the value of every unit over the layers of a model so deep; those that went have their own colour."""
    rows = [look for look in _ROWS if any(unit.kind == look[0] for unit in found.units)]
    sizes = sorted(abs(unit.value) for unit in found.units if unit.value is not None)
    bent = bool(sizes) and sizes[-1] > _UNEVEN * sizes[len(sizes) // 2]
    width = max(440, min(1010, _LEFT + 10 + 30 * depth))
    with svg.style("worth"):
        figure = svg.canvas(width, _PITCH * len(rows) - 4)
        for row, (kind, title, role) in enumerate(rows):
            axes = svg.panel(figure, _LEFT, row * _PITCH + 28, width - _LEFT - 4, _BARS)
            units = [unit for unit in found.units if unit.kind == kind]
            _bars(axes, units, role)
            _frame(axes, depth, sizes[-1] if bent else None)
            told = ["whiskers: one standard error"] if any(unit.error is not None for unit in units) else []
            told += ["×: nothing works without it"] if any(unit.value is None for unit in units) else []
            svg.caption(axes, title, "; ".join([*told, *["log scale away from 0"] * bent]), indent=-_LEFT)
        return svg.render(figure, "worth", f"What each of {len(found.units)} parts is worth")


def _bars(axes: Axes, units: list[Valued], role: str) -> None:
    known = [unit for unit in units if unit.value is not None]
    colours = [LIGHT["removed" if unit.removed else role] for unit in known]
    axes.bar([unit.layer for unit in known], [unit.value or 0.0 for unit in known], width=0.78, color=colours)
    whiskers = {"ecolor": LIGHT["ink"], "elinewidth": 1.1, "capsize": 2.5, "fmt": "none"}
    judged = [unit for unit in known if unit.error is not None]
    places, heights = [unit.layer for unit in judged], [unit.value or 0.0 for unit in judged]
    axes.errorbar(places, heights, [unit.error or 0.0 for unit in judged], **whiskers)
    for unit in units:
        if unit.value is None:
            svg.write(axes, "×", (unit.layer, 0), (0, 3), "data", ha="center", fontsize=14)


def _frame(axes: Axes, depth: int, largest: float | None) -> None:
    """Set up a row: the layers from left to right, and upwards an axis that is bent where values are very uneven."""
    from matplotlib.ticker import FuncFormatter, NullLocator

    if largest is None:
        axes.locator_params(axis="y", nbins=4)
    else:
        axes.set_yscale("symlog", linthresh=largest / _LINEAR, linscale=0.5)
        axes.set_yticks(_ticks(largest, *axes.get_ylim()))
        axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.grid(axis="y", linewidth=0.7)
    axes.spines["left"].set_visible(False)
    axes.tick_params(length=0, labelsize=9.5)
    axes.axhline(0, color=LIGHT["line"], linewidth=1)
    axes.set_xlim(-0.7, depth - 0.3)
    step = next((step for step in (1, 2, 5, 10, 20) if depth <= 34 * step), 50)
    axes.set_xticks(range(0, depth, step))


def _ticks(largest: float, low: float, high: float) -> list[float]:
    """Return 0 and the powers of ten on either side of it that a bent axis shows."""
    first, last = math.ceil(math.log10(largest / _LINEAR)), math.floor(math.log10(largest))
    powers = [10.0**power for power in range(first, last + 1)]
    return [tick for tick in (*(-power for power in powers), 0.0, *powers) if low <= tick <= high]
