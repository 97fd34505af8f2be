"""Start-up: `import sned` and `sned --help`, in seconds and relative to an empty interpreter."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from typing import Any

COMMANDS = {"empty": ["-c", "pass"], "import": ["-c", "import sned"], "help": ["-m", "sned", "--help"]}


def measure() -> dict[str, Any]:
    """Return the median of seven runs each."""
    seconds = {name: statistics.median(_run(command) for _ in range(7)) for name, command in COMMANDS.items()}
    return {"seconds": seconds, "limit_seconds": 1.0}


def _run(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, *command], check=True, capture_output=True)
    return time.perf_counter() - start
