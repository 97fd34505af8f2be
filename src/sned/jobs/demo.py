"""The first command of a new user: ReplaceMe on a small real model. May import everything below `jobs`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sned.jobs.prune import prune
from sned.jobs.request import LoadRequest, PruneRequest, TextRequest
from sned.plans.budget import Budget

if TYPE_CHECKING:
    from pathlib import Path

    from sned.progress import Progress
    from sned.report.schema import Report

CALIBRATION_TOKENS = 32_768
"""Half the usual amount: a first look should take minutes, and the map is well determined by then."""


def demo(out: Path, overwrite: bool, progress: Progress) -> Report:
    """Remove 6 of the 30 layers of SmolLM2-135M-Instruct, beside what chance and UIDL would remove."""
    request = PruneRequest(
        load=LoadRequest("demo"),
        method="replaceme",
        budget=Budget(layers=6),
        out=out,
        overwrite=overwrite,
        calibration=TextRequest(tokens=CALIBRATION_TOKENS),
        baselines=("uidl", "random"),
        command=f"sned prune demo -m replaceme --layers 6 --calib-tokens {CALIBRATION_TOKENS} "
        f"--baseline uidl --baseline random -o {out}",
    )
    return prune(request, progress)
