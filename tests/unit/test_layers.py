"""The package is built in layers: a module may import its own and those below, wherever the import stands."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from importlib.util import resolve_name
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

SOURCE = Path(__file__).parents[2] / "src"

LAYERS = (
    {"errors", "canon", "progress", "registry"},
    {"models"},
    {"data"},
    {"score"},
    {"plans"},
    {"checkpoint"},
    {"runtime"},
    {"evaluation", "training"},
    {"allocators", "methods"},
    {"report"},
    {"jobs"},
    {"api"},
    {"cli", "__main__"},
)
RANK = {part: rank for rank, layer in enumerate(LAYERS) for part in layer}
ANYWHERE = {"sned.__version__"}  # the one name of the package itself that every layer may ask for

# What the inner parts may need beyond the standard library; everything else stays replaceable.
TENSORS = {"torch", "transformers", "safetensors", "numpy", "pydantic"}
LATE = {"sned.runtime.evolution": {"optuna"}}
"""Modules whose one purpose is an extra package, imported when somebody uses it."""
CORE = ("models", "plans", "score", "runtime", "training", "methods")
THIRD_PARTY = {part: set[str]() for part in LAYERS[0]} | dict.fromkeys(CORE, TENSORS)

HEAVY = ("torch", "transformers", "matplotlib", "jinja2", "datasets", "pandas")


def name_of(path: Path) -> str:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in sorted(SOURCE.glob("sned/**/*.py"))}


def part_of(module: str) -> str:
    """``sned.models.view`` belongs to the part ``models``; ``sned`` itself to none."""
    return module.partition(".")[2].partition(".")[0]


def imports_of(code: str, module: str, *, is_package: bool = False) -> Iterator[tuple[int, str]]:
    """Every (line, dotted name) a module imports: at the top, in functions and under TYPE_CHECKING."""
    package = module if is_package else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = resolve_name("." * node.level + (node.module or ""), package)
            names = [f"{origin}.{alias.name}" for alias in node.names] if origin == "sned" else [origin]
            yield from ((node.lineno, name) for name in names)


def violations(code: str, module: str, *, is_package: bool = False) -> list[str]:
    """Imports that go upward, or that bring a package into a part which does without it."""
    part = part_of(module)
    allowed = THIRD_PARTY.get(part)
    found = []
    for line, name in imports_of(code, module, is_package=is_package):
        root = name.partition(".")[0]
        if root == "sned":
            if name not in ANYWHERE and RANK.get(part_of(name), len(LAYERS)) > RANK[part]:
                found.append(f"line {line}: {name} lies above {part}")
        elif allowed is not None and root not in sys.stdlib_module_names | allowed | LATE.get(module, set()):
            found.append(f"line {line}: {part} does without {root}")
    return found


def test_every_part_has_a_layer() -> None:
    homeless = {part_of(module) for module in MODULES} - {""} - RANK.keys()
    assert not homeless, f"give {homeless} a place in LAYERS"


@pytest.mark.parametrize("module", [module for module in MODULES if part_of(module)])
def test_imports_go_downward(module: str) -> None:
    path = MODULES[module]
    found = violations(path.read_text(encoding="utf-8"), module, is_package=path.name == "__init__.py")
    assert not found, f"{path.relative_to(SOURCE)}\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("module", "code", "wrong"),
    [
        ("sned.models.view", "from sned.errors import SnedError", False),
        ("sned.models.view", "from sned.models.family import Family", False),
        ("sned.models.view", "from .family import Family", False),
        ("sned.models.view", "from sned import __version__", False),
        ("sned.models.view", "from sned import plan", True),
        ("sned.models.view", "from sned import load", True),
        ("sned.models.view", "import sned", True),
        ("sned.models.view", "import sned.plans.ops", True),
        ("sned.models.view", "from ..plan.ops import Op", True),
        ("sned.models.view", "def late():\n    from sned.plans.ops import Op", True),
        ("sned.models.view", "if TYPE_CHECKING:\n    from sned.plans.ops import Op", True),
        ("sned.models.view", "import rich.table", True),
        ("sned.cli.main", "import rich.table\nfrom sned.plans.ops import Op", False),
        ("sned.errors", "import torch", True),
    ],
)
def test_the_rule_itself(module: str, code: str, *, wrong: bool) -> None:
    assert bool(violations(code, module)) is wrong


@pytest.mark.parametrize("module", ["sned", "sned.cli.main"])
def test_start_up_stays_light(module: str) -> None:
    code = f"import sys, {module}; print(*sorted(sys.modules.keys() & {set(HEAVY)!r}))"
    env = {**os.environ, "PYTHONPATH": str(SOURCE)}
    run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == [], f"import {module} brings these in: import them where they are used"
