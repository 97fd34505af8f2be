"""Progress: bars that leave a clean screen, lines that a log can hold, and silence on request."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any, Literal

import pytest
from rich.console import Console

from sned.cli import bars, requests, tables
from sned.cli.bars import Bars, Lines, Quiet
from sned.cli.terminal import Terminal, display
from sned.errors import BudgetError, ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from sned.plans.budget import Budget


class Clock:
    """A clock that moves when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(bars.time, "monotonic", clock)
    return clock


@pytest.fixture
def terminal() -> Terminal:
    made = Terminal()
    made.err = Console(file=io.StringIO(), width=90, force_terminal=True, color_system=None)
    return made


def written(terminal: Terminal) -> str:
    file: Any = terminal.err.file
    return file.getvalue()


def test_lines_tell_start_tenths_and_end(terminal: Terminal, clock: Clock) -> None:
    with Lines(terminal).task("calibrate", 100) as advance:
        for _ in range(100):
            clock.now += 1
            advance(1)
    lines = written(terminal).splitlines()
    assert lines[0] == "calibrate ..."
    assert lines[1] == "calibrate 10%, 1\u202fmin 30\u202fs left"
    assert len(lines) == 11
    assert lines[-1] == "calibrate: done in 1\u202fmin 40\u202fs"


def test_what_was_done_before_says_nothing_of_the_pace(terminal: Terminal, clock: Clock) -> None:
    """A resumed job begins far ahead; half a minute for each hundredth that is left is what counts."""
    with Lines(terminal).task("train", 100) as advance:
        clock.now += 0.1
        advance(80)
        for _ in range(20):
            clock.now += 30
            advance(1)
    assert "train 90%, 5\u202fmin 00\u202fs left" in written(terminal)


def test_short_tasks_write_two_lines(terminal: Terminal, clock: Clock) -> None:
    with Lines(terminal).task("save", 50) as advance:
        for _ in range(50):
            advance(1)
    assert len(written(terminal).splitlines()) == 2


@pytest.mark.parametrize("kind", [Lines, Bars])
def test_tasks_nest_and_odd_totals_do_no_harm(terminal: Terminal, kind: type[Lines | Bars]) -> None:
    progress = kind(terminal)
    with progress.task("outer", 2) as outer:
        with progress.task("inner", 0) as inner:
            inner(1)
        outer(5)
        progress.warn("[careful]")
    assert "[careful]" in written(terminal)


def test_bars_leave_a_line_for_what_took_long(terminal: Terminal, clock: Clock) -> None:
    with Bars(terminal).task("calibrate", 4) as advance:
        clock.now += 30
        advance(2)
        clock.now += 30
        advance(2)
    assert "✓ calibrate  1\u202fmin 00\u202fs" in written(terminal)


def test_bars_go_away_when_a_task_fails(terminal: Terminal, clock: Clock) -> None:
    progress = Bars(terminal)

    def work() -> None:
        with progress.task("outer", 2), progress.task("inner", 2):
            clock.now += 60
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert "✓" not in written(terminal)
    assert progress._live is None
    with progress.task("again", 1):
        pass


def test_a_warning_is_shown_once(terminal: Terminal) -> None:
    for _ in range(2):
        terminal.warn("few tokens")
    assert written(terminal).count("few tokens") == 1


def test_paths_are_shown_as_they_would_be_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert display(tmp_path / "runs" / "a") == "runs/a"
    assert display(tmp_path.parent / "b") == str(tmp_path.parent / "b")


def test_bars_of_a_table_show_small_values_beside_large_ones() -> None:
    values = [1.0, 0.001, None, 0.0]
    assert tables.wants_log(values)
    drawn = tables.bars(values, 10, log=True)
    assert len(drawn[0]) == 10
    assert drawn[1]
    assert drawn[2:] == ["", ""]
    assert not tables.wants_log([1.0, 0.5])
    assert [len(bar) for bar in tables.bars([1.0, 0.5], 10, log=False)] == [10, 5]
    assert not tables.wants_log([None, 0.0])
    assert tables.bars([None, 0.0], 10, log=True) == ["", ""]


def test_news_stand_beside_the_innermost_bar_until_it_is_over(terminal: Terminal) -> None:
    progress = Bars(terminal)
    with progress.task("outer", 2), progress.task("inner", 2):
        progress.note("best so far: [attn] 7")
        assert progress._live is not None
        progress._live.refresh()
        shown = written(terminal)
        progress.note("best so far: MLP 3")
        progress._live.refresh()
    inner = [line for line in shown.splitlines() if "inner" in line]
    assert "best so far: [attn] 7" in inner[-1]
    assert not any("best" in line for line in shown.splitlines() if "outer" in line)
    later = written(terminal).removeprefix(shown)
    assert "MLP 3" in later
    assert "attn" not in later
    with progress.task("again", 1):
        progress._live.refresh()
    assert "best" not in written(terminal).rpartition("again")[2]


@pytest.mark.parametrize("kind", [Lines, Quiet])
def test_logs_keep_no_news(terminal: Terminal, kind: type[Lines | Quiet]) -> None:
    kind(terminal).note("best so far: MLP 3")
    assert written(terminal) == ""


def budget(method: str, *, remove_of: Literal["all", "body"] = "all", pattern: str = "", **given: Any) -> Budget:
    settings = {"pattern": pattern} if pattern else {}
    nothing: dict[str, Any] = dict.fromkeys(("layers", "blocks", "remove", "sparsity"))
    return requests.budget(method, settings, remove_of=remove_of, **(nothing | given))


def test_budgets(monkeypatch: pytest.MonkeyPatch) -> None:
    assert budget("uidl", layers=6).layers == 6
    assert budget("uidl", remove="25%", remove_of="body").remove == 0.25
    assert budget("blockpruner", blocks=12).blocks == 12
    assert budget("wanda", sparsity="60%").sparsity == 0.6
    assert budget("wanda", sparsity="0").sparsity == 0
    assert budget("wanda", pattern="2:8").sparsity == 0.75, "a pattern says how much"
    with pytest.raises(ConfigError, match="25%"):
        budget("uidl", remove="25")
    with pytest.raises(ConfigError, match="60%"):
        budget("wanda", sparsity="60")
    with pytest.raises(BudgetError):
        budget("uidl", layers=-1)
    with pytest.raises(BudgetError, match="less than 1"):
        budget("wanda", sparsity="100%")
    with pytest.raises(ConfigError, match="no budget"):
        budget("uidl")
    with pytest.raises(ConfigError, match="no budget"):
        budget("wanda", pattern="row")
    monkeypatch.setattr("sned.runtime.method.Method.default_layers", 4)
    assert budget("uidl").layers == 4
