"""Why these layers, as pictures: importance, and distance across cuts. Imports facts, numbers, svg."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from sned.report import numbers, svg
from sned.report.facts import gone, span
from sned.report.svg import LIGHT

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

    from sned.report.schema import Cut, Importance, Layer

_BARS_PITCH, _TRIANGLE = 150, 410  # pixels: a row of bars, a side of the triangle
_CORNER = "axes fraction"
_WHITE, _BLACK = "#ffffff", "#101010"  # on the heat map, the same in every theme


def importance(scores: Importance, layers: list[Layer]) -> str:
    """Draw how much every layer, attention and MLP changes the stream, one row of bars each."""
    named = [
        ("Layer", scores.layers, ""),
        ("Attention", scores.attention, "attention"),
        ("MLP", scores.mlp, "mlp"),
    ]
    series = [(title, values, part) for title, values, part in named if values]
    lost = set(gone(layers))
    depth = max(len(values) for _, values, _ in series)
    log = any(max(values) > 10 * min(values) for _, values, _ in series)
    width = max(440, min(1010, 56 + 30 * depth))
    with svg.style("importance"):
        figure = svg.canvas(width, _BARS_PITCH * len(series) + 6)
        for row, (title, values, part) in enumerate(series):
            axes = svg.panel(figure, 46, row * _BARS_PITCH + 30, width - 50, _BARS_PITCH - 56)
            out = lost | {item.layer for item in layers if part and getattr(item, part) == "removed"}
            _bars(axes, values, out, log)
            svg.caption(axes, title, "1 − cos(in, out)" + (", log scale" if log else ""), indent=-46)
        return svg.render(figure, "importance", "Importance of every layer")


def _bars(axes: Axes, values: list[float], out: set[int], log: bool) -> None:
    """Draw one row of bars, removed parts in their own colour."""
    from matplotlib.ticker import FuncFormatter, NullLocator

    colours = [LIGHT["removed" if index in out else "kept"] for index in range(len(values))]
    axes.bar(range(len(values)), values, width=0.78, color=colours)
    high = max(values)
    if log and high > 0:
        # A layer that does nothing at all must not flatten the others: four decades are shown.
        low = max(min(value for value in values if value > 0), high / 1e4)
        axes.set_yscale("log")
        axes.set_ylim(low / 1.8, high * 1.25)
        axes.set_yticks(_decades(low / 1.8, high * 1.25))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.locator_params(axis="y", nbins=4)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.grid(axis="y", linewidth=0.7)
    axes.spines["left"].set_visible(False)
    axes.tick_params(length=0, labelsize=9.5)
    axes.set_xlim(-0.7, len(values) - 0.3)
    step = next((step for step in (1, 2, 5, 10, 20) if len(values) <= 34 * step), 50)
    axes.set_xticks(range(0, len(values), step))


def _decades(low: float, high: float) -> list[float]:
    """Return round values between two bounds, few enough to be read: 1s and 3s, or 1s alone."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    fine = [lead * 10.0**power for power in powers for lead in (1, 3)]
    shown = [tick for tick in fine if low <= tick <= high]
    return shown if len(shown) <= 4 else shown[::2] if shown[0] in fine[::2] else shown[1::2]


def triangle(distance: list[list[float | None]], cuts: list[Cut]) -> str:
    """Draw the angular distance across every cut: its first layer to the right, its length upwards."""
    import numpy as np
    from matplotlib.colors import LogNorm, Normalize

    cells = [
        (start, length, value)
        for start, row in enumerate(distance)
        for length, value in enumerate(row)
        if length and value is not None
    ]
    depth = max((start + length for start, length, _ in cells), default=1)
    grid = np.full((depth, depth), np.nan)  # [length - 1, first layer]
    for start, length, value in cells:
        grid[length - 1, start] = value
    known = grid[np.isfinite(grid)]
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
    log = low > 0 and high > 6 * low
    norm = LogNorm(low, high) if log else Normalize(low, high if high > low else low + 1)
    with svg.style("triangle"):
        figure = svg.canvas(_TRIANGLE + 52, _TRIANGLE + 62)
        axes = svg.panel(figure, 42, 26, _TRIANGLE, _TRIANGLE)
        extent = (-0.5, depth - 0.5, 0.5, depth + 0.5)
        masked = np.ma.masked_invalid(grid)
        image = axes.imshow(
            masked,
            cmap="viridis_r",
            norm=norm,
            origin="lower",
            extent=extent,
            aspect="auto",
            interpolation="none",
        )
        _mark(axes, grid, cuts)
        axes.spines[["left", "bottom"]].set_visible(False)
        axes.tick_params(length=0, labelsize=9.5)
        svg.caption(axes, "Layers in the cut", indent=-42)
        svg.write(axes, "first layer of the cut", (1, 0), (0, -32), _CORNER, ha="right", color=LIGHT["muted"])
        _colour_bar(figure, image, low, high, log)
        return svg.render(figure, "triangle", "Angular distance across every possible cut")


def _mark(axes: Axes, grid: np.ndarray, cuts: list[Cut]) -> None:
    """Mark the nearest cut of every length, and those that were chosen."""
    import numpy as np

    cell = _TRIANGLE / len(grid)
    best = [(int(np.nanargmin(row)), length) for length, row in enumerate(grid, start=1) if np.isfinite(row).any()]
    size = max(1.6, min(4.0, cell / 4))
    axes.plot(
        [start for start, _ in best],
        [length for _, length in best],
        "o",
        color=_WHITE,
        markersize=size,
        markeredgecolor=_BLACK,
        markeredgewidth=0.4,
    )
    for cut in cuts:
        for colour, thick in ((_BLACK, 4.5), (_WHITE, 2.2)):
            axes.plot(
                cut.start, cut.end - cut.start, "s", markersize=max(8, cell + 1),
                markerfacecolor="none", markeredgecolor=colour, markeredgewidth=thick, clip_on=False,
            )  # fmt: skip
    lines = [_named(cut) for cut in cuts]
    lines = [*lines[:8], f"and {len(lines) - 8} more"] if len(lines) > 9 else lines
    title = "☐ chosen" if lines else ""
    said = [("• nearest cut of each length", "muted"), (title, "muted"), *((line, "ink") for line in lines)]
    for row, (line, role) in enumerate(said):
        below = 58 + 16 * row + (6 if row else 0)
        svg.write(axes, line, (1, 1), (0, -below), _CORNER, ha="right", va="top", color=LIGHT[role])


def _named(cut: Cut) -> str:
    layers = span(list(range(cut.start, cut.end)))
    distance = "" if cut.distance is None else f": {cut.distance:.3f}"
    return f"layer{'s' if cut.end - cut.start > 1 else ''} {layers}{distance}"


def _colour_bar(figure: Figure, image: AxesImage, low: float, high: float, log: bool) -> None:
    """Draw the scale of the distance in the empty corner above the diagonal."""
    axes = svg.panel(figure, 42 + _TRIANGLE - 210, 46, 210, 10)
    middle = math.sqrt(low * high) if log else (low + high) / 2
    bar = figure.colorbar(image, cax=axes, orientation="horizontal", ticks=[low, middle, high])
    bar.ax.set_xticklabels([numbers.decimal(value, 2) for value in (low, middle, high)])
    bar.ax.minorticks_off()
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, labelsize=9.5)
    for label, side in zip(bar.ax.get_xticklabels(), ("left", "center", "right"), strict=True):
        label.set_horizontalalignment(side)
    svg.caption(axes, "", "angular distance / π" + (", log scale" if log else ""), indent=0)
