"""Whole widths from logits: how many units each gate keeps, in steps that hardware likes. Pure functions.

May import nothing of sned.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch


def default_step(size: int) -> int:
    """Return the power of two by which a width changes: 64, or fewer so that there are eight steps or more."""
    step = 64
    while step > 1 and size < 8 * step:
        step //= 2
    return step


def nearest_widths(logits: Sequence[torch.Tensor], steps: Sequence[int]) -> list[int]:
    """Return for each gate how many units are kept more often than not, to the nearest step; at least one step."""
    widths = []
    for own, step in zip(logits, steps, strict=True):
        wanted = int((own > 0).sum())
        widths.append(min(len(own), max(step, step * round(wanted / step))))
    return widths


def meet_budget(
    logits: Sequence[torch.Tensor],
    widths: Sequence[int],
    steps: Sequence[int],
    most: int,
    params_of: Callable[[Sequence[int]], int],
) -> list[int]:
    """Return widths with which a model has at most `most` parameters, and would have more with one step more.

    One step of one gate changes at a time: of all those that can be cut the one with the lowest mean logit, and before
    that, where there is room, of all those that are cut the one with the highest. Ties go to the first.

    Args:
        logits: Of each gate, `[units]`.
        widths: To begin with.
        steps: By how much each width changes.
        most: Parameters.
        params_of: Counts them for all widths; it grows with each.
    """
    ranked = [own.double().sort(descending=True, stable=True).values for own in logits]
    found = list(widths)

    def at(gate: int, width: int) -> list[int]:
        return [*found[:gate], width, *found[gate + 1 :]]

    while cut := [g for g, own in enumerate(ranked) if found[g] < len(own)]:
        wider = {g: min(len(ranked[g]), found[g] + steps[g]) for g in cut}
        best = max(cut, key=lambda g: float(ranked[g][found[g] : wider[g]].mean()))
        if params_of(changed := at(best, wider[best])) > most:
            break
        found = changed
    while params_of(found) > most:
        narrower = {g: (width - 1) // steps[g] * steps[g] for g, width in enumerate(found) if width > steps[g]}
        worst = min(narrower, key=lambda g: float(ranked[g][narrower[g] : found[g]].mean()))
        found = at(worst, narrower[worst])
    return found


def kept_units(logits: torch.Tensor, width: int) -> list[int]:
    """Return the places of the highest logits, ascending; ties go to the first."""
    return sorted(logits.argsort(descending=True, stable=True)[:width].tolist())
