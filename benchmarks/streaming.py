"""Peak memory of streamed planning on a model four times the size of SmolLM2-135M, against what it must hold.

Memory is what a process holds of its own, sampled; pages of mapped files, which the system takes back at will, do
not count. TOKENS, DTYPE and METHODS may be set.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

TOKENS, SEQ_LEN = int(os.environ.get("TOKENS", "8192")), 512
METHODS: dict[str, dict[str, Any]] = {
    "replaceme": {"layers": 6, "probe": 0},
    "sparsegpt": {"sparsity": 0.5},
    "taylor": {"remove": 0.1},
    "streamline": {"layers": 6, "loss": "kl"},
}
SIZES = {"hidden_size": 1152, "intermediate_size": 3072, "num_hidden_layers": 30, "num_attention_heads": 18}
SAMPLED_EVERY_SECONDS = 0.005


def measure() -> dict[str, Any]:
    """Plan streamed and loaded, each in its own process, and compare digests and peaks."""
    with tempfile.TemporaryDirectory() as scratch:
        _write_model(Path(scratch))
        names = os.environ.get("METHODS", ",".join(METHODS)).split(",")
        return {name: _compare(scratch, name) for name in names}


def _compare(folder: str, method: str) -> dict[str, Any]:
    streamed, loaded = _child(folder, method, "on"), _child(folder, method, "off")
    return {
        "peak_to_floor": streamed["peak_bytes"] / streamed["floor_bytes"],
        "floor": "largest layer + embeddings + states of a chunk (of all tokens where weights are pruned) + Hessians",
        "floor_bytes": streamed["floor_bytes"],
        "streamed_peak_bytes": streamed["peak_bytes"],
        "loaded_peak_bytes": loaded["peak_bytes"],
        "weights_bytes": streamed["weights_bytes"],
        "plan_bytes": streamed["plan_bytes"],
        "same_digest": streamed["digest"] == loaded["digest"],
        "seconds_streamed_to_loaded": streamed["seconds"] / loaded["seconds"],
    }


def _write_model(folder: Path) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(vocab_size=49152, num_key_value_heads=6, tie_word_embeddings=True, **SIZES)
    torch.manual_seed(0)
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[os.environ.get("DTYPE", "bf16")]
    LlamaForCausalLM._from_config(config, dtype=dtype).save_pretrained(folder, max_shard_size="200MB")


def _child(folder: str, *what: str) -> dict[str, Any]:
    out = subprocess.run([sys.executable, __file__, folder, *what], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(out.stdout.splitlines()[-1])


def _own_bytes() -> int:
    """Return the anonymous memory that this process holds now."""
    rows = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(rows["RssAnon"].split()[0]) * 1024


class _Peak:
    """The most memory that the process held between entry and exit, beyond what it held at entry."""

    def __enter__(self) -> _Peak:
        self._before = self._most = _own_bytes()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(SAMPLED_EVERY_SECONDS):
            self._most = max(self._most, _own_bytes())

    @property
    def nbytes(self) -> int:
        return self._most - self._before


def _plan(folder: str, method: str, mode: str) -> dict[str, Any]:
    from transformers import LlamaForCausalLM  # noqa: F401 - its memory belongs to the baseline

    import sned
    from sned.jobs.forecast import memory_needed
    from sned.plans.budget import Budget
    from sned.runtime.journal import Journal
    from sned.runtime.method import find_method
    from sned.runtime.planner import make_plan

    options = dict(METHODS[method])
    budget = Budget(**{key: options.pop(key) for key in ("layers", "remove", "sparsity") if key in options})
    with tempfile.TemporaryDirectory() as journal:
        with _Peak() as peak:
            model = sned.load(folder, stream=mode)
            tokens = sned.Tokens.from_source("random", None, tokens=TOKENS, seq_len=SEQ_LEN, vocab_size=49152)
            start = time.perf_counter()
            found = find_method(method)
            plan = make_plan(model.view, found, tokens, budget, options, journal=Journal(Path(journal)))
            seconds = time.perf_counter() - start
        item = model.view.dtype.itemsize
        floor = memory_needed(model.view, streamed=True)
        if method == "sparsegpt":
            hidden, inner = SIZES["hidden_size"], SIZES["intermediate_size"]
            floor += TOKENS * hidden * item + (3 * hidden**2 + inner**2) * 8
        return {
            "digest": plan.digest,
            "seconds": seconds,
            "peak_bytes": peak.nbytes,
            "floor_bytes": floor,
            "weights_bytes": model.view.geometry.n_params * item,
            "plan_bytes": sum(tensor.nbytes for tensor in plan.tensors.values()),
        }


if __name__ == "__main__":
    print(json.dumps(_plan(*sys.argv[1:4])))
