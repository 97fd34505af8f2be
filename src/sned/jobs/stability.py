"""Comparing two models by the logs of their items, long after they ran. May import everything below `jobs`."""

from __future__ import annotations

from dataclasses import asdict
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal

from sned.errors import DataError
from sned.evaluation.item_log import SUFFIX, read_log, require_paired
from sned.evaluation.stability import AgreementName, ScoreName, Stability, measure_stability

if TYPE_CHECKING:
    from pathlib import Path


def compare_logs(
    base: Path,
    pruned: Path,
    *,
    ddof: Literal[0, 1] = 1,
    score: ScoreName = "nll",
    agree: AgreementName = "correctness",
) -> dict[str, Any]:
    """Return the stability of every task that two logs, or two folders of logs, are of.

    Raises:
        DataError: a log is missing or malformed, or the two are not of the same items.
        NumericalError: perplexities are too large for a number.
    """
    tasks: dict[str, Any] = {}
    for name, first, second in _pairs(base, pruned):
        mine, other = read_log(first), read_log(second)
        require_paired(mine, other, (str(first), str(second)))
        found = measure_stability(mine, other, ddof=ddof, score=score, agreement=agree)
        tasks[name or mine[0].task] = {"items": len(mine)} | of_stability(found, ddof=ddof, score=score, agree=agree)
    means = {key: fmean(row[key] for row in tasks.values()) for key in ("stability", "agreement", "legacy")}
    return {"base": str(base), "pruned": str(pruned), "tasks": tasks, "mean": means}


def of_stability(
    found: Stability,
    *,
    ddof: Literal[0, 1] = 1,
    score: ScoreName = "nll",
    agree: AgreementName = "correctness",
) -> dict[str, Any]:
    """Return a stability as reports hold it, with how it was computed."""
    return asdict(found) | {"ddof": ddof, "score": score, "agree": agree}


def _pairs(base: Path, pruned: Path) -> list[tuple[str, Path, Path]]:
    """Return the pairs of logs, with the name of each pair out of folders."""
    base, pruned = base.expanduser(), pruned.expanduser()
    if missing := [path for path in (base, pruned) if not path.exists()]:
        raise DataError(f"{missing[0]} does not exist.", hint="`sned eval --tasks NAME --items FOLDER` writes logs")
    if not (base.is_dir() or pruned.is_dir()):
        return [("", base, pruned)]
    if not (base.is_dir() and pruned.is_dir()):
        folder, other = (base, pruned) if base.is_dir() else (pruned, base)
        raise DataError(f"{folder} is a folder, and {other} is not.", hint="compare two logs, or two folders of logs")
    names = [{file.name for file in folder.glob(f"*{SUFFIX}") if file.is_file()} for folder in (base, pruned)]
    if not (names[0] or names[1]):
        raise DataError(f"{base} holds no logs (*{SUFFIX}).", hint="name the folder of one model, such as items/base")
    if alone := sorted(names[0] ^ names[1]):
        has, lacks = (base, pruned) if alone[0] in names[0] else (pruned, base)
        raise DataError(f"{has} holds {alone[0]}, and {lacks} does not.", hint="set both models the same tasks")
    return [(name.removesuffix(SUFFIX), base / name, pruned / name) for name in sorted(names[0])]
