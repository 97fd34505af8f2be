"""The shares of zeros that allocators would give, as lines over the layers. Imports svg and its neighbours."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sned.report import svg
from sned.report.svg import LIGHT
from sned.report.zeros_picture import ticks_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes

_LOOKS = (("kept", "o"), ("removed", "s"), ("replaced", "^"), ("good", "D"), ("folded", "v"))
# Pixels: margins, the least height, a layer, the least and the most for all; from the last layer to the labels.
_LEFT, _TOP, _BELOW, _HEIGHT, _CELL, _LEAST, _MOST, _LEADER = 50, 30, 40, 210, 28, 260, 780, 22
_GAP, _LETTER, _NAME = 17, 6.8, 36  # pixels from label to label, and of a letter; letters of a name
_MARKED = 40  # so many layers or fewer all have their mark


def lines(profiles: Mapping[str, Sequence[float | None]], sparsity: float) -> str:
    """Draw a line for each allocator, its name at the end; the even share of all layers is a thin one for reference.

    Args:
        profiles: By the name of an allocator, a share for each layer, None where it has nothing to lose.
        sparsity: The share of all layers together.
    """
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    drawn = {name: shares for name, shares in profiles.items() if name != "uniform"}
    names = [_shorten(name) for name in ("uniform", *drawn)]
    depth = max(len(shares) for shares in profiles.values())
    inner, tall = max(_LEAST, min(_MOST, _CELL * depth)), max(_HEIGHT, _GAP * len(names))
    with svg.style("profiles"):
        room = _LEADER + 6 + _LETTER * max(map(len, names))
        figure = svg.canvas(_LEFT + inner + room, _TOP + tall + _BELOW)
        axes = svg.panel(figure, _LEFT, _TOP, inner, tall)
        axes.set_xlim(-0.5, depth - 0.5)
        axes.set_ylim(*_limits([sparsity, *(x for shares in drawn.values() for x in shares if x is not None)]))
        axes.set_xticks(list(ticks_of(depth, inner)))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}%"))
        axes.grid(axis="y", linewidth=0.7)
        axes.spines["left"].set_visible(False)
        axes.tick_params(length=0, labelsize=10.5)
        axes.axhline(100 * sparsity, color=LIGHT["muted"], linewidth=1, zorder=2)
        ends = [(1.0, 100 * sparsity), *(_line(axes, *item) for item in enumerate(drawn.values()))]
        _label(axes, names, ends, inner, tall)
        svg.caption(axes, "Share of zeros", f"by layer, {100 * sparsity:g}% in all", indent=-_LEFT)
        svg.write(axes, "layer", (1, 0), (0, -34), "axes fraction", ha="right", color=LIGHT["muted"])
        return svg.render(figure, "profiles", f"Share of zeros in {depth} layers, by {', '.join(profiles)}")


def apart(wanted: Sequence[float], gap: float, most: float) -> list[float]:
    """Return places in [0, most] at least `gap` from each other, in the order of those wanted and close to them.

    Args:
        wanted: Places; of equal ones the first comes lowest.
        gap: The least distance. All together must fit.
        most: The highest place.
    """
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    runs: list[list[float]] = []  # of neighbours that touch, each less the gaps below it
    for rank, index in enumerate(order):
        run = [wanted[index] - rank * gap]
        while runs and _mean(runs[-1]) >= _mean(run):
            run = runs.pop() + run
        runs.append(run)
    flat = [_mean(run) for run in runs for _ in run]
    highest = most - (len(wanted) - 1) * gap
    placed = [0.0] * len(wanted)
    for rank, index in enumerate(order):
        placed[index] = max(0.0, min(flat[rank], highest)) + rank * gap
    return placed


def _line(axes: Axes, number: int, shares: Sequence[float | None]) -> tuple[float, float]:
    """Draw the shares of one allocator, and return where they end: as a part of the width, and in per cent."""
    role, mark = _LOOKS[number % len(_LOOKS)]
    depth = len(shares)
    values = [float("nan") if share is None else 100 * share for share in shares]
    every = 1 if depth <= _MARKED else depth // 12
    shift = number % len(_LOOKS) * every // len(_LOOKS)  # marks of lines that run together stand beside each other
    again = {"linestyle": (0, (4, 2)), "markerfacecolor": LIGHT["card"]} if number >= len(_LOOKS) else {}
    look = {"color": LIGHT[role], "linewidth": 1.6, "marker": mark, "markersize": 4.5, "markevery": (shift, every)}
    axes.plot(range(depth), values, zorder=3, **look | again)
    last = max((i for i, share in enumerate(shares) if share is not None), default=0)
    return (last + 0.5) / depth, values[last]


def _label(axes: Axes, names: Sequence[str], ends: Sequence[tuple[float, float]], inner: float, tall: float) -> None:
    """Write the names to the right of the lines, apart from each other, and lead each line to its own."""
    low, high = axes.get_ylim()
    heights = [(value - low) / (high - low) * tall for _, value in ends]
    places = apart(heights, _GAP, tall)
    for number, (name, (x, _), height, place) in enumerate(zip(names, ends, heights, places, strict=True)):
        role = _LOOKS[(number - 1) % len(_LOOKS)][0] if number else "muted"
        axes.plot(
            [x, 1 + 0.3 * _LEADER / inner, 1 + 0.85 * _LEADER / inner], [height / tall, height / tall, place / tall],
            transform=axes.transAxes, color=LIGHT[role], linewidth=1, clip_on=False, zorder=2,
        )  # fmt: skip
        colour = LIGHT["ink" if number else "muted"]
        at = (1, place / tall)
        svg.write(axes, name, at, (_LEADER, 0), "axes fraction", va="center", fontsize=12, color=colour)


def _limits(shares: Sequence[float]) -> tuple[float, float]:
    """Return the ends of the axis in per cent; differences that come from rounding stay small on it."""
    low, high = 100 * min(shares), 100 * max(shares)
    room = max(0.07 * (high - low), 0.5 * (1 - (high - low)))
    return low - room, high + room


def _shorten(name: str) -> str:
    return name if len(name) <= _NAME else name[: _NAME - 1] + "…"


def _mean(run: Sequence[float]) -> float:
    return sum(run) / len(run)
