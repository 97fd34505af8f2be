"""Where the zeros are, as a heat map: layers by roles of matrices. Imports svg, zeros.

Drawn twice, for a desk with the layers from left to right, and upright for a telephone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sned.report import svg, zeros
from sned.report.svg import LIGHT

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

    from sned.report.schema import Sparsity

ROLES = ("q", "k", "v", "o", "gate", "up", "down")
LEFT, RIGHT = 46, 8  # pixels beside the cells, also of what is drawn below them
_WIDEST, _ROOM = 60, 956  # pixels: of a cell at most, of all together
_TOP, _ROW, _NARROW, _LEAST = 44, 25, 344, 340
_BAR = 150  # pixels: the length of the scale
_WORDY = (38, 15)  # pixels: a cell that has room for its figure
_WHITE, _BLACK = "#ffffff", "#101010"  # on the heat map, the same in every theme


def span_of(depth: int) -> float:
    """Return how many pixels so many layers take from left to right."""
    return depth * min(_WIDEST, _ROOM / depth)


def ticks_of(depth: int, pixels: float) -> range:
    """Return the layers that are named along an axis of so many pixels, so that their numbers keep apart."""
    return range(0, depth, next((step for step in (1, 2, 5, 10, 20) if depth * 24 <= step * pixels), 50))


def heat(found: Sparsity, depth: int, *, upright: bool = False) -> str:
    """Draw the share of zeros of every matrix as a cell, with its scale; a matrix that is gone is crossed.

    Args:
        found: What is zero.
        depth: Layers of the base model.
        upright: Layers from top to bottom instead of left to right.
    """
    import numpy as np

    values = zeros.shares(found)
    roles = [role for role in ROLES if any(known == role for _, known in values)]
    grid = np.full((len(roles), depth), np.nan)
    for (layer, role), share in values.items():
        grid[roles.index(role), layer] = 100 * share
    name = "zeros_narrow" if upright else "zeros"
    with svg.style(name):
        if upright:
            tall = depth * max(9.0, min(21.0, 700 / depth))
            figure = svg.canvas(_NARROW, _TOP + 18 + tall + 4)
            axes = svg.panel(figure, 30, _TOP + 18, _NARROW - 34, tall)
            cell = ((_NARROW - 34) / len(roles), tall / depth)
        else:
            inner, tall = span_of(depth), len(roles) * _ROW
            figure = svg.canvas(max(_LEAST, LEFT + inner + RIGHT), _TOP + tall + 40)
            axes = svg.panel(figure, LEFT, _TOP, inner, tall)
            cell = (inner / depth, _ROW)
        image = _cells(axes, grid.T if upright else grid, cell)
        _name(axes, roles, depth, tall if upright else span_of(depth), upright=upright)
        _head(figure, image, gone=bool(np.isnan(grid).any()))
        return svg.render(figure, name, f"Share of zeros in the matrices of {depth} layers")


def _cells(axes: Axes, grid: np.ndarray, cell: tuple[float, float]) -> AxesImage:
    """Draw the cells apart from each other, in per cent; with their figures where there is room."""
    import numpy as np

    height, width = grid.shape
    image = axes.imshow(np.ma.masked_invalid(grid), cmap="viridis_r", aspect="auto", interpolation="none")
    look = {"color": LIGHT["card"], "linewidth": 1.5 if min(cell) > 12 else 0.8}
    axes.hlines(np.arange(1, height) - 0.5, -0.5, width - 0.5, **look)
    axes.vlines(np.arange(1, width) - 0.5, -0.5, height - 0.5, **look)
    gone = np.argwhere(np.isnan(grid))
    axes.plot(gone[:, 1], gone[:, 0], "x", color=LIGHT["removed"], markersize=5, markeredgewidth=1.3)
    if cell[0] >= _WORDY[0] and cell[1] >= _WORDY[1]:
        colours = np.asarray(image.cmap(image.norm(np.ma.masked_invalid(grid))))
        for row, column in np.argwhere(np.isfinite(grid)):
            red, green, blue, _ = colours[row, column]
            dark = 0.3 * red + 0.59 * green + 0.11 * blue < 0.5
            look = {"ha": "center", "va": "center_baseline", "fontsize": 10, "color": _WHITE if dark else _BLACK}
            axes.text(column, row, f"{grid[row, column]:.1f}", **look)
    return image


def _name(axes: Axes, roles: Sequence[str], depth: int, pixels: float, *, upright: bool) -> None:
    """Name rows and columns: roles in full, layers as far as there is room."""
    along, across = (axes.yaxis, axes.xaxis) if upright else (axes.xaxis, axes.yaxis)
    along.set_ticks(list(ticks_of(depth, 1.7 * pixels if upright else pixels)))
    across.set_ticks(range(len(roles)), roles)
    across.set_tick_params(labelcolor=LIGHT["ink"])
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.tick_params(length=0, labelsize=10.5)
    if upright:
        axes.xaxis.tick_top()
    else:
        svg.write(axes, "layer", (1, 0), (0, -32), "axes fraction", ha="right", color=LIGHT["muted"])


def _head(figure: Figure, image: AxesImage, *, gone: bool) -> None:
    """Write the title at the left, and draw the scale at the right."""
    width, height = figure.get_size_inches() * figure.dpi
    title = svg.panel(figure, 0, _TOP - 2, width, height - _TOP)
    title.set_axis_off()
    svg.caption(title, "Share of zeros, %", "×: gone" if gone else "")
    low, high = image.norm.vmin or 0.0, image.norm.vmax or 0.0
    bar = figure.colorbar(
        image, cax=svg.panel(figure, width - _BAR - RIGHT, 4, _BAR, 10), orientation="horizontal", ticks=[low, high]
    )
    bar.ax.set_xticklabels([f"{value:.1f}%" for value in (low, high)])
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, labelsize=10)
    for label, side in zip(bar.ax.get_xticklabels(), ("left", "right"), strict=True):
        label.set_horizontalalignment(side)
