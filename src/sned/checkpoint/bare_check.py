"""Loads a checkpoint as a stranger would, and notes what it computes. Run as a script; never imports sned.

Usage: python bare_check.py FOLDER IDS.safetensors OUT.safetensors DTYPE REMOTE
"""

from __future__ import annotations

import sys

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM


@torch.no_grad()
def main(folder: str, ids_file: str, out_file: str, dtype: str, remote: str) -> None:
    """Write the logits `[windows, tokens, vocab]` of the ids, at once and with a cache, in float32."""
    ids = load_file(ids_file)["ids"]
    trust = {"trust_remote_code": True} if remote == "remote" else {}
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype), **trust).eval()
    full = model(ids, use_cache=False).logits.float()
    half = ids.shape[1] // 2
    step = model(ids[:, :half], use_cache=True)
    parts = [step.logits.float()]
    for position in range(half, ids.shape[1]):
        step = model(ids[:, position : position + 1], past_key_values=step.past_key_values, use_cache=True)
        parts.append(step.logits.float())
    save_file({"full": full.contiguous(), "cached": torch.cat(parts, dim=1).contiguous()}, out_file)
    if any(name.split(".")[0] == "sned" for name in sys.modules):
        raise SystemExit("sned was imported while the checkpoint was loaded")


if __name__ == "__main__":
    main(*sys.argv[1:6])
