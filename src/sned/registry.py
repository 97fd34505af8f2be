"""Finding things by name among installed packages, sned's own included. May import `errors`."""

from __future__ import annotations

import difflib
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING

from sned.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable


@cache
def entries(group: str) -> dict[str, EntryPoint]:
    """Return the entry points of a group by name.

    Raises:
        ConfigError: two packages claim one name.
    """
    found: dict[str, EntryPoint] = {}
    for entry in sorted(entry_points(group=group), key=lambda e: e.name):
        other = found.setdefault(entry.name, entry)
        if other.value != entry.value:
            raise ConfigError(f"{entry.name!r} is claimed by {other.value} and by {entry.value}")
    return found


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a hint that names the closest known names."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(sorted(names))}"
