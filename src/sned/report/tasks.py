"""What a report says of tasks, in words and cells. Imports numbers and the schema.

A cell holds a figure with its standard error; the change is in points, hundredths of a share.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from sned.report import numbers

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sned.report.task_blocks import Tasks, TaskStability

Cells = tuple[str, str, str, str, Literal["better", "worse", ""], str]
"""Label, base, pruned, change, which side that is on, and the exact figures."""

_NAMES = {"acc": "accuracy", "acc_norm": "accuracy by length", "exact_match": "exact match"}
_SHARES = ("acc", "exact_match", "f1")
"""How the names of metrics begin that are shares from 0 to 1."""


def cells(found: Tasks) -> list[Cells]:
    """Return a row for every figure of every task, and one for what a task says of stability."""
    table: list[Cells] = []
    for task, after in found.pruned.results.items():
        before = found.dense.results.get(task, {}) if found.dense else {}
        for key in after:
            metric, _, kind = key.partition(",")
            if not metric.endswith("_stderr"):
                label = f"{task}, {_name(metric, kind)}"
                table.append((label, *_figures(before, after, key, found.protocol[task].higher_is_better.get(metric))))
        if task in found.stability:
            table.append(_stable(task, found.stability[task]))
    return table


def words(found: Tasks) -> list[tuple[str, str]]:
    """Return what each task asked."""
    return [
        (task, f"{how.words}, {numbers.grouped(how.items)} items") for task, how in found.protocol.items() if how.items
    ]


def flips(found: TaskStability) -> str:
    """Say what became of the verdicts of the base."""
    kept, lost, won, never = found.flips.tp, found.flips.fn, found.flips.fp, found.flips.tn
    return f"{kept} right in both, {lost} lost, {won} won, {never} wrong in both"


def _figures(
    before: Mapping[str, float | None], after: Mapping[str, float | None], key: str, up: bool | None
) -> tuple[str, str, str, Literal["better", "worse", ""], str]:
    metric = key.partition(",")[0]
    old, new = before.get(key), after[key]
    shown = (_cell(before, key), _cell(after, key))
    if old is None or new is None:
        return (*shown, "", "", "")
    share = metric.startswith(_SHARES)
    change = _points(new - old) if share else numbers.change(old, new)
    side = "" if up is None or old == new else "better" if (new > old) == up else "worse"
    return (*shown, change, side, "")


def _stable(task: str, found: TaskStability) -> Cells:
    share = f"{numbers.percent(found.agreement)} agree"
    return (f"{task}, stability", "", numbers.decimal(found.stability), share, "", flips(found))


def _cell(figures: Mapping[str, float | None], key: str) -> str:
    """Return ``62.5% ± 3.4``, or a plain number where the metric is no share."""
    if key not in figures:
        return ""
    value, (metric, _, kind) = figures[key], key.partition(",")
    error = figures.get(f"{metric}_stderr,{kind}")
    if value is None:
        return "not finite"
    if metric.startswith(_SHARES):
        return numbers.percent(value) + ("" if error is None else f" ± {100 * error:.1f}")
    return numbers.decimal(value) + ("" if error is None else f" ± {numbers.decimal(error)}")


def _points(change: float) -> str:
    return "same" if change == 0 else f"{100 * change:+.1f} points".replace("-", "−")


def _name(metric: str, kind: str) -> str:
    """Return a metric in words, with lm-eval's filter where that says something."""
    name = _NAMES.get(metric, metric.replace("_", " "))
    return name if kind in ("", "none") else f"{name} ({kind})"
