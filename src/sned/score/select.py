"""Choosing layers and windows of layers from scores. Pure functions of numbers; ties go to the first."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Cut = tuple[int, int]
"""Layers `start` to `end`, half-open."""


def lowest(scores: Mapping[int, float], n: int) -> list[int]:
    """Return the `n` keys with the lowest scores, ascending."""
    return sorted(sorted(scores, key=lambda key: (scores[key], key))[:n])


def ranked_cuts(
    distance: Sequence[Sequence[float]], n: int, boundaries: Sequence[int], taken: Sequence[Cut] = ()
) -> list[Cut]:
    """Return all cuts of `n` layers between `boundaries` that avoid those taken, least distance first.

    Boundaries are the layers that may go, ascending, and the first after them that stays.
    `distance[s][e]` is how far the stream moves from entering layer `s` to entering layer `e`.
    """
    cuts = list(zip(boundaries, boundaries[n:], strict=False))
    free = [(s, e) for s, e in cuts if all(e <= a or s >= b for a, b in taken)]
    return sorted(free, key=lambda cut: (distance[cut[0]][cut[1]], cut))


def fuse(cuts: Sequence[Cut]) -> list[Cut]:
    """Join cuts that touch, in ascending order: a map per cut would be fitted on a stream that never exists."""
    fused: list[Cut] = []
    for start, end in sorted(cuts):
        if fused and fused[-1][1] >= start:
            fused[-1] = (fused[-1][0], max(end, fused[-1][1]))
        else:
            fused.append((start, end))
    return fused


def split_evenly(total: int, parts: int) -> list[int]:
    """Return `parts` whole numbers that add up to `total` and differ by at most one, larger ones first."""
    return [total // parts + (i < total % parts) for i in range(parts)]
