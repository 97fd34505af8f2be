"""Loads folders as a process does that never saw sned, and writes what they compute. Run as a script.

Usage: python stranger.py IDS.safetensors OUT.safetensors FOLDER ...
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

PREFILL = 8


@torch.no_grad()
def run(folder: str, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the logits of a folder, at once and with a cache; remote code only where the config asks for it."""
    remote = "auto_map" in json.loads(Path(folder, "config.json").read_text())
    trust = {"trust_remote_code": True} if remote else {}
    model = AutoModelForCausalLM.from_pretrained(folder, **trust).eval()
    out = model(ids[:, :PREFILL], use_cache=True)
    parts = [out.logits]
    for token in ids[:, PREFILL:].split(1, dim=1):
        out = model(token, past_key_values=out.past_key_values, use_cache=True)
        parts.append(out.logits)
    return model(ids, use_cache=False).logits, torch.cat(parts, dim=1)


if __name__ == "__main__":
    tokens = load_file(sys.argv[1])["ids"]
    computed: dict[str, torch.Tensor] = {}
    for path in sys.argv[3:]:
        full, cached = run(path, tokens)
        computed |= {f"{path}:full": full.contiguous(), f"{path}:cached": cached.contiguous()}
    save_file(computed, sys.argv[2])
    if any(name.partition(".")[0] == "sned" for name in sys.modules):
        raise SystemExit("sned was imported")
