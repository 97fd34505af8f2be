"""Learning what to keep from losses alone: masks are drawn, and what is in the better ones becomes more likely.

Chances of being kept `[parts]` are float64. Pure functions of tensors.
"""

from __future__ import annotations

import torch

LEAST_CHANCE = 0.01
"""Nothing is ever certain: what is never drawn could not be found to matter."""


def draw(chances: torch.Tensor, n_masks: int, generator: torch.Generator) -> torch.Tensor:
    """Return masks of independent parts, true where one is kept, `[masks, parts]`."""
    return torch.rand(n_masks, len(chances), generator=generator, dtype=torch.float64) < chances


def advantages(losses: torch.Tensor) -> torch.Tensor:
    """Return by how much each loss exceeds the mean of the others, `[masks]`; of one alone, nothing."""
    n = len(losses)
    return (losses - losses.mean()) * n / max(1, n - 1)


def gradient(masks: torch.Tensor, chances: torch.Tensor, excess: torch.Tensor) -> torch.Tensor:
    """Return an estimate of the gradient of the mean loss by the chances, `[parts]`.

    Unbiased for `excess` of `advantages`, and for the losses themselves; the score function estimator.

    Args:
        masks: As drawn with these chances, `[masks, parts]`.
        chances: Of being kept, `[parts]`.
        excess: Loss of each mask above a baseline that does not depend on it, `[masks]`.
    """
    scores = (masks.double() - chances) / (chances * (1 - chances))
    return excess.double() @ scores / len(masks)


def spread(chances: torch.Tensor) -> torch.Tensor:
    """Return the standard deviation of each part of a mask: a step along `gradient` times it is steady near 0 and 1."""
    return (chances * (1 - chances)).sqrt()


def chances_of(merits: torch.Tensor, sizes: torch.Tensor, most: float, least: float = LEAST_CHANCE) -> torch.Tensor:
    """Return chances that rise with merit, `sigmoid(merits + c)` within bounds, whose expected size is `most`.

    Args:
        merits: Of being kept, in standard deviations, `[parts]`.
        sizes: Of the parts, positive, `[parts]`.
        most: The expected size; where the bounds do not allow it, the nearest that they do.
        least: Bound of the chances.
    """
    low, high = -100.0, 100.0
    while low < (middle := (low + high) / 2) < high:
        size = float(sizes @ torch.sigmoid(merits + middle).clamp(least, 1 - least))
        low, high = (middle, high) if size <= most else (low, middle)
    return torch.sigmoid(merits + low).clamp(least, 1 - least)


def project(chances: torch.Tensor, sizes: torch.Tensor, most: float, least: float = LEAST_CHANCE) -> torch.Tensor:
    """Return the nearest chances whose expected size, `sizes @ chances`, is at most `most`.

    All lie between `least` and `1 - least`; where no such chances are small enough, all are `least`. They are
    `clamp(chances - v * sizes)` with the least `v` that will do, found by halving to the last bit.

    Args:
        chances: Any numbers, `[parts]`.
        sizes: Of the parts, positive, `[parts]`.
        most: The expected size allowed.
        least: Bound of the chances.
    """
    low, high = 0.0, float(((chances - least) / sizes).max().clamp_min(0))
    if float(sizes @ chances.clamp(least, 1 - least)) <= most:
        high = 0.0
    while low < (middle := (low + high) / 2) < high:
        size = float(sizes @ (chances - middle * sizes).clamp(least, 1 - least))
        low, high = (low, middle) if size <= most else (middle, high)
    return (chances - high * sizes).clamp(least, 1 - least)
