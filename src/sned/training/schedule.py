"""How long training lasts, how fast it goes, and in which order windows come. Pure functions and data."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Schedule:
    """How to train.

    Attributes:
        batch: Windows per optimiser step.
        epochs: Times that every window is seen.
        lr: Peak learning rate of AdamW.
        warmup: Share of the steps in which the rate rises from zero.
        weight_decay: Of AdamW.
        clip: Largest norm of the gradient of all weights together.
        evaluations: How often the held-out loss is measured on the way, evenly spread.
        patience: Evaluations in a row without a better loss after which training ends early.
    """

    batch: int = 8
    epochs: int = 1
    lr: float = 2e-4
    warmup: float = 0.03
    weight_decay: float = 1e-3
    clip: float = 1.0
    evaluations: int = 6
    patience: int = 3

    def steps(self, n_windows: int) -> int:
        """Return the number of optimiser steps over so many windows; a last short batch counts."""
        return -(-n_windows * self.epochs // self.batch)

    def rate(self, step: int, n_steps: int) -> float:
        """Return the learning rate of a step, counted from 0: a linear rise, then half a cosine.

        It would be zero after the last step, so that every step moves something.
        """
        rising = round(self.warmup * n_steps)
        if step < rising:
            return self.lr * (step + 1) / (rising + 1)
        progress = (step - rising) / max(1, n_steps - rising)
        return self.lr * (1 + math.cos(math.pi * min(1.0, progress))) / 2

    def evaluates(self, step: int, n_steps: int) -> bool:
        """Tell whether the held-out loss is measured after so many steps."""
        return step == n_steps or step * self.evaluations // n_steps > (step - 1) * self.evaluations // n_steps

    def windows(self, step: int, n_windows: int, seed: int) -> torch.Tensor:
        """Return the numbers of the windows of a step; every epoch has an order of its own."""
        start = step * self.batch
        places = torch.arange(start, min(start + self.batch, n_windows * self.epochs))
        orders = {int(epoch): _order(n_windows, seed, int(epoch)) for epoch in (places // n_windows).unique()}
        return torch.stack([orders[int(place) // n_windows][int(place) % n_windows] for place in places])


def _order(n: int, seed: int, epoch: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(n, generator=generator)
