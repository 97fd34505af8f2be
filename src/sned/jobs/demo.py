"""The first command of a new user: ReplaceMe on a small real model. May import everything below `jobs`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sned.jobs.prune import prune
from sned.jobs.request import LoadRequest, PruneRequest
from sned.plans.budget import Budget

if TYPE_CHECKING:
    from pathlib import Path

    from sned.progress import Progress
    from sned.report.schema import Report


def demo(out: Path, overwrite: bool, progress: Progress) -> Report:
    """Remove 6 of the 30 layers of SmolLM2-135M-Instruct, beside what chance and UIDL would remove."""
    request = PruneRequest(
        load=LoadRequest("demo"),
        method="replaceme",
        budget=Budget(layers=6),
        out=out,
        overwrite=overwrite,
        baselines=("uidl", "random"),
        command=f"sned prune demo -m replaceme --layers 6 --baseline uidl --baseline random -o {out}",
    )
    return prune(request, progress)
