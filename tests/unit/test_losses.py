"""Losses of training: against their definitions written out, and against transformers'."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from kit.tiny import make_model, tokens

from sned.score.losses import cross_entropy, divergence, states_apart

if TYPE_CHECKING:
    from sned.score.losses import Pieces, StateLoss

STATES = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
TARGETS = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1))


def by_hand(name: str) -> float:
    rows: list[float] = []
    for x, y in zip(STATES.view(-1, 8).tolist(), TARGETS.view(-1, 8).tolist(), strict=True):
        square = sum((a - b) ** 2 for a, b in zip(x, y, strict=True))
        norms = [sum(a * a for a in v) ** 0.5 for v in (x, y)]
        dot = sum(a * b for a, b in zip(x, y, strict=True))
        rows.append({"mse": square / 8, "nmse": square / norms[1] ** 2, "cosine": 1 - dot / norms[0] / norms[1]}[name])
    return sum(rows) / len(rows)


@pytest.mark.parametrize("name", ["mse", "nmse", "cosine"])
def test_distances_of_states(name: StateLoss) -> None:
    assert float(states_apart(name, STATES, TARGETS)) == pytest.approx(by_hand(name), rel=1e-5)
    assert float(states_apart(name, TARGETS, TARGETS)) == pytest.approx(0, abs=1e-6)


def test_a_huge_token_does_not_outweigh_the_others() -> None:
    """Its state is a thousand times as large; relative to its size it is off by as much as the others."""
    targets, off = TARGETS.clone(), 1.1
    targets[0, 0] *= 1000
    assert float(states_apart("nmse", off * targets, targets)) == pytest.approx(0.01, rel=1e-4)
    assert float(states_apart("mse", off * targets, targets)) > 1000 * 0.01


def pieces_of(model: torch.nn.Module, states: torch.Tensor, size: int) -> Pieces:
    return [(model.lm_head, part) for part in states.flatten(0, 1).split(size)]


@pytest.mark.parametrize("size", [3, 7, 1000])
def test_cross_entropy_is_that_of_transformers_with_its_gradient(size: int) -> None:
    model, ids = make_model("llama"), tokens(2, 9).ids
    states = model.model(ids).last_hidden_state.detach().requires_grad_()
    theirs = model.loss_function(model.lm_head(states), labels=ids, vocab_size=model.config.vocab_size)
    (wanted,) = torch.autograd.grad(theirs, states)
    ours = cross_entropy(pieces_of(model, states, size), ids)
    (got,) = torch.autograd.grad(ours, states)
    assert float(ours.detach()) == pytest.approx(float(theirs.detach()), rel=1e-6)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("size", [4, 1000])
def test_divergence_is_that_of_the_distributions_with_its_gradient(size: int) -> None:
    model, teacher, ids = make_model("llama"), make_model("llama", seed=1), tokens(2, 9).ids
    with torch.no_grad():
        states, theirs = (m.model(ids).last_hidden_state for m in (model, teacher))
    states.requires_grad_()
    log_q, log_p = model.lm_head(states).log_softmax(-1), teacher.lm_head(theirs).log_softmax(-1)
    wanted = (log_p.exp() * (log_p - log_q)).sum(-1)[:, :-1].mean()
    got = divergence(pieces_of(model, states, size), pieces_of(teacher, theirs, size), ids)
    assert float(got.detach()) == pytest.approx(float(wanted.detach()), rel=1e-5)
    slopes = [torch.autograd.grad(3 * loss, states)[0] for loss in (got, wanted)]
    torch.testing.assert_close(*slopes, rtol=1e-4, atol=1e-7)
    itself = divergence(pieces_of(model, states, size), pieces_of(model, states.detach(), size), ids)
    assert float(itself.detach()) == pytest.approx(0, abs=1e-6)
    (gradient,) = torch.autograd.grad(itself, states)
    assert gradient.abs().max() < 1e-6  # nothing is nearer than the same
