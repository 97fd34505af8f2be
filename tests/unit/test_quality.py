"""Perplexity, divergence and speed, against what transformers and plain softmax say."""

from __future__ import annotations

import pytest
import torch
from kit.compare import logits
from kit.tiny import make_model, tokens

from sned.errors import NumericalError
from sned.evaluation.quality import measure_quality
from sned.evaluation.speed import race
from sned.models import surgery
from sned.models.view import View

TOKENS = tokens(5, 16)


@pytest.fixture
def dense() -> View:
    return View(make_model("llama"))


@pytest.fixture
def pruned(dense: View) -> View:
    fork = dense.fork()
    surgery.drop_layers(fork, [1, 2])
    return fork


def test_nll_is_the_loss_that_transformers_computes(dense: View) -> None:
    with torch.no_grad():
        expected = dense.model(TOKENS.ids, labels=TOKENS.ids).loss
    assert measure_quality(dense, TOKENS).nll == pytest.approx(float(expected), rel=1e-5)


def test_a_model_does_not_differ_from_itself(dense: View) -> None:
    quality = measure_quality(dense, TOKENS, dense=dense.fork())
    assert quality.kl == pytest.approx(0, abs=1e-7)
    assert quality.top1_agreement == 1
    assert quality.dense_nll == quality.nll


def test_divergence_is_from_dense_to_pruned(dense: View, pruned: View) -> None:
    p, q = (logits(v.model, TOKENS.ids)[:, :-1].double().log_softmax(-1) for v in (dense, pruned))
    quality = measure_quality(pruned, TOKENS, dense=dense)
    assert quality.kl == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-4)
    assert quality.top1_agreement == pytest.approx(float((p.argmax(-1) == q.argmax(-1)).double().mean()))
    assert quality.dense_nll == pytest.approx(measure_quality(dense, TOKENS).nll, rel=1e-9)


def test_a_layer_that_breaks_is_named(dense: View) -> None:
    with torch.no_grad():
        dense.layer(3).get_parameter("mlp.up_proj.weight")[0, 0] = torch.inf
    with pytest.raises(NumericalError, match="layer 3"):
        measure_quality(dense, TOKENS)


def test_a_race_reports_what_it_measured(dense: View, pruned: View) -> None:
    result = race(dense, pruned, rounds=1)
    assert result.prefill_ratio == result.dense.prefill / result.pruned.prefill
    assert result.decode_ratio == result.dense.decode / result.pruned.decode
    assert result.dense.head < result.dense.decode
