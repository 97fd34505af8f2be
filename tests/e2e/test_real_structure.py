"""Learned structure on the real SmolLM2-135M through the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kit.shell import REAL, generates_without_sned, prune_demo

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = REAL

BODY = 30 * 3_540_096
"""Parameters of the 30 layers."""
STEP = 64 * 3 * 576
"""Of as many MLP channels as widths are a multiple of."""


def test_gates_learn_a_structure_that_runs_without_sned(tmp_path: Path) -> None:
    out = tmp_path / "routed"
    asked = ["--remove", "20%", "--remove-of", "body", "--epochs", "1"]
    report = prune_demo(out, "-m", "displlm", *asked, "--calib-tokens", "1024", "--seq-len", "256")
    removed = report["model"]["params"]["dense"] - report["model"]["params"]["pruned"]
    assert 0.2 * BODY <= removed < 0.2 * BODY + STEP
    (chance,) = report["baselines"]
    dense, ours = report["quality"]["dense"]["perplexity"], report["quality"]["pruned"]["perplexity"]
    assert dense < ours < 4 * dense
    assert ours < chance["perplexity"]
    assert report["verify"]["max_logit_error"] < 1e-4
    assert generates_without_sned(out, trusted=True)[1:] == ["30", "8"]
