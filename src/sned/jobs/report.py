"""Writing the page of a finished run again. May import everything below `jobs`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sned.report.html import render
from sned.report.schema import load

if TYPE_CHECKING:
    from pathlib import Path


def rewrite(out: Path) -> Path:
    """Render `report.html` from the `report.json` of a folder that sned wrote, and return its path.

    Raises:
        CheckpointError: the folder has no readable report.
    """
    folder = out / "sned"
    page = folder / "report.html"
    page.write_text(render(load(folder / "report.json")), encoding="utf-8")
    return page
