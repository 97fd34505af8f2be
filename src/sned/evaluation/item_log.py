"""Logs of a task: one JSON object a line and item, so that two models can be compared long after they ran.

May import `data` and its neighbours.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from sned.data.readers import existing_file
from sned.errors import DataError
from sned.evaluation.items import ItemScore

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

SUFFIX = ".jsonl"
_KEYS = ("task", "item", "nll", "gold", "length")
_HINT = f"a line holds {{{', '.join(_KEYS)}}} of one item; `sned eval --items FOLDER` writes such logs"


def write_log(path: Path, items: Sequence[ItemScore]) -> None:
    """Write the items of one task."""
    path.write_text("".join(json.dumps(asdict(item), allow_nan=False) + "\n" for item in items), encoding="utf-8")


def read_log(path: Path) -> tuple[ItemScore, ...]:
    """Read what `write_log` wrote; keys beyond its own are passed over.

    Raises:
        DataError: the file is missing, empty or malformed, or holds several tasks, or an item twice.
    """
    file = existing_file(str(path))
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} could not be read: {error}", hint=_HINT) from error
    items: list[ItemScore] = []
    seen: set[str | int] = set()
    for number, line in enumerate(lines, start=1):
        try:
            item = _item(json.loads(line))
            if items and item.task != items[0].task:
                raise ValueError(f"the task is {item.task!r}, and that of the first item {items[0].task!r}")
            if item.item in seen:
                raise ValueError(f"the item {item.item!r} was there before")
        except ValueError as error:
            raise DataError(f"{file}, line {number}, is no item of a task: {error}.", hint=_HINT) from error
        seen.add(item.item)
        items.append(item)
    return tuple(items)


def require_paired(
    first: Sequence[ItemScore], second: Sequence[ItemScore], names: tuple[str, str] = ("the first", "the second")
) -> None:
    """Refuse two logs that are not of the same items in the same order.

    Raises:
        DataError: they differ; the first difference is named.
    """
    for number, (a, b) in enumerate(zip(first, second, strict=False), start=1):
        told_a, told_b = _identity(a), _identity(b)
        for what, mine in told_a.items():
            if mine != told_b[what]:
                raise _unlike(f"{what} of item {number} is {mine!r} in {names[0]} and {told_b[what]!r} in {names[1]}")
    if len(first) != len(second):
        raise _unlike(f"{names[0]} holds {len(first):,} items, and {names[1]} {len(second):,}")


def _identity(item: ItemScore) -> dict[str, Any]:
    """Return what two models must have in common, by what it is called."""
    return {"the task": item.task, "the name": item.item, "the number of choices": len(item.nll)} | {
        "the right choice": item.gold
    }


def _unlike(difference: str) -> DataError:
    return DataError(
        f"the logs are not of the same items: {difference}.",
        hint="evaluate both models on the same task, with the same --task-items, --seed and text",
    )


def _item(row: Any) -> ItemScore:
    """Return the item that a line holds.

    Raises:
        ValueError: it holds none.
    """
    if not isinstance(row, dict):
        raise ValueError("it is no JSON object")
    if missing := [key for key in _KEYS if key not in row]:
        raise ValueError(f"{missing[0]!r} is missing")
    task, item, nll, gold, length = (row[key] for key in _KEYS)
    if not isinstance(task, str):
        raise ValueError("'task' is no text")
    if not isinstance(item, str | int):
        raise ValueError("'item' is neither text nor a whole number")
    if not (isinstance(nll, list) and len(nll) > 1 and all(map(_is_finite, nll))):
        raise ValueError("'nll' is no list of two or more finite numbers")
    if not (isinstance(length, list) and len(length) == len(nll) and all(map(_is_whole, length)) and min(length) > 0):
        raise ValueError("'length' is no list of as many positive whole numbers as 'nll'")
    if not (_is_whole(gold) and 0 <= gold < len(nll)):
        raise ValueError(f"'gold' is none of the choices 0 to {len(nll) - 1}")
    return ItemScore(task, item, tuple(map(float, nll)), gold, tuple(length))


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
