"""Turns a matplotlib figure into inline SVG that follows the page's theme. Imports nothing of sned.

A figure is drawn in the light palette; every colour of it then becomes a CSS variable with that colour as
the fallback, so the page alone decides how it looks in the dark. Text stays text, in the page's font. One
unit of the drawing is one CSS pixel. The bytes depend on the drawing only.
"""

from __future__ import annotations

import io
import re
import warnings
from contextlib import contextmanager
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation

Coords = str | tuple[str, str]

# Role: (light, dark). Hues are told apart by people who see few colours: blue, vermilion, amber, purple.
PALETTE = {
    "ink": ("#1c2024", "#e7eaee"),
    "muted": ("#667079", "#98a2ad"),
    "line": ("#d5dae0", "#39414a"),
    "faint": ("#eef1f4", "#20262d"),
    "page": ("#f6f7f9", "#12161b"),
    "card": ("#fefefe", "#191e24"),
    "kept": ("#4a7fb5", "#6aa3dc"),
    "mlp": ("#86aed6", "#3f6f9f"),
    "removed": ("#cf4a12", "#f0804a"),
    "folded": ("#e8a613", "#f2bd3f"),
    "replaced": ("#9a5ba5", "#c48acf"),
    "good": ("#1f7a4d", "#5cc492"),
    "bad": ("#b23a0c", "#f28e62"),
}
LIGHT = {role: colours[0] for role, colours in PALETTE.items()}
_ROLE = {colours[0]: role for role, colours in PALETTE.items()}
_DPI = 72  # the SVG backend's own unit, which makes one point one pixel


@contextmanager
def style(name: str) -> Iterator[None]:
    """Draw in the house style, whatever the user's matplotlib is set to; `name` salts the ids."""
    from matplotlib import style as styles

    settings = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "text.parse_math": False,
        "font.family": ["DejaVu Sans"],
        "font.size": 11,
        "axes.edgecolor": LIGHT["line"],
        "axes.labelcolor": LIGHT["muted"],
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "grid.color": LIGHT["line"],
        "text.color": LIGHT["ink"],
        "xtick.color": LIGHT["line"],
        "ytick.color": LIGHT["line"],
        "xtick.labelcolor": LIGHT["muted"],
        "ytick.labelcolor": LIGHT["muted"],
        "hatch.linewidth": 0.8,
    }
    with styles.context(["default", settings]), warnings.catch_warnings():
        # The page's font draws the text; a glyph missing here only makes its width a guess.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        yield


def canvas(width: float, height: float) -> Figure:
    """Return an empty, transparent figure of so many pixels."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI)
    figure.patch.set_alpha(0)
    return figure


def panel(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Add axes at a place in pixels, counted from the upper left corner."""
    full_width, full_height = figure.get_size_inches() * _DPI
    bottom = full_height - top - height
    box = (left / full_width, bottom / full_height, width / full_width, height / full_height)
    axes = figure.add_axes(box)
    axes.patch.set_alpha(0)
    return axes


def render(figure: Figure, name: str, label: str) -> str:
    """Return a figure as one ``<svg>`` element whose ids all begin with `name`; `label` is what it shows."""
    buffer = io.StringIO()
    # Every key set to None keeps the whole metadata block, with its date and its links, out of the file.
    metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", dpi=_DPI, transparent=True, metadata=metadata)
    width, height = figure.get_size_inches() * _DPI
    text = buffer.getvalue()
    body = text[text.index(">", text.index("<svg")) + 1 :]
    body = re.sub(r"<style[^>]*>.*?</style>|<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r'(\bid="|xlink:href="#|url\(#)', rf"\g<1>{name}-", body)
    body = re.sub(r"#[0-9a-f]{6}\b", _as_variable, body)
    body = body.replace("'DejaVu Sans'", "var(--font, sans-serif)")
    head = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" class="plot" '
        f'viewBox="0 0 {width:g} {height:g}" style="--w: {width:g}px" '
        f'role="img" aria-label="{escape(label)}">'
    )
    return head + body.strip()


def _as_variable(match: re.Match[str]) -> str:
    colour = match[0]
    return f"var(--{_ROLE[colour]}, {colour})" if colour in _ROLE else colour


def write(
    axes: Axes, text: str, at: tuple[float, float], shift: tuple[float, float], coords: Coords, **look: Any
) -> Annotation:
    """Write text so many pixels off a point; matplotlib's words for `coords` and the look."""
    return axes.annotate(text, at, xycoords=coords, xytext=shift, textcoords="offset points", **look)


def caption(axes: Axes, title: str, note: str = "", indent: float = 0) -> None:
    """Write a title, and a note after it, above the upper left corner."""
    corner, coords = (0, 1), "axes fraction"
    shown = write(axes, title, corner, (indent, 9), coords, va="bottom", fontsize=13, fontweight="bold")
    start = indent + (shown.get_window_extent().width + 10 if title else 0)
    write(axes, note, corner, (start, 9), coords, va="bottom", fontsize=11.5, color=LIGHT["muted"])
