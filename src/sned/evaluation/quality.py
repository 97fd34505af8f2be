"""How well a model predicts held-out text, and how far it moved from the dense one, token by token.

May import `models`, `data` and `runtime`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from sned.progress import SILENT, Progress
from sned.runtime.objective import token_nll
from sned.runtime.sweep import Sweep

if TYPE_CHECKING:
    from sned.data.tokens import Tokens
    from sned.models.view import View

_PIECE = 256
"""Positions whose full distributions are compared at a time."""


@dataclass(frozen=True, slots=True)
class Quality:
    """Means over all predicted tokens, in nats; the dense figures are None where there was nothing to compare with."""

    nll: float
    dense_nll: float | None = None
    kl: float | None = None
    """`KL(dense ‖ pruned)`"""
    top1_agreement: float | None = None
    """Share of tokens for which both models' best guess is the same."""

    @property
    def perplexity(self) -> float:
        """`exp(nll)`, infinite where that overflows."""
        return math.exp(self.nll) if self.nll < 700 else math.inf


def measure_quality(view: View, tokens: Tokens, *, dense: View | None = None, progress: Progress = SILENT) -> Quality:
    """Return the mean negative log-likelihood of the next token, in float32 from the model's logits.

    Total over total: windows count by their tokens. With a dense view, divergence and agreement are means over
    the same tokens.

    Raises:
        NumericalError: a layer returns NaN or infinity.
    """
    sweep, other = Sweep(view), None if dense is None else Sweep(dense)
    sums: dict[str, float] = dict.fromkeys(("nll", "dense", "kl", "same", "count"), 0.0)
    label = "evaluate" if dense is None else "compare with dense"
    with progress.task(label, tokens.n_tokens) as advance:
        for chunk in sweep.chunks(tokens.ids):
            reference = None if other is None else other.final(chunk)
            for ids, hidden in sweep.final(chunk):
                base = None if reference is None else next(reference)[1]
                for row in range(len(ids)):
                    window = ids[row : row + 1]
                    logits = sweep.logits(window, hidden[row : row + 1])
                    target = None if base is None or other is None else other.logits(window, base[row : row + 1])
                    _add(sums, window, logits, target)
                advance(ids.numel())
    n = sums["count"]
    if dense is None:
        return Quality(sums["nll"] / n)
    return Quality(sums["nll"] / n, sums["dense"] / n, sums["kl"] / n, sums["same"] / n)


@torch.no_grad()
def _add(sums: dict[str, float], ids: torch.Tensor, logits: torch.Tensor, target: torch.Tensor | None) -> None:
    nll = token_nll(logits, ids)
    sums["nll"] += float(nll.sum(dtype=torch.float64))
    sums["count"] += nll.numel()
    if target is None:
        return
    sums["dense"] += float(token_nll(target, ids).sum(dtype=torch.float64))
    for a, b in zip(logits[0, :-1].split(_PIECE), target[0, :-1].split(_PIECE), strict=True):
        mine, theirs = a.float().log_softmax(-1), b.float().log_softmax(-1)
        sums["kl"] += float((theirs.exp() * (theirs - mine)).sum(dtype=torch.float64))
        sums["same"] += int((a.argmax(-1) == b.argmax(-1)).sum())
