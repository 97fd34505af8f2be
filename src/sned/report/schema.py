"""The contract of ``report.json``, schema version 1: its keys, how it is read, and how it is written.

Numbers are raw; rounding is the business of whoever shows them. A block is null when the command did not
measure it. May import errors and the blocks only.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, JsonValue, ValidationError, model_validator

from sned.errors import CheckpointError
from sned.report.blocks import (
    Baseline,
    Block,
    Cost,
    Cut,
    Environment,
    Evolution,
    Fit,
    Importance,
    Judged,
    Layer,
    LayerState,
    Loss,
    MatrixZeros,
    Model,
    Pair,
    Params,
    PartState,
    PlanFacts,
    Probe,
    Quality,
    Ranked,
    Repair,
    Sample,
    Search,
    Seconds,
    Sparsity,
    Speed,
    Step,
    Text,
    Throughput,
    Verify,
)
from sned.report.task_blocks import Tasks, TaskStability
from sned.report.training_blocks import Policy, Structure, Training
from sned.report.worth_blocks import Merged, StandIn, Valued, Worth

__all__ = [
    "SCHEMA",
    "Baseline",
    "Block",
    "Cost",
    "Cut",
    "Environment",
    "Evolution",
    "Fit",
    "Importance",
    "Judged",
    "Layer",
    "LayerState",
    "Loss",
    "MatrixZeros",
    "Merged",
    "Model",
    "Pair",
    "Params",
    "PartState",
    "PlanFacts",
    "Probe",
    "Quality",
    "Ranked",
    "Repair",
    "Report",
    "Sample",
    "Search",
    "Seconds",
    "Sparsity",
    "Speed",
    "StandIn",
    "Step",
    "Structure",
    "TaskStability",
    "Tasks",
    "Text",
    "Throughput",
    "Training",
    "Valued",
    "Verify",
    "Worth",
    "dump",
    "load",
]

SCHEMA = 1


class Report(Block):
    """Everything ``report.json`` holds."""

    schema_version: Literal[1] = Field(1, alias="schema")
    sned: str = Field(description="version that wrote this")
    command: str = Field(description="the exact command line")
    method: str
    options: dict[str, JsonValue]
    seed: int
    model: Model
    plan: PlanFacts | None = None
    calibration: Text | None = None
    quality: Quality | None = None
    tasks: Tasks | None = None
    speed: Speed | None = None
    cost: Cost | None = None
    verify: Verify | None = None
    environment: Environment | None = None
    memory_to_run: Pair | None = Field(
        None, description="bytes of the weights in the dtype of the run, and of the KV cache of 1,024 tokens"
    )
    bytes_on_disk: Pair | None = Field(None, description="size of the weight files")
    stack: list[Layer] = Field(default_factory=list, description="every layer of the base model, in order")
    chosen: list[Cut] = Field(default_factory=list)
    importance: Importance | None = None
    probe: list[Probe] | None = None
    fit: list[Fit] | None = None
    search: Search | None = None
    evolution: Evolution | None = None
    policy: Policy | None = None
    structure: Structure | None = None
    worth: Worth | None = None
    stand_ins: list[StandIn] | None = None
    merges: list[Merged] | None = None
    repair: list[Repair] | None = None
    training: list[Training] | None = Field(None, description="one for each stage of the plan that trained, in order")
    sparsity: Sparsity | None = None
    baselines: list[Baseline] = Field(default_factory=list)
    samples: list[Sample] = Field(default_factory=list)
    warnings: list[str] = Field(default_factory=list)

    @model_validator(mode="after")
    def _layers_agree(self) -> Self:
        depth = len(self.stack)
        if [item.layer for item in self.stack] != list(range(depth)):
            raise ValueError("stack must list the layers 0, 1, 2, ... of the base model in order")
        if depth and self.importance:
            for name in ("layers", "attention", "mlp"):
                values = getattr(self.importance, name)
                if values is not None and len(values) != depth:
                    raise ValueError(f"importance.{name} has {len(values)} values for {depth} layers")
        if any(cut.end <= cut.start or (depth and cut.end > depth) for cut in self.chosen):
            raise ValueError("chosen holds a cut that is empty or ends beyond the last layer")
        if depth and any(item.layer >= depth for item in self.repair or []):
            raise ValueError("repair names a layer beyond the last")
        if depth and any(unit.layer >= depth for unit in (self.worth.units if self.worth else [])):
            raise ValueError("worth names a layer beyond the last")
        if any(item.end <= item.start or (depth and item.end > depth) for item in self.stand_ins or []):
            raise ValueError("stand_ins holds a run that is empty or ends beyond the last layer")
        return self

    def to_json(self) -> str:
        """Return the text of ``report.json``: keys in the order of the schema, ending in a newline."""
        data = self.model_dump(mode="json", by_alias=True)
        return json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def load(path: str | Path) -> Report:
    """Read a ``report.json``.

    Raises:
        CheckpointError: the file is missing, not JSON, from a newer sned, or breaks the schema.
    """
    file = Path(path)
    hint = "run the command that wrote it again"
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"Cannot read the report {file}: {error.strerror or error}.", hint=hint) from error
    except UnicodeDecodeError as error:
        raise CheckpointError(f"The report {file} is not UTF-8 text.", hint=hint) from error
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise CheckpointError(f"The report {file} is not JSON: {error.msg} at {where}.", hint=hint) from error
    version = data.get("schema") if isinstance(data, dict) else None
    if isinstance(version, int) and version > SCHEMA:
        message = f"The report {file} has schema {version}; this sned reads up to {SCHEMA}."
        raise CheckpointError(message, hint="upgrade sned")
    try:
        return Report.model_validate(data)
    except ValidationError as error:
        raise CheckpointError(f"The report {file} is corrupt: {_problems(error)}.", hint=hint) from error


def dump(report: Report, path: str | Path) -> None:
    """Write a report as ``report.json``: the file is whole or untouched.

    Raises:
        CheckpointError: the file could not be written.
    """
    file = Path(path)
    partial = file.with_name(f"{file.name}.partial")
    try:
        partial.write_text(report.to_json(), encoding="utf-8")
        partial.replace(file)
    except OSError as error:
        partial.unlink(missing_ok=True)
        message = f"Cannot write the report {file}: {error.strerror or error}."
        raise CheckpointError(message, hint="check the disk space and the folder's permissions") from error


def _problems(error: ValidationError, shown: int = 3) -> str:
    """Name the first few places that break the schema."""
    details: list[Any] = error.errors(include_url=False, include_input=False)
    named = [f"{'.'.join(map(str, item['loc'])) or 'report'}: {item['msg']}" for item in details[:shown]]
    rest = len(details) - len(named)
    return "; ".join(named) + (f"; and {rest} more" if rest else "")
