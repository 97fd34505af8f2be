"""The before/after table for a terminal, as `sned prune` prints it. Imports its neighbours; rich when called."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sned.report import facts, numbers, tasks, trained, zeros

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

    from sned.report.schema import Report

_COLOURS = {"better": "green", "worse": "red", "": ""}


def summary(report: Report) -> Group:
    """Return what rich prints: the outcome in words, the table, remarks, and the warnings."""
    from rich.console import Group
    from rich.text import Text

    parts: list[Text | Table] = [Text(facts.verdict(report), style="bold"), Text(), _table(report), Text()]
    parts += [Text(f"{name}: {value}") for name, value in _lines(report)]
    parts += [Text(f"warning: {warning}", style="yellow") for warning in zeros.warnings(report)]
    return Group(*parts)


def plain(report: Report, width: int = 100) -> str:
    """Return the summary as text without colours, in lines of at most `width` characters."""
    import io

    from rich.console import Console

    console = Console(file=io.StringIO(), width=width, color_system=None, force_terminal=False)
    with console.capture() as capture:
        console.print(summary(report))
    return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"


def _table(report: Report) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 2, 0, 0))
    table.add_column("")
    for title in ("base", "pruned", "change"):
        table.add_column(title, justify="right", no_wrap=True)
    rows = facts.rows(report)
    for row, after in zip(rows, [*rows[1:], None], strict=True):
        last = after is not None and after.section != row.section
        change = Text(row.change, style=_COLOURS[row.side])
        table.add_row(Text(row.label), Text(row.dense), Text(row.pruned), change, end_section=last)
    return table


def _lines(report: Report) -> list[tuple[str, str]]:
    """Return the remarks below the table, those that were measured."""
    lines = [("Note", zeros.use(report, report.sparsity))] if report.sparsity else []
    runs = report.training or []
    lines += [(f"Trained by {item.stage}" if len(runs) > 1 else "Trained", trained.line(item)) for item in runs]
    if report.baselines:
        beside = sorted(report.baselines, key=lambda item: item.perplexity)
        named = ", ".join(f"{item.method} {numbers.decimal(item.perplexity)}" for item in beside)
        lines.append(("Perplexity beside it", named))
        lines += [(item.method, words) for item in beside if (words := facts.compared(report, item))]
    if report.quality:
        text = report.quality.protocol
        lines.append(("Measured on", f"{numbers.grouped(text.tokens)} tokens of {text.source}"))
    if report.tasks:
        lines += tasks.words(report.tasks)
    if report.verify:
        error = numbers.decimal(max(report.verify.max_logit_error, report.verify.cached_decode_error), 2)
        how = "a stock class" if report.verify.stock_class else "trust_remote_code=True"
        lines.append(("Saved, loaded again and compared", f"logits within {error}; loads with {how}"))
    return lines
