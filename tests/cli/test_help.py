"""Help that starts at once, tells the truth, and shows examples that work."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import typer
from kit.planning import REFUSED
from kit.tiny import FAMILY_NAMES, model_type

import sned as package
from sned.cli import main as module
from sned.cli.terminal import Terminal

if TYPE_CHECKING:
    from collections.abc import Callable

    from .conftest import Outcome

ROOT = typer.main.get_command(module.app)
COMMANDS = ["prune", "plan", "apply", "import", "heal", "classify", "run", "demo", "show", "diff"]
COMMANDS += ["inspect", "scan", "methods", "eval", "stability", "bench", "report", "pack", "unpack"]
EXAMPLES = [
    line.strip()
    for command in ROOT.commands.values()  # type: ignore[attr-defined]
    for line in (command.epilog or "").splitlines()
    if line.strip().startswith("sned ")
]


def test_the_commands_are_those_promised() -> None:
    assert sorted(ROOT.commands) == sorted(COMMANDS)  # type: ignore[attr-defined]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(sned: Callable[..., Outcome], command: str) -> None:
    got = sned(command, "--help")
    assert got.code == 0
    assert f"sned {command}" in got.out.partition("Examples")[2]
    assert got.err == ""


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_examples_are_command_lines(example: str) -> None:
    _, command, *rest = shlex.split(example)
    context = ROOT.commands[command].make_context(command, rest, obj=Terminal())  # type: ignore[attr-defined]
    assert context.params


def test_version(sned: Callable[..., Outcome]) -> None:
    got = sned("--version")
    assert (got.code, got.out) == (0, f"sned {package.__version__}\n")


def test_without_arguments_the_help_is_shown(sned: Callable[..., Outcome]) -> None:
    got = sned()
    assert got.code == 2
    assert "prune" in got.out + got.err


def test_the_module_is_the_command_and_a_closed_pipe_is_quiet() -> None:
    command = [sys.executable, "-m", "sned", "--help"]
    env = {**os.environ, "PYTHONPATH": str(package.__path__[0]).removesuffix("sned")}
    whole = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert whole.returncode == 0
    assert "Prune a model" in whole.stdout
    read, write = os.pipe()
    os.close(read)
    cut = subprocess.run(command, env=env, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert cut.stderr == ""


@pytest.mark.parametrize("name", ["shortgpt", "flap"])
def test_a_method_lists_the_families_that_it_works_on(sned: Callable[..., Outcome], name: str) -> None:
    text = " ".join(sned("methods", name).out.split())
    listed = text.partition("Works on ")[2].partition(" Looks at")[0].split(", ")
    assert set(listed) == {model_type(family) for family in FAMILY_NAMES if family not in REFUSED.get(name, ())}
