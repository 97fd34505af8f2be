"""FLAP: what does not vary goes first, and a bias stands for it exactly."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kit.compare import assert_differ, assert_same_logits, logits
from kit.planning import calibration, plan_on
from kit.searching import context_of
from kit.tiny import DENSE_NAMES, family_of, make_model

from sned.models.view import View
from sned.plans.ops import AddBias, Keep
from sned.runtime.statistics import Fluctuation
from sned.score.importance import unit_fluctuations

CONSTANT = range(10, 26)
AXIS = "layers.2.mlp.hidden"


def with_constant_channels() -> Any:
    """A model in which some channels of one MLP are the same for every token, and large."""
    model = make_model("llama")
    layer: Any = View(model).layer(2)
    for name in ("gate_proj", "up_proj"):
        projection = getattr(layer.mlp, name)
        projection.weight.data[list(CONSTANT)] = 0
        projection.bias.data[list(CONSTANT)] = 2.0
    return model


@pytest.mark.parametrize("across", ["standard", "uniform", "global"])
def test_constant_channels_go_and_are_not_missed(across: str) -> None:
    model, view = with_constant_channels(), View(with_constant_channels())
    plan = plan_on(view, "flap", kinds="mlp", across=across, remove=0.008)
    cut = {op.axis: set(range(48)) - set(op.units) for op in plan.ops if isinstance(op, Keep)}
    assert cut
    assert cut.get(AXIS, set()) <= set(CONSTANT)
    assert AXIS in cut or across == "standard"  # by which they are far from their own axis, not from others
    if across == "global":
        assert set(cut) == {AXIS}
        assert_same_logits(logits(view.model), logits(model))
    bare = View(with_constant_channels())
    plan_on(bare, "flap", kinds="mlp", across=across, remove=0.008, compensate=False)
    assert_differ(logits(bare.model), logits(model))


@pytest.mark.parametrize("name", [n for n in DENSE_NAMES if "attn.group" not in family_of(n).inexact])
def test_the_mean_output_of_a_layer_stays(name: str) -> None:
    """Of the first layer that is cut, whose inputs are still those of the dense model."""
    view = View(make_model(name))
    plan = plan_on(view, "flap", across="uniform", remove=0.15, remove_of="body")
    assert {op.layer for op in plan.ops if isinstance(op, AddBias)} == {
        int(op.axis.split(".")[1]) for op in plan.ops if isinstance(op, Keep)
    }
    outputs = []
    for seen in (View(make_model(name)), view):
        caught: list[torch.Tensor] = []
        last = seen.layer(0).get_submodule(seen.axis("layers.0.attn.group").taps[0])
        handle = last.register_forward_hook(lambda _m, _a, out, into=caught: into.append(out.flatten(0, -2)))
        logits(seen.model, calibration().ids)
        handle.remove()
        outputs.append(torch.cat(caught).double().mean(0))
    assert torch.allclose(outputs[0], outputs[1], atol=1e-4)


def test_mean_and_variance_are_those_of_the_channels() -> None:
    view, tokens = View(make_model("llama")), calibration()
    (found,) = context_of(View(make_model("llama")), tokens).collect(Fluctuation(1, "channels", 48))
    caught: list[torch.Tensor] = []
    view.layer(1).get_submodule("mlp.down_proj").register_forward_pre_hook(lambda _m, a: caught.append(a[0]))
    logits(view.model, tokens.ids)
    values = torch.cat(caught).flatten(0, 1).double()
    assert torch.allclose(found[0], values.mean(0), atol=1e-6)
    assert torch.allclose(found[1], values.var(0, correction=0), rtol=1e-4)


def test_the_score_is_the_error_of_a_constant_in_its_place() -> None:
    """For independent channels: the mean squared change of the outputs, summed over them."""
    generator = torch.Generator().manual_seed(0)
    weight, inputs = (
        torch.randn(7, 6, generator=generator),
        torch.randn(50_000, 6, generator=generator) * torch.arange(1, 7),
    )
    scores = unit_fluctuations(weight, inputs.var(0, correction=0), 6)
    for channel in range(6):
        changed = inputs.clone()
        changed[:, channel] = inputs[:, channel].mean()
        error = ((inputs - changed) @ weight.T).square().sum(1).mean()
        assert float(scores[channel]) == pytest.approx(float(error), rel=1e-4)
    pairs = unit_fluctuations(weight, inputs.var(0, correction=0), 3)
    assert torch.allclose(pairs, scores.view(3, 2).mean(1))
