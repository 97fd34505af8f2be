"""Hard masks have the chances they should, and gradients that are right where that can be worked out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from sned.score.binarise import logistic_noise, sampled

if TYPE_CHECKING:
    from collections.abc import Callable

    from sned.score.binarise import Estimator

LOGITS = torch.tensor([-2.0, -0.3, 0.0, 0.7, 3.0])


@pytest.mark.parametrize("temperature", [0.4, 1.0])
@pytest.mark.parametrize("how", ["reinmax", "straight"])
def test_units_are_kept_as_often_as_their_logits_say(how: Estimator, temperature: float) -> None:
    draws = 100_000
    noise = logistic_noise(draws * len(LOGITS), torch.Generator().manual_seed(0)).view(draws, -1)
    masks = sampled(LOGITS, noise, temperature, how)
    assert set(masks.unique().tolist()) == {0.0, 1.0}
    assert torch.allclose(masks.mean(0), torch.sigmoid(LOGITS / temperature), atol=5e-3)


def test_noise_is_finite_and_follows_its_seed() -> None:
    first, again = (logistic_noise(1_000_000, torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.isfinite(first).all()
    assert torch.equal(first, again)


def expected_slope(how: Estimator, loss: Callable[[torch.Tensor], torch.Tensor], temperature: float) -> torch.Tensor:
    """The estimate of the gradient, averaged over both outcomes with their chances."""
    total = torch.zeros_like(LOGITS)
    chance = torch.sigmoid(LOGITS / temperature)
    for outcome, weight in ((100.0, chance), (-100.0, 1 - chance)):
        logits = LOGITS.clone().requires_grad_()
        mask = sampled(logits, torch.full_like(LOGITS, outcome), temperature, how)
        (slope,) = torch.autograd.grad(loss(mask).sum(), logits)
        total += weight * slope
    return total


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_reinmax_is_exact_for_losses_of_second_order(temperature: float) -> None:
    def loss(mask: torch.Tensor) -> torch.Tensor:
        return 3 * mask.square() - 5 * mask + 1

    chance = torch.sigmoid(LOGITS / temperature)
    exact = (loss(torch.tensor(1.0)) - loss(torch.tensor(0.0))) * chance * (1 - chance) / temperature
    assert torch.allclose(expected_slope("reinmax", loss, temperature), exact, atol=1e-5)
    assert not torch.allclose(expected_slope("straight", loss, temperature), exact, atol=1e-2)


def test_straight_through_has_the_slope_of_the_relaxed_mask() -> None:
    noise, slopes = logistic_noise(len(LOGITS), torch.Generator().manual_seed(3)), []
    hows: tuple[Estimator, ...] = ("straight", "soft")
    for how in hows:
        logits = LOGITS.clone().requires_grad_()
        mask = sampled(logits, noise, 0.4, how)
        slopes.append(torch.autograd.grad(mask.sum(), logits)[0])
    assert torch.equal(slopes[0], slopes[1])
    assert slopes[0].all()
