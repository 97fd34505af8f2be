"""Refitting a projection: against brute force, and on problems whose answer is known."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from sned.errors import NumericalError
from sned.score.refit import RIDGES, joined, moments_of, refit, solve

if TYPE_CHECKING:
    from sned.score.linear_map import Moments

FEATURES, HIDDEN, TOKENS = 9, 6, 400
either = pytest.mark.parametrize("bias", [False, True])


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


INPUTS = draw(0, TOKENS, FEATURES) * torch.linspace(0.5, 2, FEATURES, dtype=torch.float64) + 1.5
CHANGE, SHIFT = 0.4 * draw(1, FEATURES, HIDDEN), 0.7 * draw(2, HIDDEN)
NOISE = draw(3, TOKENS, HIDDEN)
WEIGHTS = draw(4, TOKENS).square() + 0.1


def moments(missing: torch.Tensor, rows: slice = slice(None), *, bias: bool) -> Moments:
    return moments_of(INPUTS[rows], missing[rows], WEIGHTS[rows].float(), bias=bias)


def brute_force(missing: torch.Tensor, ridge: float, *, bias: bool) -> torch.Tensor:
    """Solve the stacked least-squares problem itself: one row per token, and one per weight for the ridge."""
    root = WEIGHTS.sqrt()[:, None]
    features = torch.cat([INPUTS, torch.ones(TOKENS, 1)], 1) if bias else INPUTS
    seen = INPUTS - (WEIGHTS @ INPUTS / WEIGHTS.sum() if bias else 0)
    strength = ridge * (root * seen).square().sum(0).mean()
    penalty = torch.eye(FEATURES, features.shape[1], dtype=torch.float64) * strength.sqrt()
    rows = torch.cat([root * features, penalty])
    wanted = torch.cat([root * missing, torch.zeros(FEATURES, HIDDEN)])
    return torch.linalg.lstsq(rows, wanted, driver="gelsd").solution


@either
@pytest.mark.parametrize("ridge", RIDGES)
def test_it_is_the_least_squares_solution(ridge: float, bias: bool) -> None:
    missing = INPUTS @ CHANGE + SHIFT + NOISE
    got = solve(moments(missing, bias=bias), ridge, bias=bias)
    torch.testing.assert_close(got, brute_force(missing, ridge, bias=bias), atol=1e-4, rtol=1e-4)


def test_a_strong_ridge_leaves_the_weights_and_frees_the_bias() -> None:
    missing = INPUTS @ CHANGE + SHIFT
    got = solve(moments(missing, bias=True), 1e9, bias=True)
    assert got[:-1].abs().max() < 1e-6
    torch.testing.assert_close(got[-1], WEIGHTS @ missing / WEIGHTS.sum(), atol=1e-4, rtol=1e-4)


@either
def test_what_is_linear_is_found(bias: bool) -> None:
    missing = INPUTS @ CHANGE + (SHIFT if bias else 0)
    found = refit(moments(missing, slice(0, 300), bias=bias), moments(missing, slice(300, None), bias=bias), bias=bias)
    assert found is not None
    assert found.ridge == 0
    assert found.left < 1e-3
    want = torch.cat([CHANGE, SHIFT[None]]) if bias else CHANGE
    torch.testing.assert_close(found.change, want, atol=1e-4, rtol=1e-4)


@either
def test_the_ridge_is_the_best_on_what_was_held_out_and_the_fit_uses_everything(bias: bool) -> None:
    few, rest = slice(0, 30), slice(30, 60)
    missing = 0.2 * INPUTS @ CHANGE + NOISE
    fit, held = (moments(missing, rows, bias=bias) for rows in (few, rest))
    found = refit(fit, held, bias=bias)
    assert found is not None
    ones = [torch.ones(30, 1)] if bias else []

    def left(ridge: float) -> float:
        gap = torch.cat([INPUTS[rest], *ones], 1) @ solve(fit, ridge, bias=bias) - missing[rest]
        squares = [(WEIGHTS[rest] @ x.square()).sum() for x in (gap, missing[rest])]
        return float((squares[0] / squares[1]).sqrt())

    tried = {ridge: left(ridge) for ridge in RIDGES[:-1]}
    assert found.ridge == min(tried, key=lambda ridge: tried[ridge])
    assert found.ridge > RIDGES[-2]
    assert found.left == pytest.approx(tried[found.ridge], abs=1e-5)
    everything = solve(moments(missing, slice(0, 60), bias=bias), found.ridge, bias=bias)
    torch.testing.assert_close(found.change, everything, atol=1e-6, rtol=1e-6)


def test_few_tokens_never_go_without_a_ridge() -> None:
    missing = INPUTS @ CHANGE
    found = refit(moments(missing, slice(0, 60), bias=False), moments(missing, slice(60, 90), bias=False), bias=False)
    assert found is not None
    assert found.ridge == RIDGES[-2]


def test_what_would_not_help_is_not_done() -> None:
    opposite = torch.where(torch.arange(TOKENS)[:, None] < 300, 1.0, -1.0) * (INPUTS @ CHANGE)
    assert (
        refit(moments(opposite, slice(0, 300), bias=False), moments(opposite, slice(300, None), bias=False), bias=False)
        is None
    )
    nothing = torch.zeros(TOKENS, HIDDEN)
    assert refit(moments(nothing, bias=True), moments(nothing, bias=True), bias=True) is None


@either
def test_dead_and_equal_features_do_no_harm(bias: bool) -> None:
    inputs = INPUTS.clone()
    inputs[:, 2], inputs[:, 5] = 0.0, inputs[:, 4]
    missing = inputs @ CHANGE
    got = solve(moments_of(inputs, missing, WEIGHTS.float(), bias=bias), 0.0, bias=bias)
    features = torch.cat([inputs, torch.ones(TOKENS, 1)], 1) if bias else inputs
    torch.testing.assert_close(features @ got, missing, atol=1e-3, rtol=1e-3)
    assert got[2].abs().max() < 1e-3


@either
def test_tokens_can_come_in_parts(bias: bool) -> None:
    missing = INPUTS @ CHANGE + NOISE
    parts = [moments(missing, rows, bias=bias) for rows in (slice(0, 150), slice(150, None))]
    whole, both = moments(missing, bias=bias), joined(joined(None, parts[0]), parts[1])
    assert both.tokens == TOKENS
    for got, want in ((both.gram, whole.gram), (both.cross, whole.cross)):
        torch.testing.assert_close(got, want, atol=1e-3, rtol=1e-5)
    assert both.target_square == pytest.approx(whole.target_square, rel=1e-5)


def test_states_that_are_not_finite_are_told() -> None:
    broken = INPUTS.clone()
    broken[3, 3] = torch.nan
    sick = moments_of(broken, NOISE, WEIGHTS.float(), bias=False)
    with pytest.raises(NumericalError, match="NaN or infinity"):
        refit(sick, sick, bias=False)
