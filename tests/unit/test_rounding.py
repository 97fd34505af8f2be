"""Widths are rounded, and moved until a budget is met: never by more than a step too far."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from sned.score.rounding import default_step, kept_units, meet_budget, nearest_widths

SIZES, STEPS = (16, 24, 10), (4, 8, 4)


def logits_of(seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, generator=generator) + seed % 3 - 1 for size in SIZES]


def params_of(widths: list[int] | tuple[int, ...]) -> int:
    """As of an MLP: widths multiply."""
    read, hidden, write = widths
    return 2 * read * hidden + hidden * write + 7


def reachable() -> list[int]:
    ways = itertools.product(*[[*range(step, size, step), size] for size, step in zip(SIZES, STEPS, strict=True)])
    return sorted({params_of(widths) for widths in ways})


def test_steps_suit_the_hardware_unless_there_is_little() -> None:
    assert [default_step(size) for size in (1, 8, 48, 576, 1536, 14336)] == [1, 1, 4, 64, 64, 64]


@pytest.mark.parametrize("seed", range(6))
def test_widths_are_the_nearest_multiples(seed: int) -> None:
    for own, step, width in zip(logits_of(seed), STEPS, nearest_widths(logits_of(seed), STEPS), strict=True):
        wanted = int((own > 0).sum())
        assert width % step == 0 or width == len(own)
        assert step <= width <= len(own)
        assert abs(width - wanted) <= max(step / 2, step - wanted)


@pytest.mark.parametrize("share", [0.05, 0.3, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("seed", range(6))
def test_budgets_are_met_and_one_more_step_would_be_too_much(seed: int, share: float) -> None:
    logits = logits_of(seed)
    most = max(reachable()[0], math.floor(share * params_of(SIZES)))
    found = meet_budget(logits, nearest_widths(logits, STEPS), STEPS, most, params_of)
    assert params_of(found) <= most
    assert all(width % step == 0 or width == size for width, step, size in zip(found, STEPS, SIZES, strict=True))
    wider = []
    for gate, own in enumerate(logits):
        if found[gate] < len(own):
            more = min(len(own), found[gate] + STEPS[gate])
            mean = float(own.sort(descending=True).values[found[gate] : more].double().mean())
            wider.append((mean, params_of([*found[:gate], more, *found[gate + 1 :]])))
    assert not wider or max(wider)[1] > most or params_of(nearest_widths(logits, STEPS)) > most


def test_the_least_wanted_step_goes_first() -> None:
    logits = [torch.tensor([5.0, 4.0, 3.0, 0.2]), torch.tensor([9.0, 8.0, 0.3, 0.1])]
    assert meet_budget(logits, [4, 4], [1, 1], 6, sum) == [3, 3]
    assert meet_budget(logits, [4, 4], [2, 2], 6, sum) == [4, 2]
    assert meet_budget(logits, [1, 1], [1, 1], 4, sum) == [2, 2]


def test_the_highest_units_are_kept_and_ties_go_to_the_first() -> None:
    assert kept_units(torch.tensor([0.5, 2.0, 0.5, -1.0, 0.5]), 3) == [0, 1, 2]
