"""What is told of a classifier: its page with the accuracy at every depth, and its model card.

Imports numbers, page and svg; everything that is quoted is escaped.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

from sned.report import numbers, page, svg
from sned.report.svg import LIGHT

if TYPE_CHECKING:
    from collections.abc import Mapping

SETS = {"train": "training texts", "held_out": "held-out texts", "test": "test texts"}
_WIDTH, _HEIGHT, _LEFT, _TOP, _BELOW = 720, 250, 48, 34, 46


def verdict(found: Mapping[str, Any]) -> str:
    """Say in a sentence how deep the classifier is and how often it is right."""
    chosen, best = found["chosen"], found["best"]
    kept, layers = chosen["layers"], found["model"]["layers"]
    return (
        f"{kept} of {layers} layers classify {share(chosen)} of the held-out texts rightly; "
        f"the best depth, {best['layers']}, {share(best)}."
    )


def share(row: Mapping[str, Any]) -> str:
    """Return an accuracy with its standard error."""
    return f"{numbers.percent(row['accuracy'])} ± {100 * row['standard_error']:.1f}"


def rows(found: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return the classifier and what it is compared with: name, layers, accuracy held out, and on a test if any."""
    tested = "test" in found["data"]
    named = (("this classifier", "chosen"), ("best depth", "best"), ("all layers", "whole"))
    lines = []
    for name, key in named:
        row = found[key]
        lines.append((name, str(row["layers"]), share(row), *([share(row["test"])] if tested else [])))
    common = [numbers.percent(value) for value in found["commonest"].values()]
    return [*lines, ("commonest class", "0", *common)]


def headers(found: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what stands above `rows`."""
    return ("", "layers", "held out", *(["test"] if "test" in found["data"] else []))


def remark(found: Mapping[str, Any]) -> str:
    """Say on how much the figures rest."""
    counts = [f"{numbers.grouped(part['texts'])} {SETS[name]}" for name, part in found["data"].items()]
    if found["asked"]:
        return f"{', '.join(counts)}."
    chosen = (
        "Depth was chosen on the held-out texts"
        if "test" in found["data"]
        else ("Depth was chosen on the same held-out texts, which flatters; a test file would tell more")
    )
    return f"{', '.join(counts)}. {chosen}."


def rule(found: Mapping[str, Any]) -> str:
    """Say how the depth was chosen."""
    if found["asked"]:
        return f"It was told to keep {found['chosen']['layers']}."
    return "The first depth within one standard error of the best one was taken."


def render(found: Mapping[str, Any]) -> str:
    """Return the page of a classifier; the same figures always give the same bytes."""
    head = "".join(f"<th>{name}</th>" for name in headers(found))
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows(found))
    lead = f"A head on the state at the last token, after each of the {found['model']['layers']} layers. {rule(found)}"
    sections = [
        page.section("Accuracy by depth", lead, f'<div class="scroll wide">{_picture(found)}</div>'),
        page.section(
            "The classifier",
            escape(remark(found)),
            f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>\n'
            f'<p class="muted">Classes: {escape(", ".join(found["classes"]))}. '
            f"Parameters: {numbers.count(found['params']['dense'])} before, "
            f"{numbers.count(found['params']['pruned'])} now.</p>",
        ),
    ]
    name = page.short_name(found["model"]["source"])
    return page.document(name, "classifier", str(found["sned"]), verdict(found), sections)


def card(found: Mapping[str, Any], name: str, inherited: Mapping[str, Any]) -> str:
    """Return the text of ``README.md``.

    Args:
        found: What was found.
        name: Title of the card, usually the name of the folder.
        inherited: What it takes over from the card of the base, such as the licence.
    """
    import yaml

    header = dict(inherited) | {
        "library_name": "transformers",
        "pipeline_tag": "text-classification",
        "tags": ["sned", "chip-tuning"],
    }
    top = " | ".join(headers(found))
    lines = "\n".join(f"| {' | '.join(row)} |" for row in rows(found))
    ruler = "|:--" + "|--:" * (len(headers(found)) - 1) + "|"
    return f"""---
{yaml.safe_dump(header, sort_keys=False)}---

# {name}

A classifier out of the first {found["chosen"]["layers"]} of {found["model"]["layers"]} layers of \
`{found["model"]["source"]}`, by a linear head (Chip-Tuning, arXiv:2410.06541). {rule(found)} {verdict(found)}

| {top} |
{ruler}
{lines}

{remark(found)}

Classes: {", ".join(f"`{label}`" for label in found["classes"])}.

```python
from transformers import pipeline

classify = pipeline("text-classification", "{name}")
print(classify("..."))
```

It writes no text: the output head is gone. Made by `{found["command"] or "sned"}`; every depth that was tried stands \
in `sned/classifier.json`.
"""


def _picture(found: Mapping[str, Any]) -> str:
    """Draw the accuracy at every depth, with one standard error around it."""
    depths = found["depths"]
    layers = [row["layers"] for row in depths]
    shares = [100 * row["accuracy"] for row in depths]
    errors = [100 * row["standard_error"] for row in depths]
    chosen, best = found["chosen"], found["best"]
    with svg.style("depths"):
        figure = svg.canvas(_WIDTH, _TOP + _HEIGHT + _BELOW)
        axes = svg.panel(figure, _LEFT, _TOP, _WIDTH - _LEFT - 12, _HEIGHT)
        axes.grid(axis="y")
        low, high = ([value + sign * error for value, error in zip(shares, errors, strict=True)] for sign in (-1, 1))
        axes.fill_between(layers, low, high, color=LIGHT["faint"], linewidth=0)
        axes.plot(layers, shares, "o-", color=LIGHT["kept"], markersize=4.5, linewidth=1.6)
        common = 100 * found["commonest"]["held_out"]
        enough = 100 * (best["accuracy"] - best["standard_error"])
        for value, words, side in (
            (enough, "best less one standard error", "left"),
            (common, "commonest class", "right"),
        ):
            axes.axhline(value, color=LIGHT["muted"], linewidth=1, linestyle=(0, (4, 3)))
            place = (0.01 if side == "left" else 1, value)
            svg.write(axes, words, place, (0, 3), ("axes fraction", "data"), ha=side, color=LIGHT["muted"])
        look = {"markerfacecolor": "none", "markeredgecolor": LIGHT["ink"], "markeredgewidth": 2}
        axes.plot([chosen["layers"]], [100 * chosen["accuracy"]], "o", markersize=11, **look)
        words = f"{chosen['layers']} layers"
        svg.write(
            axes, words, (chosen["layers"], 100 * chosen["accuracy"]), (0, 12), "data", ha="center", weight="bold"
        )
        top, bottom = max([*high, enough]), min([*low, common])
        axes.set_ylim(bottom - 0.06 * (top - bottom + 1), top + 0.14 * (top - bottom + 1))
        axes.set_xlim(0.4, len(layers) + 0.6)
        svg.write(axes, "layers kept", (1, 0), (0, -34), "axes fraction", ha="right", color=LIGHT["muted"])
        svg.caption(axes, "Right answers", "% of the held-out texts", indent=-_LEFT)
        return svg.render(figure, "depths", "Share of held-out texts classified rightly, by layers kept")
