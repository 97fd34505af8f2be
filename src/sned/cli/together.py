"""Jobs that processes started by a launcher carry out together."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    from sned.progress import Progress
    from sned.runtime.crew import Crew

Request = TypeVar("Request")
Result = TypeVar("Result")

COMMANDS = ("heal", "plan", "prune")
"""Commands that run in several processes."""


def several() -> bool:
    """Tell whether a launcher has started several processes; read here, since what joins them imports torch."""
    return os.environ.get("WORLD_SIZE", "1") != "1"


def carry_out(
    job: Callable[[Request, Progress, Crew], Result | None], request: Request, progress: Progress
) -> Result | None:
    """Carry out a job in all processes, of which one speaks; return what that one has, and None elsewhere."""
    from sned.progress import SILENT
    from sned.runtime.crew import joined

    with joined() as crew:
        return job(request, progress if crew.leads else SILENT, crew)
