"""Simple maps in the place of layers: in closed form the best of their kind, and they know how good they are."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sned.errors import NumericalError
from sned.models.modeling_sned import stand_in
from sned.score.linear_map import Moments, fit_closed
from sned.score.updates import Update, error_left, low_rank, scale, shift

TOKENS, HIDDEN = 400, 12
GENERATOR = torch.Generator().manual_seed(4)


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=GENERATOR, dtype=torch.float64)


STREAM = normal(TOKENS, HIDDEN) @ (torch.eye(HIDDEN) + 0.5 * normal(HIDDEN, HIDDEN)) + normal(HIDDEN)
ADDED = 0.3 * torch.tanh(STREAM @ normal(HIDDEN, HIDDEN)) + 0.2


WEIGHTS = torch.rand(TOKENS, 1, generator=GENERATOR, dtype=torch.float64) + 0.1


def update_of(x: torch.Tensor = STREAM, y: torch.Tensor = ADDED) -> Update:
    square = float((WEIGHTS * y.square()).sum())
    moments = Moments(x.T @ (WEIGHTS * x), x.T @ (WEIGHTS * y), square, len(x))
    sums = [(WEIGHTS * t).sum(0) for t in (y, x.abs(), (x + y).abs(), x.square(), x * y)]
    return Update(len(x), float(WEIGHTS.sum()), *sums, added_square=square, moments=moments)


def fitted(kind: Any, update: Update, rank: int = 3) -> torch.Tensor:
    if kind == "lowrank":
        assert update.moments is not None
        return low_rank(update.moments, rank)
    return shift(update) if kind == "shift" else scale(update)


def error(kind: str, tensor: torch.Tensor, x: torch.Tensor = STREAM, y: torch.Tensor = ADDED) -> float:
    return float((WEIGHTS.sqrt() * (stand_in(kind, tensor, x) - (x + y))).norm() / (WEIGHTS.sqrt() * y).norm())


@pytest.mark.parametrize("kind", ["shift", "scale", "lowrank"])
def test_the_error_left_is_that_of_the_map_where_it_stands(kind: Any) -> None:
    update = update_of()
    tensor = fitted(kind, update)
    assert error_left(update, kind, tensor) == pytest.approx(error(kind, tensor), rel=1e-6)
    other = tensor + 0.1 * torch.ones_like(tensor)
    assert error_left(update, kind, other) == pytest.approx(error(kind, other), rel=1e-6)


@pytest.mark.parametrize(
    ("kind", "nothing"),
    [("shift", torch.zeros(HIDDEN)), ("scale", torch.ones(HIDDEN)), ("lowrank", torch.zeros(4, HIDDEN))],
)
def test_a_map_that_changes_nothing_leaves_all_of_the_error(kind: Any, nothing: torch.Tensor) -> None:
    assert error_left(update_of(), kind, nothing.double()) == pytest.approx(1)
    silent = update_of(STREAM, torch.zeros_like(ADDED))
    assert error_left(silent, kind, nothing.double()) == 0


@pytest.mark.parametrize("kind", ["shift", "lowrank"])
def test_no_other_map_of_the_kind_leaves_less(kind: Any) -> None:
    tensor = fitted(kind, update_of())
    best = error(kind, tensor)
    assert best < 1
    for _ in range(50):
        assert error(kind, tensor + 1e-2 * normal(*tensor.shape)) > best


def test_what_is_always_added_is_recovered() -> None:
    constant = normal(HIDDEN)
    update = update_of(y=constant.expand_as(ADDED))
    torch.testing.assert_close(shift(update), constant)
    assert error_left(update, "shift", shift(update)) < 1e-6


def test_factors_of_channels_are_recovered_up_to_their_sign() -> None:
    factors = torch.linspace(0.5, 2, HIDDEN, dtype=torch.float64)
    torch.testing.assert_close(scale(update_of(y=STREAM * (factors - 1))), factors)
    torch.testing.assert_close(scale(update_of(y=STREAM * (-factors - 1))), factors)


def test_a_channel_that_was_silent_stays_as_it_is() -> None:
    stream = STREAM.clone()
    stream[:, 5] = 0
    assert scale(update_of(x=stream))[5] == 1


class TestLowRank:
    @pytest.mark.parametrize("rank", [1, 3])
    def test_a_map_of_the_rank_is_recovered(self, rank: int) -> None:
        down, up = normal(HIDDEN, rank), normal(rank, HIDDEN)
        update = update_of(y=STREAM @ down @ up)
        tensor = fitted("lowrank", update, rank)
        assert tensor.shape == (2 * rank, HIDDEN)
        torch.testing.assert_close(tensor[:rank].T @ tensor[rank:], down @ up)
        assert error_left(update, "lowrank", tensor) < 1e-6

    @pytest.mark.parametrize("rank", range(1, HIDDEN + 1))
    def test_the_error_is_what_lies_beyond_the_leading_directions(self, rank: int) -> None:
        """By projecting the update on what the stream can make at all, and cutting that short."""
        stream, added = WEIGHTS.sqrt() * STREAM, WEIGHTS.sqrt() * ADDED
        basis = torch.linalg.qr(stream).Q
        reachable = basis @ (basis.T @ added)
        beyond = torch.linalg.svdvals(reachable)[rank:].square().sum() + (added - reachable).square().sum()
        tensor = fitted("lowrank", update_of(), rank)
        assert error("lowrank", tensor) == pytest.approx(float(beyond.sqrt() / added.norm()), rel=1e-9)

    def test_full_rank_is_plain_least_squares(self) -> None:
        moments = update_of().moments
        assert moments is not None
        tensor = low_rank(moments, HIDDEN)
        torch.testing.assert_close(tensor[:HIDDEN].T @ tensor[HIDDEN:], fit_closed(moments).matrix)

    def test_channels_that_never_differ_do_no_harm(self) -> None:
        stream = STREAM.clone()
        stream[:, 3] = stream[:, 4]
        stream[:, 7] = 0
        tensor = fitted("lowrank", update_of(x=stream), 4)
        assert torch.isfinite(tensor).all()
        assert error("lowrank", tensor, x=stream) < 1

    def test_states_that_are_not_finite_are_refused(self) -> None:
        stream = STREAM.clone()
        stream[3, 3] = torch.nan
        with pytest.raises(NumericalError, match="NaN or infinity"):
            fitted("lowrank", update_of(x=stream))
