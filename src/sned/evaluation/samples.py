"""Greedy continuations, for a look at what numbers hide. May import `models`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from sned.models.view import View


@torch.no_grad()
def continue_greedily(view: View, tokenizer: PreTrainedTokenizerBase, prompt: str, *, n_tokens: int = 40) -> str:
    """Return what a loaded model adds to a prompt, always taking the likeliest token; decodes with a cache."""
    model: Any = view.model
    encoded = tokenizer(prompt, return_tensors="pt").to(view.device)
    end = model.generation_config.eos_token_id
    out = model.generate(
        input_ids=encoded["input_ids"],
        attention_mask=encoded["attention_mask"],
        max_new_tokens=n_tokens,
        do_sample=False,
        num_beams=1,
        pad_token_id=end[0] if isinstance(end, list) else end,
        temperature=None,
        top_p=None,
        top_k=None,
    )
    return str(tokenizer.decode(out[0, encoded["input_ids"].shape[1] :], skip_special_tokens=True))
