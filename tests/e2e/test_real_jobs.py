"""Whole jobs on the real SmolLM2-135M through the command line: blocks, streaming, interrupting."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from kit.shell import ENVIRONMENT, FP32, REAL, generates_without_sned, prune_demo, sned

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = REAL


def test_blocks_leave_a_model_that_runs_without_sned(tmp_path: Path) -> None:
    out = tmp_path / "blocks"
    asked = ["--blocks", "2", "--types", "mha", "--search", "racing"]
    report = prune_demo(out, "-m", "blockpruner", *asked, "--calib-tokens", "256", "--seq-len", "128")
    steps = report["search"]["steps"]
    assert len({step["cut"] for step in steps}) == 2
    assert steps[-1]["params"] == report["model"]["params"]["pruned"] < report["model"]["params"]["dense"]
    assert steps[1]["measured"] < steps[1]["candidates"], "what costs much is not tried again"
    (chance,) = report["baselines"]
    assert chance["removed"] == report["model"]["params"]["removed"]
    dense, ours = report["quality"]["dense"]["perplexity"], report["quality"]["pruned"]["perplexity"]
    assert 0.9 * dense < ours < 1.5 * dense
    assert ours < chance["perplexity"]
    assert generates_without_sned(out, trusted=True)[-1] == "8"


def test_streamed_planning_gives_the_same_plan(tmp_path: Path) -> None:
    digests = set()
    for mode in ("on", "off"):
        out = tmp_path / f"stream-{mode}"
        sned("plan", "demo", "-m", "replaceme", "--probe", "2", "--layers", "4", "--calib-tokens", "512",
             "--seq-len", "256", *FP32, "--stream", mode, "-o", out)  # fmt: skip
        digests.add(json.loads((out / "plan.json").read_text())["digest"])
    assert len(digests) == 1


def test_an_interrupted_job_says_how_to_resume_and_resumes(tmp_path: Path) -> None:
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    job = ["plan", "demo", "-m", "replaceme", "--layers", "5", "--calib-tokens", "1024", "--seq-len", "256"]
    job += [*FP32, "-o"]
    sned(*job, straight)
    child = subprocess.Popen(
        [sys.executable, "-m", "sned", *job, str(broken)],
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a run in the background ignores it
    )
    work = tmp_path / ".broken.work" / "done"
    deadline = time.monotonic() + 120
    while not list(work.glob("statistic-*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=60)
    assert child.returncode == 130
    assert "resume" in errors.lower()
    assert not broken.exists()
    kept = {path.name: path.stat().st_mtime_ns for path in work.glob("statistic-*")}
    assert kept
    sned(*job, broken)
    assert not work.parent.exists()
    assert (broken / "plan.safetensors").read_bytes() == (straight / "plan.safetensors").read_bytes()
    digests = {json.loads((out / "plan.json").read_text())["digest"] for out in (straight, broken)}
    assert len(digests) == 1
