"""The end of a recipe: one report of all stages, and the last model in its place.

May import everything below `jobs`.
"""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

from sned.checkpoint.folders import put_in_place
from sned.jobs.recipe_file import write_recipe
from sned.jobs.stages import FOUND, ITEMS
from sned.report.card import base_metadata, render_card
from sned.report.html import render
from sned.report.schema import Report, dump
from sned.report.schema import load as load_report

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from sned.jobs.request import RunRequest


def conclude(models: Sequence[Path], others: Sequence[Path], request: RunRequest, out: Path) -> Report:
    """Write what tells of all stages into the last model: report, page, card, log, recipe; and give it its place.

    Whatever this overwrites it makes from what the stages left, so that it may be interrupted and repeated.

    Args:
        models: The folders of the models that stages wrote, in order.
        others: The folders of what stages measured.
        request: What was asked.
        out: Where the last model goes.

    Raises:
        CheckpointError: the place is taken, or the disk full.
    """
    made = [load_report(_as_made(folder, "report.json")) for folder in models]
    logs = [_as_made(folder, "log.jsonl") for folder in models] + [folder / "log.jsonl" for folder in others]
    found = [json.loads((folder / FOUND).read_text(encoding="utf-8")) for folder in others]
    report = merged(made, found, request.command)
    folder = models[-1]
    dump(report, folder / "sned" / "report.json")
    (folder / "sned" / "report.html").write_text(render(report), encoding="utf-8")
    (folder / "sned" / "log.jsonl").write_text("".join(log.read_text(encoding="utf-8") for log in logs))
    for other in others:
        if (other / ITEMS).is_dir():
            shutil.copytree(other / ITEMS, folder / "sned" / ITEMS, dirs_exist_ok=True)
    card = folder / "README.md"
    header = base_metadata(folder)
    written = render_card(report, header, name=out.name, base_model=header.get("base_model"), recipe=True)
    card.write_text(written, encoding="utf-8")
    recipe = request.recipe.model_copy(update={"out": str(request.out)})
    write_recipe(recipe, folder / "sned" / "recipe.yaml")
    put_in_place(folder, out, overwrite=request.overwrite)
    return report


def merged(made: Sequence[Report], found: Sequence[dict[str, Any]], command: str) -> Report:
    """Return the report of the last model with all that other stages have to say of it.

    That is tasks, samples and speed; what the pruned model was compared with, if judged by the same text; the cost of
    all stages together, and their warnings.
    """
    parts = [*(report.model_dump(mode="json", by_alias=True) for report in made), *found]
    whole: dict[str, Any] = dict(parts[len(made) - 1])
    for blocks in found:
        whole |= {key: value for key, value in blocks.items() if key in ("tasks", "samples", "speed")}
    if len(made) > 1 and _text_of(made[0]) == _text_of(made[-1]):
        whole["baselines"] = [*whole["baselines"], *parts[0]["baselines"]]
    whole["cost"] = _total([part["cost"] for part in parts if part["cost"]])
    whole["warnings"] = list(dict.fromkeys(line for part in parts for line in part["warnings"]))
    return Report.model_validate(whole | {"command": command})


def _as_made(folder: Path, name: str) -> Path:
    """Return a file that a stage wrote, which is put aside before what tells of all stages takes its place."""
    aside = folder.with_name(f"{folder.name}.{name}")
    if not aside.exists():
        partial = aside.with_suffix(".partial")
        shutil.copyfile(folder / "sned" / name, partial)
        partial.replace(aside)
    return aside


def _text_of(report: Report) -> str | None:
    return report.quality.protocol.digest if report.quality else None


def _total(costs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the cost of several jobs together: the sum of their work, and the most memory that one of them took."""
    seconds: dict[str, float] = {}
    for cost in costs:
        for phase, spent in cost["seconds"].items():
            if spent is not None:
                seconds[phase] = seconds.get(phase, 0.0) + spent
    return {
        "seconds": seconds,
        "forward_layer_tokens": sum(cost["forward_layer_tokens"] for cost in costs),
        "peak_rss_bytes": max(cost["peak_rss_bytes"] for cost in costs),
    }
