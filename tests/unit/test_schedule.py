"""Schedules: how fast training goes, when it is judged, and that every window has its turn."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from sned.training.schedule import Schedule


def test_the_rate_rises_then_falls_and_no_step_is_wasted() -> None:
    schedule = Schedule(lr=1.0, warmup=0.25)
    rates = [schedule.rate(step, 20) for step in range(20)]
    assert rates[:5] == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6])
    assert rates[5] == 1.0
    assert all(later < before for before, later in pairwise(rates[5:]))
    assert 0 < rates[-1] < 0.02
    assert schedule.rate(20, 20) == pytest.approx(0)


@pytest.mark.parametrize("n_steps", [1, 2, 3])
def test_a_short_training_has_rates_too(n_steps: int) -> None:
    rates = [Schedule(lr=1.0).rate(step, n_steps) for step in range(n_steps)]
    assert rates[0] == 1.0
    assert all(0 < rate <= 1 for rate in rates)


@pytest.mark.parametrize(("n", "batch", "epochs"), [(10, 4, 1), (10, 4, 3), (3, 8, 2), (7, 1, 2)])
def test_every_window_is_seen_once_in_every_epoch(n: int, batch: int, epochs: int) -> None:
    schedule = Schedule(batch=batch, epochs=epochs)
    seen = torch.cat([schedule.windows(step, n, seed=3) for step in range(schedule.steps(n))])
    assert len(seen) == n * epochs
    orders = seen.view(epochs, n)
    assert torch.equal(orders.sort(1).values, torch.arange(n).expand(epochs, n))
    if epochs > 1 and n > 3:
        assert not torch.equal(orders[0], orders[1])
    assert torch.equal(schedule.windows(0, n, seed=3), seen[: min(batch, n * epochs)])


def test_another_seed_is_another_order() -> None:
    schedule = Schedule(batch=50)
    assert not torch.equal(schedule.windows(0, 50, seed=0), schedule.windows(0, 50, seed=1))


@pytest.mark.parametrize(("n_steps", "times"), [(12, 4), (10, 4), (3, 6), (1, 6)])
def test_it_is_judged_so_often_and_at_the_end(n_steps: int, times: int) -> None:
    schedule = Schedule(evaluations=times)
    judged = [step for step in range(1, n_steps + 1) if schedule.evaluates(step, n_steps)]
    assert len(judged) == min(times, n_steps)
    assert judged[-1] == n_steps
