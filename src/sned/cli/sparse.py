"""The zeros of plans, and those that allocators would make, as a reader sees them. Imports rich; plans when called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sned.cli.tables import table
from sned.report import numbers
from sned.report import profiles as words
from sned.report.facts import span

if TYPE_CHECKING:
    from rich.console import RenderableType

    from sned.plans.plan import Plan

ROLES = ("q", "k", "v", "o", "gate", "up", "down")


def zeros(scores: Mapping[str, Any]) -> list[RenderableType]:
    """Return what share of each matrix a stage sets to zero, a row for each layer, and for all of them together."""
    rows: Sequence[Mapping[str, Any]] = scores.get("sparsity", [])
    if not rows:
        return []
    layers: dict[int, dict[str, tuple[int, int]]] = {}
    for row in rows:
        _, layer, _, role, *_ = row["matrix"].split(".")  # experts of a layer are taken together
        found = layers.setdefault(int(layer), {})
        zeros, of = found.get(role, (0, 0))
        found[role] = zeros + row["zeros"], of + row["of"]
    roles = [role for role in ROLES if any(role in found for found in layers.values())]
    alike: dict[tuple[str, ...], list[int]] = {}
    for layer, found in layers.items():
        cells = [_share([found[role]] if role in found else []) for role in roles]
        alike.setdefault((*cells, _share(list(found.values()))), []).append(layer)
    shown: list[Sequence[str]] = [(span(numbered), *cells) for cells, numbered in alike.items()]
    sums = [[found[role] for found in layers.values() if role in found] for role in roles]
    everything = [pair for column in sums for pair in column]
    shown.append(["all", *map(_share, sums), _share(everything)])
    return ["", "Share of the weights that become zero:", table(("layer", *roles, "layer's matrices"), shown)]


def profiles(scan: Mapping[str, Any]) -> list[RenderableType]:
    """Return what share of zeros every layer would get from each allocator, side by side; nothing if none was asked."""
    found = scan["profiles"]
    if found is None:
        return []
    headers = [name.replace(":", "\n", 1).replace(",", "\n") for name in found["allocators"]]
    return ["", f"{words.lead(found)}:", table(("layer", *headers), words.rows(scan))]


def overlap(first: Plan, second: Plan) -> list[dict[str, Any]]:
    """Return how the zeros of two plans overlap, by parameter, for programs."""
    from sned.plans.overlap import overlaps

    return [
        {"param": o.param, "first": o.first, "second": o.second, "both": o.both, "of": o.of, "jaccard": o.jaccard}
        for o in overlaps(first, second)
    ]


def overlap_table(first: Plan, second: Plan, names: tuple[str, str]) -> list[RenderableType]:
    """Return the same for people."""
    rows = overlap(first, second)
    if not rows:
        return []
    shown: list[Sequence[str]] = [
        (
            row["param"].removeprefix("layers."),
            numbers.percent(row["first"] / row["of"]),
            numbers.percent(row["second"] / row["of"]),
            numbers.percent(row["jaccard"]),
        )
        for row in rows
    ]
    both, either = sum(r["both"] for r in rows), sum(r["first"] + r["second"] - r["both"] for r in rows)
    of = sum(r["of"] for r in rows)
    shares = [numbers.percent(sum(r[name] for r in rows) / of) for name in ("first", "second")]
    shown.append(("all", *shares, numbers.percent(both / either) if either else "–"))
    headers = ("zeros of layer and matrix", *names, "in both, of those in either")
    return ["", table(headers, shown)]


def _share(pairs: Sequence[tuple[int, int]]) -> str:
    return numbers.percent(sum(z for z, _ in pairs) / sum(n for _, n in pairs)) if pairs else "–"
