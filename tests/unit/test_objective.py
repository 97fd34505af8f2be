"""What candidates are judged by, against the plain formulas in double precision."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from kit.compare import logits
from kit.planning import calibration
from kit.searching import block, cut, fresh
from kit.tiny import FAMILY_NAMES, make_model

from sned.runtime import objective as objectives
from sned.runtime.objective import Divergence, Perplexity, sliced_nll
from sned.runtime.sweep import Sweep

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sned.models.view import View

every_family = pytest.mark.parametrize("name", FAMILY_NAMES)
IDS = calibration().ids
WORKED_ON = ["gemma2", "granite"]
"""Families that cap or scale their logits."""


def chances(view: View) -> torch.Tensor:
    """Log-probabilities of each next token by the model's own forward pass, `[batch, tokens - 1, vocab]`."""
    return logits(view.model, IDS)[:, :-1].double().log_softmax(-1)


def final(view: View) -> Iterator[tuple[Sweep, torch.Tensor, torch.Tensor]]:
    sweep = Sweep(view)
    for chunk in sweep.chunks(IDS):
        yield from ((sweep, ids, hidden) for ids, hidden in sweep.final(chunk))


@pytest.mark.parametrize("vocab", [3, 256, 257, 1000, 1024])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_the_loss_in_slices_is_the_loss(vocab: int, bias: bool, scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slices of 256; a large scale makes some probabilities vanish in single precision."""
    monkeypatch.setattr(objectives, "_LOGITS_HELD", {"cpu": 1})
    generator = torch.Generator().manual_seed(vocab)
    states, weight = (torch.randn(n, 16, generator=generator) for n in (21, vocab))
    offset = torch.randn(vocab, generator=generator) if bias else None
    targets = torch.randint(vocab, (21,), generator=generator)
    targets[0], targets[1] = 0, vocab - 1
    got = sliced_nll(scale * states, weight, offset, targets)
    full = scale * states.double() @ weight.double().T + (0 if offset is None else offset.double())
    want = -full.log_softmax(-1).gather(1, targets[:, None])[:, 0]
    torch.testing.assert_close(got.double(), want, atol=1e-4, rtol=1e-5)


def test_slices_hold_no_more_logits_than_they_may(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    linear = torch.nn.functional.linear

    def watched(*args: Any) -> torch.Tensor:
        made.append((out := linear(*args)).numel())
        return out

    monkeypatch.setattr(objectives, "_LOGITS_HELD", {"cpu": 21 * 300})
    monkeypatch.setattr(torch.nn.functional, "linear", watched)
    sliced_nll(torch.ones(21, 4), torch.ones(1000, 4), None, torch.zeros(21, dtype=torch.int64))
    assert made == [21 * 300] * 3 + [21 * 100]


@every_family
def test_perplexity_is_that_of_the_models_own_logits(name: str) -> None:
    view = fresh(name)
    want = -chances(view).gather(2, IDS[:, 1:, None])[..., 0]
    ((sweep, ids, hidden),) = final(view)
    torch.testing.assert_close(Perplexity(sweep).per_token(ids, hidden).double(), want, atol=1e-4, rtol=1e-4)


@every_family
def test_what_is_lost_at_least_is_lost_over_what_seems_likely(name: str) -> None:
    """The targets, and what the first candidate to meet the text finds likely: a sixth of the vocabulary."""
    log_p, targets = chances(fresh(name)), IDS[:, 1:, None]
    ((sweep, ids, hidden),) = final(fresh(name))
    objective = Perplexity(sweep)
    got = objective.least(ids, hidden).double()
    if name in WORKED_ON:
        assert not got.any()
        return
    likely = log_p.exp().mean((0, 1)).topk(log_p.shape[2] // 6).indices
    part = torch.zeros(log_p.shape[2], dtype=torch.bool)
    part[likely], part[targets.flatten()] = True, True
    want = log_p[..., part].logsumexp(-1) - log_p.gather(2, targets)[..., 0]
    torch.testing.assert_close(got, want - 1e-3, atol=1e-4, rtol=1e-4)
    ((sweep, _, worse),) = final(cut(make_model(name), [block("attn", 2)]))
    assert (objective.least(ids, worse) < Perplexity(sweep).per_token(ids, worse)).all()


@every_family
def test_whole_logits_are_made_only_where_a_model_works_on_them(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everywhere else the model is asked once, about a few tokens, whether its head is a plain matrix."""
    asked: list[int] = []
    made = Sweep.logits

    def watched(sweep: Sweep, ids: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        asked.append(ids.numel())
        return made(sweep, ids, hidden)

    monkeypatch.setattr(Sweep, "logits", watched)
    ((sweep, ids, hidden),) = final(fresh(name))
    objective = Perplexity(sweep)
    for _ in range(2):
        objective.per_token(ids, hidden)
    assert asked[0] == 8
    assert sum(asked[1:]) == (2 * IDS.numel() if name in WORKED_ON else 0)
    assert max(asked) <= IDS.shape[1]


@pytest.mark.parametrize("slices", [1, 2**22])
@every_family
def test_divergence_is_that_of_the_two_models(name: str, slices: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Divergence, "_ROWS", min(slices * 4, 128))
    view = cut(make_model(name), [block("attn", 2)])
    p, q = chances(fresh(name)), chances(view)
    ((sweep, ids, hidden),) = final(view)
    got = Divergence(sweep, fresh(name)).per_token(ids, hidden)
    torch.testing.assert_close(got.double(), (p.exp() * (p - q)).sum(-1), atol=1e-5, rtol=1e-3)
    assert got.max() > 1e-3


@every_family
def test_a_model_does_not_diverge_from_itself(name: str) -> None:
    view = fresh(name)
    ((sweep, ids, hidden),) = final(view)
    assert (Divergence(sweep, view.fork()).per_token(ids, hidden) == 0).all()
