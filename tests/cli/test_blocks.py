"""Removing single attentions and MLPs, from the command line to the folder that comes back."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import yaml
from kit.tiny import save_model_folder

from sned.plans.store import load_plan

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from .conftest import Outcome

TEXT = ["--calib", "random", "--eval", "random", "--eval-tokens", "64", "--seq-len", "16", "--allow-overlap"]


def test_the_whole_job(sned: Callable[..., Outcome], tmp_path: Path) -> None:
    model, out = save_model_folder(tmp_path / "model", "llama"), tmp_path / "out"
    budget = ["--blocks", "3", "--search", "racing", "--calib-tokens", "64", "--baseline", "shortgpt"]
    got = sned("prune", model, "-m", "blockpruner", *budget, *TEXT, "-o", out, "--quiet")
    assert got.code == 0, got.err
    report = json.loads((out / "sned" / "report.json").read_text())
    plan = load_plan(out)

    steps = report["search"]["steps"]
    assert steps == plan.stages[0].scores["trace"]
    assert report["search"]["mode"] == "racing"
    assert steps[-1]["params"] == plan.pruned.params == report["model"]["params"]["pruned"]
    gone = [layer[part] for layer in report["stack"] for part in ("attention", "mlp")].count("removed")
    assert gone == 3
    assert "3 of 10 blocks" in " ".join(got.out.split())

    layers, chance = report["baselines"]
    assert chance["removed"] == report["model"]["params"]["removed"] <= layers["removed"]
    assert "asked to remove" in layers["note"]
    assert "random (same shape)" in got.out
    assert "random (same shape)" in (out / "README.md").read_text()
    assert "How the search went" in (out / "sned" / "report.html").read_text()
    recipe = yaml.safe_load((out / "sned" / "recipe.yaml").read_text())
    assert recipe["stages"][0]["prune"]["blocks"] == 3
    assert recipe["calibration"]["tokens"] == 64

    shown = sned("show", out).out
    assert "cut, in order" in shown
    assert len(sned("show", out, "--as", "blockpruner").document) == 3
    scanned = sned("scan", out, "--calib", "random", "--calib-tokens", "64", "--seq-len", "16", "--json").document
    assert sum(layer[part] is None for layer in scanned["layers"] for part in ("attention", "mlp")) <= 3
    assert sned("inspect", out, "--json").document["total"]["params"] == plan.pruned.params
