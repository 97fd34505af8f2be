"""One web page of sections that needs nothing else, for results that are no report. Imports svg.

What is passed as text is escaped; what is passed as markup is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from sned.report import svg

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


def document(name: str, kind: str, version: str, lead: str, sections: Sequence[str]) -> str:
    """Return a page.

    Args:
        name: What it is about, as text.
        kind: What sort of result it is, as text.
        version: Of sned, as text.
        lead: Says what was measured, as text.
        sections: From `section`.
    """
    shown = escape(name)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="color-scheme" content="light dark">\n<title>{shown} · {escape(kind)} · sned</title>\n'
        f"<style>{_palette()}{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        f'<p class="muted"><b>sned</b> {escape(version)} · {escape(kind)}</p>\n<h1>{shown}</h1>\n'
        f'<p class="muted">{escape(lead)}</p>\n{"".join(sections)}</main>\n</body>\n</html>\n'
    )


def section(title: str, lead: str, body: str) -> str:
    """Return a section; all three are markup."""
    return f'<section>\n<h2>{title}</h2>\n<p class="muted">{lead}</p>\n{body}\n</section>\n'


def short_name(source: object) -> str:
    """Return the last part of a path or id."""
    return str(source).rstrip("/").rpartition("/")[2] or str(source)


def _palette() -> str:
    light, dark = (
        " ".join(f"--{role}: {colours[scheme]};" for role, colours in svg.PALETTE.items()) for scheme in (0, 1)
    )
    return (
        f":root {{ {light} {_FONT} color-scheme: light dark; }}\n"
        f"@media screen and (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}"
    )
