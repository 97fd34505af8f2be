"""Recipes on disk: YAML that means what it seems to mean, settings from the command line, and errors with a place.

May import everything below `jobs`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import ValidationError

from sned.errors import ConfigError
from sned.jobs.recipe import KINDS, UNKNOWN, Recipe, document
from sned.jobs.resolve import located, resolve

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

_FLOAT = re.compile(r"[-+]?(\.\d+|\d[\d_]*(\.\d*)?)([eE][-+]?\d+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_INT = re.compile(r"[-+]?(0|[1-9][\d_]*)")
_AGAIN = "# The whole job, defaults included. To repeat it: sned run {name} -o ELSEWHERE\n"


class _Loader(yaml.SafeLoader):
    """Reads scalars as YAML 1.2 does: `on` is a word, `13:20` a text, `1e-4` a number. No key may stand twice."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - what the base class has, emptied

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.value in seen:
                problem = f"the key {key.value} stands twice" if isinstance(key, yaml.ScalarNode) else "a key is a word"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Puts what `_Loader` or other readers would take for a number or a switch into quotes, and names on one line."""

    def represent_list(self, data: Any) -> Any:
        flat = not any(isinstance(item, dict | list) for item in data)
        return self.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=flat)


_Dumper.add_representer(list, _Dumper.represent_list)

for _kind, _words, _first in (
    ("null", re.compile(r"~|null|Null|NULL|"), ["~", "n", "N", ""]),
    ("bool", re.compile(r"true|True|TRUE|false|False|FALSE"), list("tTfF")),
    ("int", _INT, list("-+0123456789")),
    ("float", _FLOAT, list("-+.0123456789")),
):
    _whole = re.compile(f"(?:{_words.pattern})$")
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", _whole, _first)
    if _kind == "float":
        _Dumper.add_implicit_resolver("tag:yaml.org,2002:float", _whole, _first)


def read_recipe(file: Path, settings: Iterable[str] = (), out: Path | None = None) -> Recipe:
    """Read a recipe, change what the command line says, check it, and return it with all defaults written out.

    Args:
        file: The recipe.
        settings: Changes such as `prune.layers=4`; see `override`.
        out: Where the result goes, whatever the recipe says.

    Raises:
        BudgetError: so many zeros leave nothing.
        ConfigError: the file is not a recipe, or something in it is not as it should be; the place is named.
        DataError: a file of text is missing.
    """
    given = _parse(_text_of(file), str(file))
    if not isinstance(given, dict):
        raise ConfigError(f"{file} is no recipe: it holds no keys", hint="it begins with model: and has stages:")
    for setting in settings:
        override(given, setting)
    if out is not None:
        given["out"] = str(out)
    try:
        recipe = Recipe.model_validate(given)
    except ValidationError as error:
        raise ConfigError(f"{file}: {_problems(error)}") from error
    with located(str(file)):
        return resolve(recipe)


def write_recipe(recipe: Recipe, file: Path) -> None:
    """Write a recipe, to be read by `read_recipe`."""
    file.write_text(_AGAIN.format(name=file.name) + as_yaml(recipe), encoding="utf-8")


def as_yaml(recipe: Recipe) -> str:
    """Return a recipe as the text of its file."""
    told = document(recipe)
    return yaml.dump(told, Dumper=_Dumper, default_flow_style=False, width=110, sort_keys=False, allow_unicode=True)


def override(given: dict[str, Any], setting: str) -> None:
    """Change one value of a recipe that was read but not checked: `seed=1`, `heal.rank=8`, `stages.2.heal.rank=8`.

    The value is YAML. Stages count from 1; a kind of which there is one needs no number.

    Raises:
        ConfigError: the setting is no key and value, or names a stage or a place that is not there.
    """
    path, equals, text = setting.partition("=")
    keys = [key.strip().replace("-", "_") for key in path.split(".")]
    if not equals or not all(keys):
        raise ConfigError(f"--set {setting} is not key=value", hint="such as --set prune.layers=4")
    if keys[0] in KINDS:
        keys = [*_stage_named(given, keys[0], setting), *keys[1:]]
    here: Any = given
    for number, key in enumerate(keys):
        last = number == len(keys) - 1
        if isinstance(here, list) and key.isdecimal() and 0 < int(key) <= len(here):
            place: Any = int(key) - 1
        elif isinstance(here, dict):
            place = key
        else:
            raise ConfigError(f"--set {setting}: there is no {'.'.join(keys[: number + 1])} in the recipe")
        if last:
            here[place] = _parse(text, f"--set {setting}")
        elif isinstance(here, dict) and here.get(place) is None:
            here[place] = {}
        here = here[place]


def _stage_named(given: dict[str, Any], kind: str, setting: str) -> Sequence[str]:
    stages = given.get("stages")
    found = [
        number
        for number, stage in enumerate(stages if isinstance(stages, list) else [], start=1)
        if isinstance(stage, dict) and kind in stage
    ]
    if len(found) != 1:
        many = "no" if not found else f"{len(found)}"
        rest = setting.partition(".")[2]
        hint = " or ".join(f"--set stages.{number}.{kind}.{rest}" for number in found)
        raise ConfigError(f"--set {setting}: the recipe has {many} stages {kind}", hint=hint or None)
    return ("stages", str(found[0]), kind)


def _text_of(file: Path) -> str:
    try:
        return file.expanduser().read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"there is no recipe {file}", hint="name a YAML file; `sned run --help` shows one") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the recipe {file} cannot be read: {error}") from error


def _parse(text: str, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a safe loader, with fewer kinds of scalars
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = "" if mark is None else f", line {mark.line + 1}, column {mark.column + 1}"
        raise ConfigError(f"{where}{place}: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{where} is not YAML: {error}") from error


def _problems(error: ValidationError) -> str:
    """Name every place that is wrong, and how; stages count from 1."""
    found: list[str] = []
    for one in error.errors(include_url=False):
        keys = [str(part + 1) if isinstance(part, int) else part for part in one["loc"]]
        context = one.get("ctx", {})
        if one["type"] == UNKNOWN:
            keys.append(context["key"])
        told = "keys and values are needed" if one["type"] == "model_type" else one["msg"]
        if "text" not in context and one["type"] not in ("missing", "too_short"):
            told = f"{told}, not {one['input']!r}"
        found.append(f"{'.'.join(keys)}: {told}" if keys else told)
    return found[0] if len(found) == 1 else "".join(f"\n    {line}" for line in found)
