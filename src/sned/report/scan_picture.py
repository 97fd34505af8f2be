"""A scan as one web page that needs nothing else: importance of every part, distances, cuts, shares of zeros.

Imports evidence, facts, numbers, profiles, svg and schema; everything that the page quotes is escaped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from sned.report import evidence, facts, numbers, profiles, profiles_picture, svg
from sned.report.schema import Importance

_STYLE = """
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.55 var(--font); }
main { max-width: 1120px; margin: 0 auto; padding: 32px 20px 56px; }
h1, h2, p, table { margin: 0; }
h1 { font-size: clamp(24px, 4.2vw, 36px); line-height: 1.2; margin: 6px 0 10px; overflow-wrap: anywhere; }
h2 { font-size: 18px; margin-bottom: 4px; }
.muted { color: var(--muted); font-size: 14px; max-width: 96ch; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 22px 24px; }
section { margin-top: 18px; }
.scroll { overflow-x: auto; margin-top: 16px; }
.pair { margin-top: 18px; display: flex; flex-wrap: wrap; gap: 26px 60px; align-items: flex-start; }
.plot { display: block; width: 100%; max-width: var(--w); height: auto; min-width: min(var(--w), 420px); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin-top: 16px; }
th, td { text-align: right; padding: 5px 0 5px 28px; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--muted); font-weight: 500; font-size: 13px; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
tr:last-child td { border-bottom: 0; }
.wide .plot { min-width: min(var(--w), 640px); }
.wordy td { vertical-align: top; white-space: normal; }
.wordy td:nth-child(2), .wordy th:nth-child(2) { text-align: left; }
details { margin-top: 18px; }
summary { color: var(--muted); font-size: 14px; cursor: pointer; }
@media print { body { background: none; } section { border: 0; border-top: 1px solid var(--line); padding: 14px 0; } }
"""
_FONT = '--font: system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Liberation Sans", sans-serif;'


def render(scan: Mapping[str, Any]) -> str:
    """Return the page of what a scan found; the same scan always gives the same bytes."""
    model, text = scan["model"], scan["calibration"]
    name = escape(str(model["source"]).rstrip("/").rpartition("/")[2] or str(model["source"]))
    measured = (
        f"{model['layers']} layers of a {model['family']} model, seen by {numbers.grouped(text['tokens'])} tokens of "
        f"{text['source']} in windows of {numbers.grouped(text['seq_len'])}, in {model['dtype']}."
    )
    sections = [
        _section(
            "Importance",
            "How much each layer, its attention and its MLP turn the residual stream. Low ones may be superfluous.",
            f'<div class="scroll">{_importance(scan["layers"])}</div>',
        ),
        _section(
            "Distance across cuts",
            "How far the stream moves from the first layer of a cut to the layer after it. Near ones may be cut out.",
            f'<div class="pair"><div>{evidence.triangle(scan["distance"]["angular"], [])}</div>'
            f"<div>{_cuts(scan['best_cuts'])}</div></div>",
        ),
    ]
    if scan["profiles"] is not None:
        sections.append(_section("Shares of zeros", f"{profiles.lead(scan['profiles'])}.", _profiles(scan)))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="color-scheme" content="light dark">\n<title>{name} · scan · sned</title>\n'
        f"<style>{_palette()}{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        f'<p class="muted"><b>sned</b> {escape(str(scan["sned"]))} · scan</p>\n<h1>{name}</h1>\n'
        f'<p class="muted">{escape(measured)}</p>\n{"".join(sections)}</main>\n</body>\n</html>\n'
    )


def _section(title: str, lead: str, body: str) -> str:
    return f'<section>\n<h2>{title}</h2>\n<p class="muted">{lead}</p>\n{body}\n</section>\n'


def _palette() -> str:
    light, dark = (
        " ".join(f"--{role}: {colours[scheme]};" for role, colours in svg.PALETTE.items()) for scheme in (0, 1)
    )
    return (
        f":root {{ {light} {_FONT} color-scheme: light dark; }}\n"
        f"@media screen and (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}"
    )


def _importance(layers: Sequence[Mapping[str, Any]]) -> str:
    def values(name: str) -> list[float]:
        return [float(layer[name] or 0.0) for layer in layers]  # a part that is not there does nothing

    scores = Importance(layers=values("influence"), attention=values("attention"), mlp=values("mlp"), distance=None)
    return evidence.importance(scores, [])


def _cuts(cuts: Sequence[Mapping[str, Any]]) -> str:
    rows = "".join(
        f"<tr><td>{cut['layers']}</td><td>{facts.span(list(range(cut['start'], cut['end'])))}</td>"
        f"<td>{numbers.decimal(cut['distance'])}</td></tr>"
        for cut in cuts[:12]
    )
    return f"<table><tr><th>length</th><th>nearest cut</th><th>distance / π</th></tr>{rows}</table>"


def _profiles(scan: Mapping[str, Any]) -> str:
    """Return the shares of zeros of every allocator: as lines, in short, and in full."""
    found = scan["profiles"]["allocators"]
    shares = {name: profile["layers"] for name, profile in found.items()}
    head = "<tr><th>allocator</th><th>goes by</th><th>lowest share (layers)</th><th>highest share (layers)</th></tr>"
    short = "".join(
        f"<tr><td>{escape(name)}{_options(profile)}</td><td>{escape(profiles.basis(profile))}</td>"
        f"{_cells(profiles.extremes(scan, name))}</tr>"
        for name, profile in found.items()
    )
    named = "".join(f"<th>{escape(name)}</th>" for name in found)
    rows = "".join(f"<tr>{_cells(row)}</tr>" for row in profiles.rows(scan))
    return (
        f'<div class="scroll wide">{profiles_picture.lines(shares, scan["profiles"]["sparsity"])}</div>\n'
        f'<div class="scroll"><table class="wordy">{head}{short}</table></div>\n'
        f'<details><summary>Every layer</summary><div class="scroll"><table><tr><th>layer</th>{named}</tr>{rows}'
        "</table></div></details>"
    )


def _options(profile: Mapping[str, Any]) -> str:
    options = escape(profile["options"].replace(",", ", "))
    return f'<br><span class="muted">{options}</span>' if options else ""


def _cells(texts: Sequence[str]) -> str:
    return "".join(f"<td>{escape(text)}</td>" for text in texts)
