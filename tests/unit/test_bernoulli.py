"""Learning chances from losses: an unbiased gradient, and the nearest chances that a budget allows."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from sned.score.bernoulli import LEAST_CHANCE, advantages, chances_of, draw, gradient, project, spread

PARTS = 6
CHANCES = torch.linspace(0.15, 0.9, PARTS, dtype=torch.float64)


def losses_of(masks: torch.Tensor) -> torch.Tensor:
    """A loss in which parts work together and against each other."""
    m = masks.double()
    generator = torch.Generator().manual_seed(4)
    single = torch.randn(PARTS, generator=generator, dtype=torch.float64)
    pairs = torch.randn(PARTS, PARTS, generator=generator, dtype=torch.float64)
    return 3.0 - m @ single + 0.3 * ((m @ pairs) * m).sum(-1)


def true_gradient() -> torch.Tensor:
    """By all masks there are: the mean loss is a polynomial of the chances."""
    masks = torch.tensor(list(product([False, True], repeat=PARTS)))
    chances = CHANCES.clone().requires_grad_()
    likely = torch.where(masks, chances, 1 - chances).prod(1)
    (likely @ losses_of(masks)).backward()
    assert chances.grad is not None
    return chances.grad


@pytest.mark.parametrize("n_masks", [2, 4])
def test_the_gradient_is_unbiased(n_masks: int) -> None:
    """The mean of many estimates is the gradient over all masks, within three times what chance explains."""
    generator, found = torch.Generator().manual_seed(1), []
    for _ in range(4000):
        masks = draw(CHANCES, n_masks, generator)
        found.append(gradient(masks, CHANCES, advantages(losses_of(masks))))
    estimates = torch.stack(found)
    error = estimates.std(0) / len(estimates) ** 0.5
    assert ((estimates.mean(0) - true_gradient()).abs() < 3.5 * error).all()
    assert (error < 0.2 * true_gradient().abs().max()).all(), "the test would see nothing"


def test_other_masks_are_a_better_baseline_than_none() -> None:
    generator, with_, without = torch.Generator().manual_seed(2), [], []
    for _ in range(500):
        masks = draw(CHANCES, 4, generator)
        losses = losses_of(masks) + 10
        with_.append(gradient(masks, CHANCES, advantages(losses)))
        without.append(gradient(masks, CHANCES, losses))
    assert torch.stack(with_).var(0).sum() < torch.stack(without).var(0).sum() / 10


def test_advantages_leave_each_loss_out_of_its_own_baseline() -> None:
    losses = torch.tensor([1.0, 4.0, 7.0], dtype=torch.float64)
    assert advantages(losses).tolist() == pytest.approx([1 - 5.5, 4 - 4, 7 - 2.5])
    assert advantages(losses[:1]).tolist() == [0], "one loss alone says nothing"


def test_drawn_as_often_as_likely() -> None:
    share = draw(CHANCES, 20_000, torch.Generator().manual_seed(3)).double().mean(0)
    assert share.tolist() == pytest.approx(CHANCES.tolist(), abs=0.015)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.95])
def test_the_projection_is_the_nearest_that_the_budget_allows(seed: int, share: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    wished = torch.rand(40, generator=generator, dtype=torch.float64) * 1.6 - 0.3
    sizes = 0.2 + torch.rand(40, generator=generator, dtype=torch.float64)
    most = share * float(sizes.sum())
    found = project(wished, sizes, most)
    assert float(sizes @ found) <= most + 1e-9
    assert found.min() >= LEAST_CHANCE
    assert found.max() <= 1 - LEAST_CHANCE
    assert torch.allclose(project(found, sizes, most), found, atol=1e-12)
    for _ in range(200):  # no other that is allowed is nearer: the problem is convex, so that neighbours tell
        step = torch.randn(40, generator=generator, dtype=torch.float64)
        other = (found + 0.01 * step).clamp(LEAST_CHANCE, 1 - LEAST_CHANCE)
        if float(sizes @ other) <= most:
            assert (other - wished).norm() >= (found - wished).norm() - 1e-9


def test_what_is_allowed_already_only_meets_the_bounds() -> None:
    wished = torch.tensor([-0.2, 0.4, 1.3], dtype=torch.float64)
    found = project(wished, torch.ones(3, dtype=torch.float64), 3.0)
    assert found.tolist() == pytest.approx([LEAST_CHANCE, 0.4, 1 - LEAST_CHANCE])


def test_a_budget_below_all_bounds_leaves_the_least() -> None:
    found = project(torch.ones(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64), 0.0)
    assert found.tolist() == pytest.approx([LEAST_CHANCE] * 4)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_first_chances_meet_the_budget_in_the_order_of_merit(share: float) -> None:
    merits = torch.linspace(-3, 3, 50, dtype=torch.float64)
    sizes = torch.rand(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.5
    found = chances_of(merits, sizes, share * float(sizes.sum()))
    assert float(sizes @ found) == pytest.approx(share * float(sizes.sum()))
    assert (found.diff() >= 0).all()
    alike = chances_of(torch.zeros_like(merits), sizes, share * float(sizes.sum()))
    assert alike.tolist() == pytest.approx([share] * 50)


def test_descent_finds_the_best_mask() -> None:
    """Of all masks of three parts out of six; steps as the method takes them."""
    sizes, generator = torch.ones(PARTS, dtype=torch.float64), torch.Generator().manual_seed(5)
    masks = torch.tensor([m for m in product([False, True], repeat=PARTS) if sum(m) == 3])
    best = masks[int(losses_of(masks).argmin())]
    chances = torch.full((PARTS,), 0.5, dtype=torch.float64)
    for step in range(400):
        drawn = draw(chances, 4, generator)
        move = spread(chances) * gradient(drawn, chances, advantages(losses_of(drawn)))
        chances = project(chances - 0.05 * (1 - step / 400) * move, sizes, 3.0)
    assert set(chances.topk(3).indices.tolist()) == set(best.nonzero().flatten().tolist())
