"""What a repair brought back, as a picture: the error left after each refit, where it stands. Imports svg."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sned.report import svg
from sned.report.svg import LIGHT

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from sned.report.schema import Layer, Repair

_LEFT, _PITCH, _BARS = 46, 142, 92  # pixels: a margin, from one row of bars to the next, the height of one
_PARTS = (("attn", "attention", "Attention", "kept"), ("mlp", "mlp", "MLP", "mlp"))


def repair(refits: list[Repair], layers: list[Layer]) -> str:
    """Draw the share of the error left after each refit over the layers, attentions above MLPs; gone parts are crossed.

    Args:
        refits: One for each output projection that was to be refitted; of several for the same, the last is drawn.
        layers: What became of every layer of the base model; may be empty.
    """
    depth = len(layers) or 1 + max(item.layer for item in refits)
    rows = [look for look in _PARTS if any(item.which == look[0] for item in refits)]
    width = max(440, min(1010, _LEFT + 10 + 30 * depth))
    with svg.style("repair"):
        figure = svg.canvas(width, _PITCH * len(rows) - 8)
        for row, (which, part, title, role) in enumerate(rows):
            axes = svg.panel(figure, _LEFT, row * _PITCH + 28, width - _LEFT - 4, _BARS)
            _frame(axes, depth)
            shown = {item.layer: item for item in refits if item.which == which}.values()
            for item in shown:
                _bar(axes, item, role)
            out = [x.layer for x in layers if x.state in ("removed", "replaced") or getattr(x, part) == "removed"]
            axes.plot(out, [7] * len(out), "x", color=LIGHT["removed"], markersize=6, markeredgewidth=1.6)
            dashed = ", dashed: left as it was" if any(item.ridge is None for item in shown) else ""
            svg.caption(axes, title, f"share of the error left{dashed}{', ×: gone' if out else ''}", indent=-_LEFT)
        return svg.render(figure, "repair", f"Error left after each of {len(refits)} refits")


def _bar(axes: Axes, item: Repair, role: str) -> None:
    """Draw what is left of the error, filled, within all of it; only a dashed outline where nothing was changed."""
    dashed = {"linestyle": (0, (2.5, 2)), "linewidth": 1, "edgecolor": LIGHT["muted"]}
    if item.ridge is None:
        axes.bar([item.layer], [100], width=0.78, facecolor="none", **dashed)
    else:
        axes.bar([item.layer], [100], width=0.78, color=LIGHT["line"])
        axes.bar([item.layer], [100 * item.left], width=0.78, color=LIGHT[role])


def _frame(axes: Axes, depth: int) -> None:
    """Set up a row: per cent upwards, the layers from left to right."""
    from matplotlib.ticker import FuncFormatter

    axes.set_xlim(-0.7, depth - 0.3)
    axes.set_ylim(0, 104)
    axes.set_yticks([0, 50, 100])
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}%"))
    step = next((step for step in (1, 2, 5, 10, 20) if depth <= 34 * step), 50)
    axes.set_xticks(range(0, depth, step))
    axes.grid(axis="y", linewidth=0.7)
    axes.spines["left"].set_visible(False)
    axes.tick_params(length=0, labelsize=9.5)
