"""Peak memory of streamed planning on a model four times the size of SmolLM2-135M, against what it must hold."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

TOKENS, SEQ_LEN, LAYERS = 8192, 512, 6
SIZES = {"hidden_size": 1152, "intermediate_size": 3072, "num_hidden_layers": 30, "num_attention_heads": 18}


def measure() -> dict[str, Any]:
    """Plan streamed and loaded, each in its own process, and compare digests and peaks."""
    with tempfile.TemporaryDirectory() as scratch:
        _write_model(Path(scratch))
        runs = {mode: _child(scratch, mode) for mode in ("on", "off")}
    streamed, loaded = runs["on"], runs["off"]
    return {
        "peak_to_floor": streamed["peak_bytes"] / streamed["floor_bytes"],
        "limit": 1.3,
        "floor": "largest layer + embeddings + the stream at every boundary for one chunk of tokens",
        "floor_bytes": streamed["floor_bytes"],
        "streamed_peak_bytes": streamed["peak_bytes"],
        "loaded_peak_bytes": loaded["peak_bytes"],
        "weights_bytes": streamed["weights_bytes"],
        "same_digest": streamed["digest"] == loaded["digest"],
        "seconds_streamed_to_loaded": streamed["seconds"] / loaded["seconds"],
    }


def _write_model(folder: Path) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(vocab_size=49152, num_key_value_heads=6, tie_word_embeddings=True, **SIZES)
    torch.manual_seed(0)
    LlamaForCausalLM._from_config(config, dtype=torch.bfloat16).save_pretrained(folder, max_shard_size="200MB")


def _child(folder: str, mode: str) -> dict[str, Any]:
    out = subprocess.run([sys.executable, __file__, folder, mode], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(out.stdout.splitlines()[-1])


def _plan(folder: str, mode: str) -> dict[str, Any]:
    import time

    from transformers import LlamaForCausalLM  # noqa: F401 - its memory belongs to the baseline

    import sned
    from sned.jobs.compose import peak_rss_bytes
    from sned.jobs.forecast import memory_needed
    from sned.methods.replaceme import replaceme

    before = peak_rss_bytes()
    model = sned.load(folder, stream=mode)
    tokens = sned.Tokens.from_source("random", None, tokens=TOKENS, seq_len=SEQ_LEN, vocab_size=49152)
    start = time.perf_counter()
    plan = sned.plan(model, replaceme, tokens, layers=LAYERS, probe=0)
    return {
        "digest": plan.digest,
        "seconds": time.perf_counter() - start,
        "peak_bytes": peak_rss_bytes() - before,
        "floor_bytes": memory_needed(model.view, streamed=True),
        "weights_bytes": model.view.geometry.n_params * model.view.dtype.itemsize,
    }


if __name__ == "__main__":
    print(json.dumps(_plan(*sys.argv[1:3])))
