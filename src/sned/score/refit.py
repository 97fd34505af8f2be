"""Refitting a linear projection to what is missing downstream of it: ridge least squares for a change of its weights.

The projection receives `X` `[tokens, features]`, and `R` `[tokens, hidden]` is missing after it. The change `D`
minimises `Σ w² ‖x D - r‖² + a ‖D‖²`, so that a strong ridge leaves the projection as it is. A bias is one more feature,
which is 1 for every token and not held back. Pure functions of tensors, in float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sned.score.linear_map import Moments, fit_closed, relative_error

RIDGES = (10.0, 3.0, 1.0, 0.3, 0.1, 0.0)
"""What is tried, relative to the mean square of the features; the last only where tokens abound."""
TOKENS_PER_FEATURE = 10


@dataclass(frozen=True, slots=True)
class Refit:
    """A change of a projection, and how much it helps.

    Attributes:
        change: `D` `[features, hidden]`, float64; the last row is for the bias, where there is one.
        ridge: The strength that was best on tokens held out.
        left: `‖X D - R‖ / ‖R‖` over the weighted tokens that were held out, when fitted without them.
    """

    change: torch.Tensor
    ridge: float
    left: float


def moments_of(inputs: torch.Tensor, missing: torch.Tensor, importance: torch.Tensor, *, bias: bool) -> Moments:
    """Return the moments of some tokens; products are in float32.

    Args:
        inputs: `X` `[tokens, features]`, without the one for a bias.
        missing: `R` `[tokens, hidden]`.
        importance: `w²` `[tokens]`.
        bias: Whether the projection has a bias.
    """
    x, r = inputs.float(), missing.float()
    if bias:
        x = torch.cat([x, torch.ones_like(x[:, :1])], 1)
    weighted = x * importance[:, None]
    square = (importance @ r.square()).sum(dtype=torch.float64)
    return Moments((weighted.T @ x).double().cpu(), (weighted.T @ r).double().cpu(), float(square), len(x))


def joined(first: Moments | None, second: Moments) -> Moments:
    """Return the moments of two sets of tokens together."""
    if first is None:
        return second
    return Moments(
        first.gram + second.gram,
        first.cross + second.cross,
        first.target_square + second.target_square,
        first.tokens + second.tokens,
    )


def refit(fit: Moments, held: Moments, *, bias: bool) -> Refit | None:
    """Return the best change of a projection, or None where no change helps on tokens that it was not fitted to.

    The ridge is weakened as long as that helps on the tokens held out; the change is then fitted to all tokens.

    Raises:
        NumericalError: the moments are not finite.
    """
    if not held.target_square:
        return None
    best: tuple[float, float] | None = None
    enough = fit.tokens >= TOKENS_PER_FEATURE * len(fit.gram)
    for ridge in RIDGES if enough else RIDGES[:-1]:
        left = relative_error(held, solve(fit, ridge, bias=bias))
        if left >= (best[0] if best else 1.0):
            break
        best = left, ridge
    if best is None:
        return None
    left, ridge = best
    return Refit(solve(joined(fit, held), ridge, bias=bias), ridge, left)


def solve(moments: Moments, ridge: float, *, bias: bool) -> torch.Tensor:
    """Return the change `D` `[features, hidden]` that a ridge allows.

    Raises:
        NumericalError: the moments are not finite.
    """
    if not bias:
        return fit_closed(moments, ridge=ridge, towards_identity=False).matrix
    # without means, the weights and the bias are independent problems
    gram, cross = moments.gram[:-1, :-1], moments.cross[:-1]
    mean, gap = moments.gram[-1, :-1] / moments.gram[-1, -1], moments.cross[-1] / moments.gram[-1, -1]
    centred = Moments(
        gram - torch.outer(moments.gram[-1, :-1], mean),
        cross - torch.outer(moments.gram[-1, :-1], gap),
        moments.target_square - float(gap @ moments.cross[-1]),
        moments.tokens,
    )
    weight = fit_closed(centred, ridge=ridge, towards_identity=False).matrix
    return torch.cat([weight, (gap - mean @ weight)[None]])
