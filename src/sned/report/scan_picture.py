"""A scan as one web page that needs nothing else: importance of every part, distances, cuts, shares of zeros.

Imports evidence, facts, numbers, page, profiles and schema; everything that the page quotes is escaped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from sned.report import evidence, facts, numbers, page, profiles, profiles_picture
from sned.report.schema import Importance


def render(scan: Mapping[str, Any]) -> str:
    """Return the page of what a scan found; the same scan always gives the same bytes."""
    model, text = scan["model"], scan["calibration"]
    measured = (
        f"{model['layers']} layers of a {model['family']} model, seen by {numbers.grouped(text['tokens'])} tokens of "
        f"{text['source']} in windows of {numbers.grouped(text['seq_len'])}, in {model['dtype']}."
    )
    sections = [
        page.section(
            "Importance",
            "How much each layer, its attention and its MLP turn the residual stream. Low ones may be superfluous.",
            f'<div class="scroll">{_importance(scan["layers"])}</div>',
        ),
        page.section(
            "Distance across cuts",
            "How far the stream moves from the first layer of a cut to the layer after it. Near ones may be cut out.",
            f'<div class="pair"><div>{evidence.triangle(scan["distance"]["angular"], [])}</div>'
            f"<div>{_cuts(scan['best_cuts'])}</div></div>",
        ),
    ]
    if scan["profiles"] is not None:
        sections.append(page.section("Shares of zeros", f"{profiles.lead(scan['profiles'])}.", _profiles(scan)))
    return page.document(page.short_name(model["source"]), "scan", str(scan["sned"]), measured, sections)


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
