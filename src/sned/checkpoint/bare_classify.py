"""Loads a classifier as a stranger would, and notes its logits. Run as a script; never imports sned.

Usage: python bare_classify.py FOLDER IN.safetensors OUT.safetensors DTYPE
"""

from __future__ import annotations

import sys

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification


@torch.no_grad()
def main(folder: str, in_file: str, out_file: str, dtype: str) -> None:
    """Write the logits `[texts, classes]` of padded ids, all at once and one by one without padding, in float32."""
    given = load_file(in_file)
    ids, lengths = given["ids"], given["lengths"]
    model, notes = AutoModelForSequenceClassification.from_pretrained(
        folder, dtype=getattr(torch, dtype), output_loading_info=True
    )
    if notes["missing_keys"]:
        raise SystemExit(f"the checkpoint lacks {min(notes['missing_keys'])}")
    model = model.eval()
    mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
    together = model(ids, attention_mask=mask).logits.float()
    alone = torch.cat([model(row[None, :n]).logits.float() for row, n in zip(ids, lengths.tolist(), strict=True)])
    save_file({"together": together.contiguous(), "alone": alone.contiguous()}, out_file)
    if any(name.split(".")[0] == "sned" for name in sys.modules):
        raise SystemExit("sned was imported while the checkpoint was loaded")


if __name__ == "__main__":
    main(*sys.argv[1:5])
