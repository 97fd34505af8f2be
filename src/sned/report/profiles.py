"""What is said of the shares of zeros that allocators would give, in words and rows. Imports facts and numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sned.report import numbers
from sned.report.facts import span

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def lead(found: Mapping[str, Any]) -> str:
    """Say what the shares are."""
    whole = f"{100 * found['sparsity']:g}%"
    return f"Share of its weights that each layer would lose to {found['method']}, {whole} in all, by allocator"


def rows(scan: Mapping[str, Any]) -> list[Sequence[str]]:
    """Return layers and the share that each allocator gives them; layers whose shares read alike make one row."""
    alike: dict[tuple[str, ...], list[int]] = {}
    columns = [profile["layers"] for profile in scan["profiles"]["allocators"].values()]
    for layer, *shares in zip((row["layer"] for row in scan["layers"]), *columns, strict=True):
        alike.setdefault(tuple(_percent(share) for share in shares), []).append(layer)
    return [(span(layers), *cells) for cells, layers in alike.items()]


def extremes(scan: Mapping[str, Any], name: str) -> tuple[str, str]:
    """Return the lowest and the highest share that an allocator gives, and to which layers: ``48.1% (2, 5–7)``."""
    layers: dict[str, list[int]] = {}
    shares = scan["profiles"]["allocators"][name]["layers"]
    present = [(share, row["layer"]) for share, row in zip(shares, scan["layers"], strict=True) if share is not None]
    for share, layer in present:
        layers.setdefault(_percent(share), []).append(layer)
    low, high = (_percent(choose(present)[0]) for choose in (min, max))
    if low == high:
        return low, high
    return f"{low} ({span(layers[low], 4)})", f"{high} ({span(layers[high], 4)})"


def basis(profile: Mapping[str, Any]) -> str:
    """Say what an allocator went by, in its own words; empty where it left none."""
    evidence = profile["evidence"]
    words = evidence.get("evidence") if isinstance(evidence, dict) else None
    return words if isinstance(words, str) else ""


def _percent(share: float | None) -> str:
    return "–" if share is None else numbers.percent(share)
