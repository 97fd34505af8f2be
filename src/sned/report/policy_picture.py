"""How chances were learned, as a picture: the loss of random masks, step by step. Imports svg and a neighbour."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sned.report import svg
from sned.report.search_picture import frame, value_of
from sned.report.svg import LIGHT

if TYPE_CHECKING:
    from sned.report.training_blocks import Policy

# Pixels: margins, the size of the curve, and the line below the axis.
_LEFT, _RIGHT, _TOP, _WIDTH, _HEIGHT, _BELOW = 50, 14, 30, 496, 200, -36
_SMOOTH = 20
"""The line is a mean over so many parts of the curve, each as long as another."""


def policy(found: Policy) -> str:
    """Draw the mean loss of each step's masks as dots, and the mean over twentieths of the steps as a line."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    values = [value_of(found, step.loss) for step in found.steps]
    numbers = [step.step for step in found.steps]
    size = max(1, len(values) // _SMOOTH)
    chunks = [values[i : i + size] for i in range(0, len(values), size)]
    means = [sum(chunk) / len(chunk) for chunk in chunks]
    middles = [numbers[i * size] + (len(chunk) - 1) / 2 for i, chunk in enumerate(chunks)]
    log = min(values) > 0 and max(values) > 8 * min(values)
    with svg.style("policy"):
        figure = svg.canvas(_WIDTH, _TOP + _HEIGHT + 46)
        axes = svg.panel(figure, _LEFT, _TOP, _WIDTH - _LEFT - _RIGHT, _HEIGHT)
        frame(axes, [], values, log)
        axes.set_xlim(1 - 0.015 * len(values), 1.015 * len(values))
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.plot(numbers, values, ".", color=LIGHT["muted"], markersize=4, zorder=2)
        axes.plot(middles, means, "-", color=LIGHT["kept"], linewidth=2, zorder=3)
        svg.write(axes, "steps", (1, 0), (0, _BELOW), "axes fraction", ha="right", color=LIGHT["muted"])
        note = "dots: mean of a step's masks; line: over many steps"
        svg.write(axes, note, (0, 0), (-_LEFT, _BELOW), "axes fraction", color=LIGHT["muted"])
        what = "Perplexity" if found.objective == "perplexity" else "KL divergence from the base"
        svg.caption(axes, f"{what} with random masks", "log scale" if log else "", indent=-_LEFT)
        return svg.render(figure, "policy", f"Loss of random masks over {len(values)} steps")
