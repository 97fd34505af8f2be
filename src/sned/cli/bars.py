"""Progress of long work on stderr: bars with the time left on a terminal, a few plain lines elsewhere. Imports rich."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.progress import BarColumn, ProgressColumn, Task, TaskID, TextColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

from sned.progress import Progress
from sned.report import numbers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sned.cli.terminal import Terminal

_WORTH_A_LINE = 1.0  # seconds; a task done sooner leaves no trace on a terminal
_STEPS = 10  # plain lines per task
_PACE = 2.0  # seconds between two of them, at least
_AT_ONCE = 0.5  # seconds; what is done sooner was not done now


class Quiet(Progress):
    """Shows warnings only."""

    def __init__(self, terminal: Terminal) -> None:
        self.terminal = terminal

    def warn(self, message: str) -> None:
        """Print a warning."""
        self.terminal.warn(message)


class Lines(Quiet):
    """Writes a line when a task begins, at about every tenth of it, and when it ends; for logs and pipes."""

    @contextmanager
    def task(self, label: str, total: int) -> Iterator[Callable[[int], None]]:
        """Open a task of `total` units and give the callable that advances it."""
        self.info(f"{label} ...")
        watch = _Watch(total)
        spoken, last = 0, time.monotonic()

        def advance(units: int) -> None:
            nonlocal spoken, last
            watch.advance(units)
            tenth, now = int(_STEPS * watch.share), time.monotonic()
            if spoken < tenth < _STEPS and now - last >= _PACE:
                spoken, last = tenth, now
                self.info(f"{label} {watch.share:.0%}, {watch.left}")

        yield advance
        self.info(f"{label}: done in {numbers.duration(watch.elapsed)}")

    def info(self, message: str) -> None:
        """Print a message."""
        self.terminal.err.print(Text(message), soft_wrap=True)


class Bars(Quiet):
    """Draws one bar per open task, and leaves a line for each that took a while."""

    def __init__(self, terminal: Terminal) -> None:
        super().__init__(terminal)
        self._live: RichProgress | None = None
        self._open: list[TaskID] = []
        self._said = ""

    @contextmanager
    def task(self, label: str, total: int) -> Iterator[Callable[[int], None]]:
        """Open a task of `total` units and give the callable that advances it."""
        if self._live is None:
            said = _Note(lambda task: self._said if self._open[-1:] == [task] else "")
            columns = (TextColumn("{task.description}", markup=False), BarColumn(32), _Share(), _Left(), said)
            self._live = RichProgress(*columns, console=self.terminal.err, transient=True, refresh_per_second=4)
            self._live.start()
        live, watch = self._live, _Watch(total)
        indent = "  " * len(self._open)
        number = live.add_task(f"{indent}{label:<20}", total=max(1, total), watch=watch)
        self._open.append(number)

        def advance(units: int) -> None:
            watch.advance(units)
            live.update(number, completed=watch.share * max(1, total))

        try:
            yield advance
            if watch.elapsed >= _WORTH_A_LINE:
                line = f"{indent}{label}  {numbers.duration(watch.elapsed)}"
                live.console.print(Text.assemble(("✓ ", "green"), line), soft_wrap=True)
        finally:
            live.remove_task(number)
            self._open.remove(number)
            if not self._open:
                live.stop()
                self._live, self._said = None, ""

    def note(self, text: str) -> None:
        """Show a few words at the end of the innermost bar, until the next ones."""
        self._said = text

    def info(self, message: str) -> None:
        """Print a message above the bars."""
        self.terminal.err.print(Text(message, style="dim"), soft_wrap=True)


class _Watch:
    """How far a task is, and how long it will take if it goes on like this.

    What is done at once was known before, as when a job is resumed, and says nothing of the pace.
    """

    def __init__(self, total: int) -> None:
        self.total, self.done, self._start = total, 0, time.monotonic()
        self._paced = (0.0, 0)  # from when and where on the pace is taken

    def advance(self, units: int) -> None:
        """Count what was done."""
        self.done += units
        if self.elapsed < _AT_ONCE:
            self._paced = (self.elapsed, self.done)

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self._start

    @property
    def share(self) -> float:
        return min(1.0, self.done / self.total) if self.total > 0 else 1.0

    @property
    def left(self) -> str:
        """The time left in words, or as long as there is no pace yet, that gone by."""
        since, before = self._paced
        if self.done <= before:
            return numbers.duration(self.elapsed)
        pace = (self.elapsed - since) / (self.done - before)
        return f"{numbers.duration(pace * max(0, self.total - self.done))} left"


class _Note(ProgressColumn):
    """The latest news of what is running."""

    def __init__(self, read: Callable[[TaskID], str]) -> None:
        super().__init__()
        self._read = read

    def render(self, task: Task) -> Text:
        return Text(self._read(task.id), style="dim")


class _Share(ProgressColumn):
    """How much of a task is done."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.fields['watch'].share:4.0%}")


class _Left(ProgressColumn):
    """Time left, from the whole task so far: steps may be minutes apart, too few for a moving average."""

    def render(self, task: Task) -> Text:
        return Text(task.fields["watch"].left, style="cyan")
