"""Hard masks that can be learned by gradient: drawn as 0 or 1, with an estimate of how their chances would change.

A unit with logit `u` is kept with probability `sigmoid(u / temperature)`. Pure functions of tensors.
"""

from __future__ import annotations

from typing import Literal

import torch

Estimator = Literal["reinmax", "straight", "soft"]


def logistic_noise(size: int, generator: torch.Generator) -> torch.Tensor:
    """Return draws of the logistic distribution, `[size]`: added to a logit, the sum is positive with its chance."""
    tiny = torch.finfo(torch.float32).tiny
    uniform = torch.rand(size, generator=generator).clamp(tiny, 1 - torch.finfo(torch.float32).eps)
    return uniform.log() - (-uniform).log1p()


def sampled(logits: torch.Tensor, noise: torch.Tensor, temperature: float, how: Estimator) -> torch.Tensor:
    """Return a mask drawn for logits `[units]`, differentiable in them.

    `straight` has the gradient of the relaxed mask (binary concrete) from which the hard one comes by rounding;
    `reinmax` the second-order estimate of arXiv:2304.08612 for two classes (its algorithm 2 at temperature 1); `soft`
    returns the relaxed mask itself.

    Args:
        logits: Of being kept, before they are divided by the temperature.
        noise: Logistic, `[units]`.
        temperature: The lower, the less is left to chance.
        how: The estimator.
    """
    scaled = logits / temperature
    relaxed = torch.sigmoid(scaled + noise)
    if how == "soft":
        return relaxed
    hard = (scaled.detach() + noise > 0).to(relaxed.dtype)
    if how == "straight":
        return hard + (relaxed - relaxed.detach())  # nothing, but for its gradient
    chance = torch.sigmoid(scaled)
    middle = ((hard + chance) / 2).detach()
    # a sigmoid that has the value `middle` here, and whose slope is that of the logits
    pulled = torch.sigmoid(torch.logit(middle, eps=1e-7) + scaled - scaled.detach())
    estimate = 2 * pulled - chance / 2
    return hard + (estimate - estimate.detach())
