"""How a search went, as pictures: what each cut cost, and what evolution found, over size. Imports facts, svg."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from sned.report import numbers, svg
from sned.report.facts import spell_cut
from sned.report.svg import LIGHT

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from sned.report.schema import Evolution, Policy, Search, Step

# Pixels: margins, the height of the curve, a step's share of the width, the least room of a name, one of its letters.
_LEFT, _RIGHT, _TOP, _CURVE, _STEP, _GAP, _LETTER = 50, 16, 30, 230, 60, 13, 5.6
_FRONT_WIDTH = 560
_LOOKS = {"attn": ("kept", "o"), "mlp": ("mlp", "s")}


def search(found: Search, params: int) -> str:
    """Draw the loss after each step over the share of parameters gone by then, every step named.

    Args:
        found: The search; it has steps.
        params: Those of the whole model before it.
    """
    steps = found.steps
    width = max(640, min(1010, _LEFT + _RIGHT + _STEP * len(steps)))
    inner, band = width - _LEFT - _RIGHT, 30 + _LETTER * max(len(spell_cut(step.cut)) for step in steps)
    before = steps[0].loss - steps[0].increase
    values = [value_of(found, loss) for loss in (before, *(step.loss for step in steps))]
    shares = [0.0, *(100 * (1 - step.params / params) for step in steps)]
    log = min(values) > 0 and max(values) > 8 * min(values)
    with svg.style("search"):
        figure = svg.canvas(width, _TOP + band + _CURVE + 44)
        axes = svg.panel(figure, _LEFT, _TOP + band, inner, _CURVE)
        frame(axes, shares, values, log)
        axes.set_xlim(-0.01 * max(shares), 1.01 * max(shares))
        axes.plot(shares, values, color=LIGHT["muted"], linewidth=1.4, zorder=2)
        axes.plot(shares[:1], values[:1], "o", color=LIGHT["muted"], markersize=6, zorder=3)
        for step, x, y in zip(steps, shares[1:], values[1:], strict=True):
            role, sign = _LOOKS[_kind(step)]
            axes.plot([x], [y], sign, color=LIGHT[role], markersize=6, zorder=3)
        _name_steps(axes, steps, shares[1:], values[1:], inner)
        what = _loss_name(found)
        svg.write(axes, what, (0, 1), (-_LEFT, band + 9), "axes fraction", va="bottom", fontsize=13, fontweight="bold")
        note = "on calibration text" + (", log scale" if log else "")
        svg.write(axes, note, (1, 1), (0, band + 9), "axes fraction", ha="right", va="bottom", color=LIGHT["muted"])
        svg.write(axes, "parameters removed", (1, 0), (0, -34), "axes fraction", ha="right", color=LIGHT["muted"])
        return svg.render(figure, "search", f"Loss after each of {len(steps)} cuts")


def front(found: Evolution, params: int) -> str:
    """Draw loss over the share of parameters gone, for the models that no other beats in both; the chosen one is named.

    Args:
        found: What evolution found.
        params: Those of the whole model before it.
    """
    models = [*found.front, found.chosen]
    shares = [100 * (1 - model.params / params) for model in models]
    values = [value_of(found, model.loss) for model in models]
    log = min(values) > 0 and max(values) > 8 * min(values)
    with svg.style("front"):
        figure = svg.canvas(_FRONT_WIDTH, _TOP + _CURVE + 44)
        axes = svg.panel(figure, _LEFT, _TOP, _FRONT_WIDTH - _LEFT - _RIGHT, _CURVE)
        frame(axes, shares, values, log)
        room = 0.04 * ((max(shares) - min(shares)) or 1)
        axes.set_xlim(min(shares) - 3 * room, max(shares) + room)
        axes.plot(shares[:-1], values[:-1], "o-", color=LIGHT["kept"], markersize=5, linewidth=1.4, zorder=2)
        axes.plot(
            shares[-1:], values[-1:], "o", markersize=11, zorder=3,
            markerfacecolor="none", markeredgecolor=LIGHT["ink"], markeredgewidth=2,
        )  # fmt: skip
        # the front rises to the right, so that there is room to the upper left of each of its points
        look = {"ha": "right", "va": "bottom", "fontweight": "bold"}
        svg.write(axes, "chosen", (shares[-1], values[-1]), (-7, 5), "data", **look)
        svg.caption(axes, _loss_name(found), "on calibration text" + (", log scale" if log else ""), indent=-_LEFT)
        svg.write(axes, "parameters removed", (1, 0), (0, -34), "axes fraction", ha="right", color=LIGHT["muted"])
        return svg.render(figure, "front", f"Loss over parameters removed, best of {found.judged} models")


def value_of(found: Search | Evolution | Policy, loss: float) -> float:
    """Return what people read of a loss: the perplexity, or the divergence as it is."""
    return math.exp(min(loss, 700)) if found.objective == "perplexity" else loss


def _loss_name(found: Search | Evolution) -> str:
    return "Perplexity" if found.objective == "perplexity" else "KL divergence from the base, nats per token"


def _kind(step: Step) -> str:
    """Return what a step mostly removes: pairs of neighbours count as MLPs, which are the larger."""
    return "mlp" if "mlp" in step.cut else "attn"


def frame(axes: Axes, shares: list[float], values: list[float], log: bool) -> None:
    """Set up the axes: few round numbers, a light grid."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

    low, high = min(values), max(values)
    if log:
        axes.set_yscale("log")
        axes.set_ylim(low / 1.15, high * 1.15)
        axes.set_yticks(_round_values(low, high))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        room = 0.06 * ((high - low) or 1)
        axes.set_ylim(low - room, high + room)
        axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_major_locator(MaxNLocator(8))
    digits = 3 if log or high <= low else min(9, 3 + max(0, math.floor(math.log10(high / (high - low)))))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: numbers.decimal(value, digits)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}%"))
    axes.grid(axis="y", linewidth=0.7)
    axes.spines["left"].set_visible(False)
    axes.tick_params(length=0, labelsize=9.5)


def _round_values(low: float, high: float) -> list[float]:
    """Return ticks for a logarithmic axis: 1, 2, 5 of each decade, or fewer if there are many decades."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    leads = (1, 2, 5) if len(powers) < 5 else (1,)
    return [lead * 10.0**power for power in powers for lead in leads if low <= lead * 10.0**power <= high]


def _name_steps(axes: Axes, steps: list[Step], shares: list[float], values: list[float], width: float) -> None:
    """Write the name of each step upright above the curve, with a thin line down to its point."""
    every = math.ceil(len(steps) * _GAP / width)
    picked = [i for i in range(len(steps)) if (len(steps) - 1 - i) % every == 0]
    low, high = axes.get_xlim()
    wanted = [(shares[i] - low) / (high - low) * width for i in picked]
    for i, at, place in zip(picked, wanted, spread(wanted, _GAP, width), strict=True):
        axes.annotate(
            spell_cut(steps[i].cut),
            (shares[i], values[i]),
            xycoords="data",
            xytext=(place / width, 1 + 18 / _CURVE),
            textcoords="axes fraction",
            rotation=90,
            ha="center",
            va="bottom",
            fontsize=9.5,
            color=LIGHT["ink"],
        )
        line = {"color": LIGHT["line"], "linewidth": 0.8, "clip_on": False}
        knees = [place / width, at / width], [1 + 14 / _CURVE, 1]
        axes.plot(*knees, transform=axes.transAxes, **line)
        axes.plot([shares[i]] * 2, [values[i], axes.get_ylim()[1]], zorder=1, **line)


def spread(wanted: list[float], gap: float, width: float) -> list[float]:
    """Return ascending places at least `gap` apart, each as near to what is wanted as the others and `width` allow."""
    places: list[float] = []
    for place in wanted:
        places.append(max(place, places[-1] + gap) if places else place)
    limit = width
    for i in reversed(range(len(places))):
        places[i] = min(places[i], limit)
        limit = places[i] - gap
    return places
