"""Finding the lowest of a row of values that falls and then rises, without asking for all of them.

A pure function of numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable

GOLDEN = (3 - math.sqrt(5)) / 2


def lowest_of_valley(n: int, value: Callable[[int, float], float]) -> tuple[int, dict[int, float]]:
    """Return the index of the lowest of `n` values, the first of equal ones, and the values that were asked for.

    The lowest so far is closed in from both sides, in steps of the golden section. If the values that came back do
    not fall and then rise, or several are the lowest, all are asked for: on level ground nothing says which way is
    down.

    Args:
        n: How many there are, at least one.
        value: Gives the value at an index. It may give up and return infinity as soon as it sees that the value is
            larger than the bound it is given. While the shape is to be seen there is no bound; afterwards it is the
            lowest so far.
    """
    known: dict[int, float] = {}
    following: int | None = round(GOLDEN * (n - 1))
    while following is not None:
        known[following] = value(following, math.inf)
        following = _next(known, n)
    if not _is_valley([known[i] for i in sorted(known)]):
        for index in sorted(set(range(n)) - set(known)):
            known[index] = value(index, min(known.values()))
    return _lowest(known), known


def _next(known: dict[int, float], n: int) -> int | None:
    """Return the index to ask for next, or None where both neighbours of the lowest are known."""
    best = _lowest(known)
    below = best - max((i for i in known if i < best), default=-1)
    above = min((i for i in known if i > best), default=n) - best
    if max(below, above) == 1:
        return None
    return best + max(1, round(GOLDEN * above)) if above >= below else best - max(1, round(GOLDEN * below))


def _lowest(known: dict[int, float]) -> int:
    return min(known, key=lambda i: (known[i], i))


def _is_valley(values: list[float]) -> bool:
    """Tell whether values fall to one that is the lowest, and then rise."""
    if values.count(min(values)) != 1:
        return False
    lowest = values.index(min(values))
    falling, rising = values[: lowest + 1], values[lowest:]
    return falling == sorted(falling, reverse=True) and rising == sorted(rising)
