"""Fresh processes that never saw sned, without the seconds that each would take to import torch and transformers.

A process that has imported these two, and nothing else, forks itself for every script it is given. Run as a script,
this file is that process.
"""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path


class Nursery:
    """Runs scripts as `sned.checkpoint.verify.start` does. The process starts with the first one."""

    def __init__(self) -> None:
        self._server: subprocess.Popen[str] | None = None

    def start(self, command: list[str], env: dict[str, str]) -> subprocess.CompletedProcess[str]:
        """Run `[python, "-P", script, ...]` to its end, in an environment."""
        if self._server is None:
            self._server = subprocess.Popen(
                [command[0], "-P", __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
            )
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        with tempfile.NamedTemporaryFile("r", prefix="nursery-") as said:
            print(json.dumps([command[2:], env, said.name]), file=self._server.stdin, flush=True)
            code = int(self._server.stdout.readline())
            return subprocess.CompletedProcess(command, code, "", Path(said.name).read_text())

    def close(self) -> None:
        """End the process."""
        if self._server is not None:
            self._server.communicate()


def serve() -> None:
    """Fork for every line of stdin, and print the exit code of each child."""
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    assert load_file
    assert AutoModelForCausalLM
    assert not any(name.partition(".")[0] in ("sned", "kit") for name in sys.modules)
    for line in sys.stdin:
        argv, env, said = json.loads(line)
        if (child := os.fork()) == 0:
            _be(argv, env, said)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def _be(argv: list[str], env: dict[str, str], said: str) -> None:
    """Run a script to its end, and end."""
    code = 0
    with Path(said).open("w") as err:
        os.dup2(err.fileno(), 1)
        os.dup2(err.fileno(), 2)
        os.environ.clear()
        os.environ.update(env)
        sys.argv = argv
        try:
            runpy.run_path(argv[0], run_name="__main__")
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
            print(end.code, file=sys.stderr)
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve()
