"""What learned gates kept, as a picture: five rows of bars over the layers. Imports svg."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sned.report import svg
from sned.report.svg import LIGHT

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from sned.report.training_blocks import Structure

_LEFT, _PITCH, _BARS = 52, 116, 64  # pixels: a margin, from one row of bars to the next, the height of one
_ROWS = (
    ("attn.read", "Features that attention reads", "kept"),
    ("attn.write", "Features that attention writes", "kept"),
    ("mlp.read", "Features that the MLP reads", "mlp"),
    ("mlp.hidden", "MLP channels", "mlp"),
    ("mlp.write", "Features that the MLP writes", "mlp"),
)


def structure(found: Structure, depth: int) -> str:
    """Draw the share kept of each axis as bars over the layers of a model so deep, one row for each kind of axis."""
    rows = [look for look in _ROWS if any(look[0] in item.shares for item in found.kept)]
    width = max(440, min(1010, _LEFT + 10 + 30 * depth))
    with svg.style("structure"):
        figure = svg.canvas(width, _PITCH * len(rows) - 4)
        for row, (kind, title, role) in enumerate(rows):
            axes = svg.panel(figure, _LEFT, row * _PITCH + 28, width - _LEFT - 4, _BARS)
            shares = {item.layer: 100 * item.shares[kind] for item in found.kept if kind in item.shares}
            axes.bar(list(shares), [100.0] * len(shares), width=0.78, color=LIGHT["faint"])
            axes.bar(list(shares), list(shares.values()), width=0.78, color=LIGHT[role])
            _frame(axes, depth)
            mean = sum(shares.values()) / len(shares)
            svg.caption(axes, title, f"{mean:.0f}% kept on average", indent=-_LEFT)
        return svg.render(figure, "structure", f"What the layers keep of {len(rows)} kinds of units")


def _frame(axes: Axes, depth: int) -> None:
    axes.set_ylim(0, 100)
    axes.set_yticks([0, 50, 100], ["0", "50", "100%"])
    axes.spines["left"].set_visible(False)
    axes.tick_params(length=0, labelsize=9.5)
    axes.set_xlim(-0.7, depth - 0.3)
    step = next((step for step in (1, 2, 5, 10, 20) if depth <= 34 * step), 50)
    axes.set_xticks(range(0, depth, step))
