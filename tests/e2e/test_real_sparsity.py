"""Weights of the real SmolLM2-135M set to zero through the command line, as a user would."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

from kit.shell import ENVIRONMENT, FP32, REAL, prune_demo, sned

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = REAL

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
    report = prune_demo(out, "-m", "wanda", "--sparsity", "50%", "--allocate", "owl", *TEXT)
    found = report["sparsity"]
    assert (found["zeros"], found["of"]) == (WEIGHTS // 2, WEIGHTS)
    assert report["model"]["params"]["pruned"] == report["model"]["params"]["dense"]
    by_layer = {m["layer"]: m["zeros"] / m["of"] for m in found["matrices"] if m["role"] == "gate"}
    assert len(by_layer) == 30
    assert 0.3 < min(by_layer.values()) < 0.45 < 0.55 < max(by_layer.values()) < 0.7
    census = json.loads((out / "sned" / "sparsity.json").read_text())
    assert (census["zeros"], census["of"], len(census["tensors"])) == (WEIGHTS // 2, WEIGHTS, 210)
    assert "sparsity" not in (out / "config.json").read_text()
    assert zeros_without_sned(out)[:2] == [WEIGHTS // 2, WEIGHTS]
    dense, ours = (report["quality"][name]["perplexity"] for name in ("dense", "pruned"))
    assert 10 < dense < ours < 4 * dense


def test_a_plan_of_two_of_four_is_applied(tmp_path: Path) -> None:
    plan, out = tmp_path / "plan", tmp_path / "two-of-four"
    sned("plan", "demo", "-m", "sparsegpt", "--pattern", "2:4", *TEXT, *FP32, "-o", plan)
    sned("apply", "demo", plan, *FP32, "-o", out)
    zeros, of, kept = zeros_without_sned(out)
    assert (of, kept) == (WEIGHTS, 2)
    assert WEIGHTS // 2 <= zeros < WEIGHTS // 2 + 100, "a weight that stays is seldom zero by itself"
    census = json.loads((out / "sned" / "sparsity.json").read_text())
    assert {tensor["pattern"] for tensor in census["tensors"].values()} == {"2:4"}
    judged = sned("eval", out, "--eval-tokens", "512", *FP32, "--json")
    assert json.loads(judged.stdout)["quality"]["pruned"]["perplexity"] < 200, "the dense model has about 18"
