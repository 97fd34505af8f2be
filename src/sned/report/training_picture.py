"""How training went, as a picture: held-out and training loss over tokens. Imports svg, trained and a neighbour."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from sned.report import svg, trained
from sned.report.numbers import THIN
from sned.report.search_picture import frame
from sned.report.svg import LIGHT

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from sned.report.training_blocks import Curve, Training

# Pixels: margins, the size of the curve, the room above it for the name of the best point, the line below the axis.
_LEFT, _RIGHT, _TOP, _WIDTH, _HEIGHT, _NAME, _BELOW = 50, 14, 30, 496, 220, 30, -36
_TITLES = {
    "nmse": ("Error of states", "relative squares"),
    "mse": ("Error of states", "mean square"),
    "cosine": ("Error of states", "1 − cosine"),
    "kl": ("KL divergence from the base", "nats per token"),
    "ce": ("Cross-entropy", "nats per token"),
    "states": ("Error of the last states", "relative squares"),
}


def can_be_drawn(found: Curve) -> bool:
    """Tell whether there is a curve: two rows or more, and one of them finite."""
    return len(found.curve) > 1 and any(point.held_out is not None for point in found.curve)


def training(found: Training, name: str = "training") -> str:
    """Draw held-out loss as dots on a line and training loss as muted stairs; the best point is marked and named.

    Args:
        found: The training; it can be drawn.
        name: Of this picture, for a page may have several.
    """
    title, unit = _TITLES[found.loss]
    return curve(found, title, unit, f"Loss in training by {found.stage}, and on windows kept out of it", name)


def curve(found: Curve, title: str, unit: str, alt: str, name: str) -> str:
    """Draw a curve of training under a title, with the unit of its losses.

    Args:
        found: The curve; it can be drawn.
        title: Of the picture.
        unit: Of losses.
        alt: What the picture is, for those who do not see it.
        name: Of the picture.
    """
    held = [(point.tokens, point.held_out) for point in found.curve if point.held_out is not None]
    stairs = [(a.tokens, b.tokens, b.loss) for a, b in pairwise(found.curve) if b.loss is not None]
    lost = [point.tokens for point in found.curve if point.held_out is None]
    values = [value for _, value in held] + [loss for *_, loss in stairs]
    log = min(values) > 0 and max(values) > 8 * min(values)
    with svg.style(name):
        figure = svg.canvas(_WIDTH, _TOP + _HEIGHT + 46)
        axes = svg.panel(figure, _LEFT, _TOP, _WIDTH - _LEFT - _RIGHT, _HEIGHT)
        frame(axes, [], values, log)
        _leave_room(axes, values, log)
        _count_tokens(axes, found.curve[-1].tokens)
        for start, end, loss in stairs:
            axes.plot([start, end], [loss, loss], color=LIGHT["muted"], linewidth=1.6, zorder=2)
        axes.plot(*zip(*held, strict=True), "o-", color=LIGHT["kept"], markersize=5, linewidth=1.6, zorder=3)
        look = {"color": LIGHT["removed"], "markersize": 7, "markeredgewidth": 1.8, "clip_on": False}
        axes.plot(lost, [0.94] * len(lost), "x", transform=axes.get_xaxis_transform(), **look)
        _name_best(axes, found)
        _explain(axes, bool(stairs), bool(lost))
        svg.caption(axes, title, unit + (", log scale" if log else ""), indent=-_LEFT)
        return svg.render(figure, name, alt)


def _leave_room(axes: Axes, values: list[float], log: bool) -> None:
    """Set the limits upwards so that nothing is drawn where the name of the best point stands."""
    low, high = (math.log10(v) if log else v for v in (min(values), max(values)))
    size = (high - low) or abs(high) or 1.0
    limits = low - 0.06 * size, high + size * (0.06 + 1.06 * _NAME / (_HEIGHT - _NAME))
    axes.set_ylim(*(10**limit if log else limit for limit in limits))


def _count_tokens(axes: Axes, last: int) -> None:
    """Set up the axis of tokens: few round numbers, all with the same prefix."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    scale, prefix = next(((n, p) for n, p in ((10**9, "B"), (10**6, "M"), (10**3, "k")) if last >= 5 * n), (1, ""))
    axes.set_xlim(-0.015 * last, 1.015 * last)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    spelled = FuncFormatter(lambda value, _: f"{value / scale:g}{THIN}{prefix}".rstrip(THIN) if value else "0")
    axes.xaxis.set_major_formatter(spelled)


def _name_best(axes: Axes, found: Curve) -> None:
    """Mark the best point, and write its name above all curves with a thin line down to it."""
    point = trained.best(found)
    if point.held_out is None:
        return
    look: dict[str, Any] = {"markerfacecolor": "none", "markeredgecolor": LIGHT["ink"], "markeredgewidth": 2}
    axes.plot([point.tokens], [point.held_out], "o", markersize=11, zorder=4, **look)
    top = axes.transData.inverted().transform(axes.transAxes.transform((0, 1 - 18 / _HEIGHT)))[1]
    axes.plot([point.tokens] * 2, [point.held_out, top], color=LIGHT["line"], linewidth=1, zorder=1)
    share = point.tokens / found.curve[-1].tokens
    side, shift = ("left", -6) if share < 0.2 else ("right", 6) if share > 0.8 else ("center", 0)
    words = f"best: step {point.step}" if point.step else "best: before training"
    place = ("data", "axes fraction")
    svg.write(axes, words, (point.tokens, 1), (shift, -15), place, ha=side, va="bottom", fontweight="bold")


def _explain(axes: Axes, trains: bool, lost: bool) -> None:
    """Write below the axis what the marks mean, those that occur, and what is counted along it."""
    svg.write(axes, "tokens trained on", (1, 0), (0, _BELOW), "axes fraction", ha="right", color=LIGHT["muted"])
    keys = [("kept", "o-", "held out")]
    keys += [("muted", "-", "in training")] if trains else []
    keys += [("removed", "x", "not finite")] if lost else []
    at, width, middle = -_LEFT, _WIDTH - _LEFT - _RIGHT, (_BELOW + 4) / _HEIGHT
    for role, sign, words in keys:
        places = [(at + part) / width for part in (0, 10, 20)]
        look = {"color": LIGHT[role], "markersize": 5, "linewidth": 1.6, "markeredgewidth": 1.6, "clip_on": False}
        axes.plot(places, [middle] * 3, sign, markevery=[1], transform=axes.transAxes, **look)
        shown = svg.write(axes, words, (0, 0), (at + 27, _BELOW), "axes fraction", color=LIGHT["muted"])
        at += 27 + shown.get_window_extent().width + 18
