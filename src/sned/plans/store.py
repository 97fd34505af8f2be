"""Plans on disk: a folder with `plan.json` and, where ops need tensors, `plan.safetensors`.

May import its neighbours in `plan`.
"""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from sned.errors import PlanError
from sned.plans.plan import FORMAT, Plan, tensor_digest

if TYPE_CHECKING:
    from pathlib import Path

PLAN_FILE = "plan.json"
TENSOR_FILE = "plan.safetensors"


def save_plan(plan: Plan, folder: Path) -> None:
    """Write a plan into an existing folder."""
    from safetensors.torch import save_file

    document = {
        "format": FORMAT,
        "digest": plan.digest,
        **plan.model_dump(mode="json"),
        "tensors": {name: tensor_digest(t) for name, t in plan.tensors.items()},
    }
    (folder / PLAN_FILE).write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")
    if plan.tensors:
        save_file({name: t.contiguous() for name, t in plan.tensors.items()}, folder / TENSOR_FILE)
        # the library makes its files readable by their owner only
        shutil.copymode(folder / PLAN_FILE, folder / TENSOR_FILE)


def load_plan(path: Path) -> Plan:
    """Read a plan from its folder, from a folder that sned wrote, or from the path of `plan.json` itself.

    Raises:
        PlanError: it is missing, malformed, from a newer sned, or its tensors are missing or altered.
    """
    file = find_plan(path)
    try:
        document: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise PlanError(f"{file} is not readable JSON: {error}") from error
    if not isinstance(document, dict) or type(document.get("format")) is not int or document["format"] < 1:
        raise PlanError(f"{file} is not a plan: it has no format number")
    if document.pop("format") > FORMAT:
        raise PlanError(f"{file} was written by a newer sned (this one reads format {FORMAT})", hint="upgrade sned")
    stated, digests = document.pop("digest", None), document.pop("tensors", {})
    try:
        plan = Plan.model_validate_json(json.dumps({**document}))
    except ValidationError as error:
        raise PlanError(f"{file} is not a valid plan:{_problems(error)}") from error
    plan = plan.model_copy(update={"tensors": _load_tensors(file.with_name(TENSOR_FILE), digests)})
    if stated != plan.digest:
        raise PlanError(f"{file} was changed after it was written: its digest does not match its contents")
    return plan


def find_plan(path: Path) -> Path:
    """Return the plan file that a path means.

    Raises:
        PlanError: there is none.
    """
    for candidate in (path, path / PLAN_FILE, path / "sned" / PLAN_FILE):
        if candidate.is_file():
            return candidate
    raise PlanError(f"no plan at {path}", hint="a plan is a folder with plan.json, or a folder that sned wrote")


def _load_tensors(file: Path, digests: dict[str, str]) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not digests:
        return {}
    try:
        tensors = load_file(file)
    except (OSError, SafetensorError) as error:
        raise PlanError(f"{file}, which the plan needs, cannot be read: {error}") from error
    for name, expected in digests.items():
        if name not in tensors:
            raise PlanError(f"{file} lacks the tensor {name!r}")
        if tensor_digest(tensors[name]) != expected:
            raise PlanError(f"{file}: the tensor {name!r} is not the one the plan was written with")
    return {name: tensors[name] for name in digests}


def _problems(error: ValidationError) -> str:
    lines: list[str] = []
    for problem in error.errors()[:8]:
        where = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "union_tag_invalid":
            lines.append(f"{where}: unknown op {problem.get('ctx', {}).get('tag')}; a newer sned may have written it")
        else:
            lines.append(f"{where}: {problem['msg']}")
    return "".join(f"\n    {line}" for line in lines)
