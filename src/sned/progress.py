"""Progress of long work, told to whoever renders it. Imports nothing.

The library only calls `Progress`; the command line supplies one that draws bars. The default is silent.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Progress:
    """Receives progress and messages, and ignores them all; subclasses show them."""

    @contextmanager
    def task(self, label: str, total: int) -> Iterator[Callable[[int], None]]:
        """Open a task of `total` units and give the callable that advances it."""
        yield lambda _units: None

    def note(self, text: str) -> None:
        """Show a few words beside what is running, in the place of the last ones; they are not kept."""

    def info(self, message: str) -> None:
        """Tell something worth knowing."""

    def warn(self, message: str) -> None:
        """Tell something the user should act on; it is also kept in the report."""


SILENT = Progress()
