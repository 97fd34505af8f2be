"""What an allocator of zeros went by, as pictures: a value for each layer, or the spreads that it tried.

An allocator may be anyone's: what is not understood of what it left is not drawn. Imports numbers, svg, zeros and its
neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from sned.report import numbers, svg, zeros
from sned.report.search_picture import frame
from sned.report.svg import LIGHT
from sned.report.zeros_picture import LEFT, RIGHT, span_of, ticks_of

if TYPE_CHECKING:
    from sned.report.schema import Sparsity

_TOP, _CURVE, _TRIED = 30, 120, (440, 190)  # pixels: above a panel, the height of a line, the panel of spreads
_MARGIN = 58  # pixels to the left of the spreads, for longer numbers
_STEPS = {"block": "layers", "row": "rows of a matrix"}


@dataclass(frozen=True, slots=True)
class Evidence:
    """What shares were decided by.

    Attributes:
        words: What the values are.
        layers: A value for each layer; of several matrices, their mean.
        matrices: Layer and value of each matrix, where matrices were looked at.
    """

    words: str
    layers: dict[int, float]
    matrices: list[tuple[int, float]]


@dataclass(frozen=True, slots=True)
class Tries:
    """Which spreads of the shares were tried.

    Attributes:
        among: What the shares differ between: layers, or rows of a matrix.
        chosen: The spread that was taken.
        distance: By spread, how far activations then were from those of the dense model.
        given_up: How many more were left unfinished.
    """

    among: str
    chosen: float
    distance: dict[float, float]
    given_up: int

    @property
    def words(self) -> str:
        """What was tried and taken, in a sentence."""
        n = len(self.distance) + self.given_up
        many = "the one spread" if n == 1 else f"the {n} spreads"
        left = f"; {self.given_up} {'was' if self.given_up == 1 else 'were'} given up part way, being further already"
        return (
            f"Of {many} tried for the shares of {self.among}, ±{100 * self.chosen:.3g} percentage points kept the "
            f"activations closest to dense ones{left if self.given_up else ''}."
        )


def evidence(found: Sparsity) -> Evidence | None:
    """Return the values by layer that an allocator went by; None where it left none."""
    kept = found.allocation or {}
    words = str(kept.get("evidence", ""))
    layers = {int(key): value for key, value in _figures(kept.get("layers")).items() if key.isdigit()}
    named = [(name.split("."), value) for name, value in _figures(kept.get("matrices")).items()]
    matrices = [(int(parts[1]), value) for parts, value in named if len(parts) > 1 and parts[1].isdigit()]
    if layers:
        matrices = []
    else:
        layers = {layer: fmean(v for x, v in matrices if x == layer) for layer in sorted({x for x, _ in matrices})}
    return Evidence(words, layers, matrices) if layers else None


def tries(found: Sparsity) -> list[Tries]:
    """Return the searches for a spread that an allocator made, in order; none if it made none."""
    made = []
    for key, among in _STEPS.items():
        step = (found.allocation or {}).get(key)
        if isinstance(step, dict) and isinstance(spread := step.get("spread"), int | float):
            tried = sorted((float(at), value) for at, value in _figures(step.get("tried")).items())
            left = step.get("given_up")
            made += [Tries(among, float(spread), dict(tried), left if isinstance(left, int) else 0)] if tried else []
    return made


def _figures(block: object) -> dict[str, float]:
    """Return what is a number in a block of JSON."""
    items = block.items() if isinstance(block, dict) else ()
    return {str(key): float(value) for key, value in items if isinstance(value, int | float)}


def line(known: Evidence, depth: int, *, narrow: bool = False) -> str:
    """Draw what each layer was judged by, its layers below those of the heat map; matrices as dots, if they were.

    Args:
        known: The values.
        depth: Layers of the base model.
        narrow: For a telephone.
    """
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    name = "allocation_narrow" if narrow else "allocation"
    inner = 290 if narrow else span_of(depth)
    with svg.style(name):
        figure = svg.canvas(max(340, LEFT + inner + RIGHT), _TOP + _CURVE + 36)
        axes = svg.panel(figure, LEFT, _TOP, inner, _CURVE)
        axes.plot([x for x, _ in known.matrices], [y for _, y in known.matrices], ".", color=LIGHT["mlp"], markersize=5)
        mark = "o-" if depth <= 40 else "-"
        axes.plot(list(known.layers), list(known.layers.values()), mark, color=LIGHT["kept"], markersize=5, zorder=3)
        axes.set_xlim(-0.5, depth - 0.5)
        axes.set_xticks(list(ticks_of(depth, inner)))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}".replace("-", "−")))
        axes.grid(axis="y", linewidth=0.7)
        axes.spines["left"].set_visible(False)
        axes.tick_params(length=0, labelsize=10.5)
        title = known.words[:1].upper() + known.words[1:]
        svg.caption(axes, title, "dots: matrices, line: their mean" if known.matrices else "", indent=-LEFT)
        svg.write(axes, "layer", (1, 0), (0, -32), "axes fraction", ha="right", color=LIGHT["muted"])
        return svg.render(figure, name, f"What the shares of zeros were decided by: {known.words}")


def sense(known: Evidence, found: Sparsity) -> str:
    """Say what share of zeros the layers with the lowest and the highest value got; empty if none got any."""
    shares = zeros.by_layer(found)
    both = [layer for layer in known.layers if layer in shares]
    if not both:
        return ""
    high, low = max(both, key=known.layers.__getitem__), min(both, key=known.layers.__getitem__)
    first, last = (
        f"{numbers.decimal(known.layers[layer])} in layer {layer}, where {numbers.percent(shares[layer])} are zero"
        for layer in (low, high)
    )
    return f"From {first}, to {last}."


def distances(made: Tries) -> str:
    """Draw the distance of activations over the spreads that were tried; the chosen one is marked."""
    spreads, values = [100 * at for at in made.distance], list(made.distance.values())
    name = f"tries_{made.among.partition(' ')[0]}"
    width, height = _TRIED
    with svg.style(name):
        figure = svg.canvas(_MARGIN + width - RIGHT, _TOP + height + 44)
        axes = svg.panel(figure, _MARGIN, _TOP, width - 2 * RIGHT, height)
        frame(axes, spreads, values, log=False)
        room = 0.06 * ((max(spreads) - min(spreads)) or 1)
        axes.set_xlim(min(spreads) - room, max(spreads) + room)
        axes.plot(spreads, values, "o-", color=LIGHT["kept"], markersize=5, linewidth=1.4, zorder=2)
        at = made.chosen
        if at in made.distance:
            look = {"markerfacecolor": "none", "markeredgecolor": LIGHT["ink"], "markeredgewidth": 2}
            axes.plot([100 * at], [made.distance[at]], "o", markersize=11, zorder=3, **look)
            axes.set_ylim(bottom=axes.get_ylim()[0] - 0.16 * (max(values) - min(values)))
            words = f"chosen: ±{100 * at:.3g}%"
            share = (100 * at - min(spreads)) / (max(spreads) - min(spreads) or 1)
            side, shift = ("left", -6) if share < 0.2 else ("right", 6) if share > 0.8 else ("center", 0)
            point, look = (100 * at, made.distance[at]), {"ha": side, "va": "top", "fontweight": "bold"}
            svg.write(axes, words, point, (shift, -10), "data", **look)  # nothing is drawn below the nearest
        svg.caption(axes, "Distance of activations", "from dense ones", indent=-_MARGIN)
        below = f"how far the shares of {made.among} spread, ±"
        svg.write(axes, below, (1, 0), (0, -34), "axes fraction", ha="right", color=LIGHT["muted"])
        return svg.render(figure, name, f"Distance of activations over spreads of the shares among {made.among}")
