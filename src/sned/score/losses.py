"""What training makes small. Pure functions of tensors; every loss is a mean over tokens, in float32."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

StateLoss = Literal["nmse", "mse", "cosine"]


def states_apart(name: StateLoss, states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return how far states `[..., hidden]` are from what they should be, a mean over tokens.

    `mse` is the mean square over all entries, in which the few tokens of huge states count for almost everything;
    `nmse` is each token's squared distance relative to the square of its target; `cosine` is one minus the cosine.
    """
    states, targets = states.float(), targets.float()
    if name == "mse":
        return (states - targets).square().mean()
    if name == "cosine":
        return (1 - torch.cosine_similarity(states, targets, dim=-1)).mean()
    square = targets.square().sum(-1).clamp_min(torch.finfo(torch.float32).tiny)
    return ((states - targets).square().sum(-1) / square).mean()


Piece = tuple[Any, torch.Tensor]
"""What makes the logits `[rows, vocab]` of some tokens, and the states that it makes them of."""
Pieces = list[Piece]
"""All tokens of some windows, in order."""


def cross_entropy(pieces: Pieces, ids: torch.Tensor) -> torch.Tensor:
    """Return the mean `-log p` of each next token of windows `[batch, tokens]`."""
    following = ids.roll(-1, 1)
    n = ids.numel() - len(ids)

    def judge(logits: torch.Tensor, targets: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        log_q = logits.float().log_softmax(-1)
        loss = -(log_q.gather(-1, targets[:, None])[:, 0] @ weight)
        slope = log_q.exp_()
        slope.scatter_add_(-1, targets[:, None], torch.full_like(slope[:, :1], -1.0))
        return loss, slope.mul_(weight[:, None])

    return _sum(judge, pieces, _split(following, pieces), _split(_followed(ids), pieces)) / n


def divergence(pieces: Pieces, theirs: Pieces, ids: torch.Tensor) -> torch.Tensor:
    """Return the mean `KL(theirs ‖ ours)` of the distributions of each next token of windows `[batch, tokens]`."""
    n = ids.numel() - len(ids)

    def judge(logits: torch.Tensor, other: Piece, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        make, states = other
        log_q, log_p = (found.float().log_softmax(-1) for found in (logits, make(states)))
        p = log_p.exp()
        loss = torch.linalg.vecdot(p, log_p.sub_(log_q)) @ weight
        return loss, log_q.exp_().sub_(p).mul_(weight[:, None])

    return _sum(judge, pieces, theirs, _split(_followed(ids), pieces)) / n


def _followed(ids: torch.Tensor) -> torch.Tensor:
    """Return 1 for every token, and 0 for the last of each window, after which nothing comes."""
    counts = torch.ones_like(ids, dtype=torch.float32)
    counts[:, -1] = 0
    return counts


def _split(values: torch.Tensor, pieces: Pieces) -> Sequence[torch.Tensor]:
    """Split one value per token as the pieces are."""
    return values.flatten().split([math.prod(states.shape[:-1]) for _, states in pieces])


def _sum(judge: Callable[..., Any], pieces: Pieces, *facts: Sequence[Any]) -> torch.Tensor:
    """Return the sum of what is judged piece by piece, each with what is told of it."""
    found: list[Any] = [
        _Judged.apply(states, make, lambda logits, about=about: judge(logits, *about))
        for (make, states), *about in zip(pieces, *facts, strict=True)
    ]
    return torch.stack(found).sum()


class _Judged(torch.autograd.Function):
    """The loss of what makes logits of states. Its slope is taken at once, while the logits are there.

    So they are made once, not kept until the way back and not made again for it. What makes them is not trained.
    """

    @staticmethod
    def forward(ctx: Any, states: torch.Tensor, make: Any, judge: Any) -> torch.Tensor:
        if not ctx.needs_input_grad[0]:
            return judge(make(states))[0]
        with torch.enable_grad():
            leaf = states.detach().requires_grad_()
            logits = make(leaf)
        loss, slope = judge(logits.detach())
        ctx.save_for_backward(*torch.autograd.grad(logits, leaf, slope.to(logits.dtype)))
        return loss

    @staticmethod
    def backward(ctx: Any, *above: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (slope,) = ctx.saved_tensors
        return slope * above[0], None, None
