"""The command line in a process of its own, on the real model."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

FP32 = ["--dtype", "fp32"]  # many CPUs compute in bf16, the dtype of the file, several times slower
ENVIRONMENT = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1"}


def sned(*arguments: str | Path, check: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a command, which must end with the exit code `check`."""
    command = [sys.executable, "-m", "sned", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=ENVIRONMENT)
    assert done.returncode == check, done.stderr[-3000:]
    return done
