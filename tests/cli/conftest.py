"""What the tests of the command line share: a runner, plans and reports made by hand."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from sned.cli.main import main
from sned.plans.ops import DropLayers, Fold
from sned.plans.plan import Base, Plan, Size, Stage
from sned.plans.store import save_plan
from sned.report.schema import Report

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

DEPTH = 12


@dataclass
class Outcome:
    """What one command line gave back."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """What stands on stdout, which must be one JSON document and nothing else."""
        return json.loads(self.out)


@pytest.fixture
def sned(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    """Run a command line in this process."""
    monkeypatch.setenv("COLUMNS", "100")

    def run(*args: object) -> Outcome:
        capsys.readouterr()
        code = main([str(arg) for arg in args])
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


def make_plan(
    layers: range = range(4, 7), *, method: str = "uidl", depth: int = DEPTH, folded: bool = False, **options: Any
) -> Plan:
    """A plan without a model: `layers` of a stack of equal ones go."""
    import torch

    drop, ops, tensors = DropLayers(layers=tuple(layers)), [], {}
    if folded:
        tensors = {"map": torch.eye(4)}
        ops = [Fold(layer=layers.start - 1, tensor="map")]
    base = Base(
        source="someone/tiny",
        model_type="llama",
        geometry=f"{depth:064x}",
        weights="b" * 64,
        n_layers=depth,
        hidden=4,
        n_params=1000 * depth + 500,
    )
    left = depth - len(layers)
    cuts = [{"start": layers.start, "end": layers.stop, "distance": 0.125}]
    return Plan(
        base=base,
        stages=(
            Stage(
                method=method,
                options={"layers": len(layers), "seed": 0} | options,
                ops=(*ops, drop),
                scores={"cuts": cuts, "influence": [0.5] * depth},
            ),
        ),
        dense=size(depth),
        pruned=size(left),
        provenance={"calibration": {"source": "builtin:c4", "digest": "c" * 64}},
        tensors=tensors,
    )


def size(layers: int) -> Size:
    return Size(
        params=1000 * layers + 500,
        body_params=1000 * layers,
        flops_per_token=2000 * layers,
        kv_bytes_per_token=16 * layers,
    )


@pytest.fixture
def plan_folder(tmp_path: Path) -> Callable[..., Path]:
    """Write a plan made by hand, and return its folder."""

    def write(name: str = "plan", **how: Any) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        save_plan(make_plan(**how), folder)
        return folder

    return write


@pytest.fixture
def made_plan() -> Callable[..., Plan]:
    """Make a plan without a model."""
    return make_plan


@pytest.fixture
def report() -> Callable[..., Report]:
    """Make a report with the blocks given."""
    return make_report


def make_report(**blocks: Any) -> Report:
    """A report of a job that removed a quarter of a model."""
    head = {"schema": 1, "sned": "0.1.0", "command": "sned prune", "method": "uidl", "options": {}, "seed": 0}
    params = {"dense": 4000, "pruned": 3000, "removed": 0.25, "body_removed": 0.3}
    pair = {"dense": 100, "pruned": 75}
    sizes = {"params": params, "flops_per_token": pair, "kv_bytes_per_token": pair}
    model = {"source": "someone/tiny", "family": "llama", "fingerprint": "f", **sizes}
    return Report.model_validate({**head, "model": model, **blocks})
