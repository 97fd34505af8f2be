"""How logits are computed and compared in tests; the tolerance stands here alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from kit.tiny import IDS
from sned.runtime.sweep import Sweep

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from sned.models.view import View

TOLERANCE = {"atol": 1e-4, "rtol": 1e-4}
"""Two orders of the same float32 sums; logits of the tiny models have a standard deviation near one."""
VISIBLE = 1e-2
"""A change of the model that a test relies on moves some logit at least this far."""


@torch.no_grad()
def logits(model: PreTrainedModel, ids: torch.Tensor = IDS) -> torch.Tensor:
    """Return what the model itself computes, without a cache."""
    return model(ids, use_cache=False).logits


def swept(view: View, ids: torch.Tensor = IDS) -> torch.Tensor:
    """Return the logits of a run layer by layer, trials and streamed layers included."""
    sweep = Sweep(view)
    return torch.cat([sweep.logits(i, hidden) for c in sweep.chunks(ids) for i, hidden in sweep.final(c)])


@torch.no_grad()
def decoded(model: PreTrainedModel, ids: torch.Tensor = IDS, prefill: int = 8) -> torch.Tensor:
    """Return the logits of a cached run: `prefill` tokens at once, then one by one."""
    out = model(ids[:, :prefill], use_cache=True)
    parts = [out.logits]
    for token in ids[:, prefill:].split(1, dim=1):
        out = model(token, use_cache=True, past_key_values=out.past_key_values)
        parts.append(out.logits)
    return torch.cat(parts, dim=1)


def assert_same_logits(got: torch.Tensor, want: torch.Tensor, *, exact: bool = False) -> None:
    """Fail unless two logits are equal: bit by bit, or to the tolerance."""
    if exact:
        assert torch.equal(got, want), f"not bit-equal; the largest difference is {(got - want).abs().max():g}"
    else:
        torch.testing.assert_close(got, want, **TOLERANCE)


def assert_differ(got: torch.Tensor, want: torch.Tensor) -> None:
    """Fail unless a change can be seen in the logits, so that a test of equality means something."""
    assert (got - want).abs().max() > VISIBLE, "the change that this test is about has no effect"
