"""Where the command line writes: results on stdout, everything else on stderr. Imports rich, and `cli.bars` late.

With ``--json`` stdout carries one document and nothing else, so whatever a library prints goes to stderr too.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:
    from rich.console import RenderableType

    from sned.progress import Progress

_WIDTH_OF_A_PIPE = 110


class Terminal:
    """The two streams, and how much the user wants to read.

    Attributes:
        command: The command line as typed, to be repeated.
        after_interrupt: What a user who stopped the command can do next.
        warned: Warnings already shown.
    """

    def __init__(self, command: str = "sned") -> None:
        self.command = command
        self.json = self.quiet = self.verbose = False
        self.after_interrupt = "start it again"
        self.warned: list[str] = []
        self._stdout = sys.stdout
        self.out, self.err = _console(sys.stdout), _console(sys.stderr)

    def configure(self, *, json: bool, quiet: bool = False, verbose: bool) -> Progress:
        """Take the options that every command has, and return what shows its progress."""
        self.json, self.quiet, self.verbose = json, quiet, verbose
        if json:
            sys.stdout = sys.stderr
        return self._progress()

    def close(self) -> None:
        """Give stdout back, with all that was written to it."""
        sys.stdout = self._stdout
        sys.stdout.flush()

    def show(self, *parts: RenderableType) -> None:
        """Print a result for people."""
        for part in parts:
            with self.out.capture() as captured:
                self.out.print(part, highlight=False, markup=False, soft_wrap=isinstance(part, str))
            lines = captured.get().splitlines()  # tables pad every line to their width
            self._stdout.write("".join(f"{line.rstrip()}\n" for line in lines))

    def document(self, value: Mapping[str, Any] | str) -> None:
        """Print a result for programs: a mapping, or text that is JSON already; NaN becomes null."""
        text = value if isinstance(value, str) else json.dumps(_finite(value), indent=2, ensure_ascii=False)
        self._stdout.write(text.rstrip("\n") + "\n")

    def say(self, label: str, text: str, colour: str) -> None:
        """Print a labelled message on stderr, as long as it is: the terminal may wrap it, and a pipe doesn't."""
        self.err.print(Text.assemble((f"{label}: ", f"bold {colour}"), text), soft_wrap=True, highlight=False)

    def warn(self, message: str) -> None:
        """Print a warning once."""
        if message not in self.warned:
            self.warned.append(message)
            self.say("warning", message, "yellow")

    def _progress(self) -> Progress:
        from sned.cli.bars import Bars, Lines, Quiet

        if sys.stderr.isatty() and not self.err.is_dumb_terminal and not self.quiet:
            return Bars(self)
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # the Hub's own bars would fill a log
        return Quiet(self) if self.quiet else Lines(self)


def prepare_streams() -> None:
    """Make sure that no character can end the program, whatever encoding a terminal claims to have."""
    for stream in (sys.stdout, sys.stderr):
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="replace")


def display(path: Path) -> str:
    """Return a path as a user would type it from here."""
    here = Path.cwd()
    full = path.expanduser().absolute()
    return str(full.relative_to(here)) if full != here and full.is_relative_to(here) else str(full)


def _console(file: Any) -> Console:
    console = Console(file=file)
    return console if console.is_terminal or "COLUMNS" in os.environ else Console(file=file, width=_WIDTH_OF_A_PIPE)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value
