"""Masters: the model runs with what is trained, and its own tensors stay as they are."""

from __future__ import annotations

import pytest
import torch
from kit.tiny import FAMILY_NAMES, make_model, tokens

from sned.models.forward import LayerRunner
from sned.models.view import View
from sned.training.masters import Masters, all_matrices, all_parameters

IDS = tokens(1, 8).ids


def run(view: View, masters: Masters) -> torch.Tensor:
    runner = LayerRunner(view)
    hidden = runner.enter(IDS)
    for layer in view.active:
        hidden = masters.run(runner, layer, hidden)
    return runner.leave(IDS, hidden)


@pytest.mark.parametrize("name", FAMILY_NAMES)
@pytest.mark.parametrize("rank", [None, 4])
def test_before_training_the_model_is_what_it_was(name: str, rank: int | None) -> None:
    view = View(make_model(name).bfloat16())
    want = view.model(IDS, use_cache=False).logits
    masters = Masters(view, all_matrices(view, [1, 3]), rank=rank)
    assert torch.equal(run(view, masters), want)


@pytest.mark.parametrize("name", FAMILY_NAMES)
@pytest.mark.parametrize("rank", [None, 4])
def test_what_is_trained_is_what_is_saved(name: str, rank: int | None) -> None:
    """The logits while training are to the bit those of a model with the final values, and the gradient gets there."""
    view = View(make_model(name))
    before = {key: tensor.clone() for key, tensor in view.model.state_dict().items()}
    masters = Masters(view, all_matrices(view, [1, 3]), rank=rank)
    for number, param in enumerate(masters.parameters.values()):
        param.data += 0.05 * torch.randn(param.shape, generator=torch.Generator().manual_seed(number))
    out = run(view, masters)
    out.sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in masters.parameters.values())
    assert all(torch.equal(before[key], tensor) for key, tensor in view.model.state_dict().items())
    for layer in masters.layers:
        for param, value in masters.weights(layer).items():
            view.layer(layer).get_parameter(param).data = value.detach()
    assert torch.equal(view.model(IDS, use_cache=False).logits, out)


def test_a_low_rank_update_has_that_rank() -> None:
    view = View(make_model("llama"))
    names = all_matrices(view, [2])
    masters = Masters(view, names, rank=3, scale=2.0)
    for param in masters.parameters.values():
        param.data.normal_()
    for name in names[2]:
        update = masters.weights(2)[name] - view.layer(2).get_parameter(name)
        a, b = masters.parameters[f"2.{name}.A"], masters.parameters[f"2.{name}.B"]
        torch.testing.assert_close(update, 2 * b @ a, rtol=1e-4, atol=1e-5)
        assert torch.linalg.matrix_rank(update.double(), rtol=1e-4) == 3


@pytest.mark.parametrize("rank", [None, 4])
def test_zeros_stay_zeros(rank: int | None) -> None:
    view = View(make_model("llama"))
    weight = view.layer(1).get_parameter("mlp.up_proj.weight")
    weight.data[::2] = 0
    masters = Masters(
        view, all_parameters(view, [1]) if rank is None else all_matrices(view, [1]), rank=rank, keep_zeros=True
    )
    for param in masters.parameters.values():
        param.data -= 1
    value = masters.weights(1)["mlp.up_proj.weight"]
    assert torch.equal(value == 0, weight == 0)
    assert not value[::2].signbit().any()
    if rank is None:  # a bias or a norm that happens to be zero is no pruned weight
        assert (masters.weights(1)["mlp.up_proj.bias"] != 0).all()


@pytest.mark.parametrize("rank", [None, 4])
def test_a_share_of_the_change(rank: int | None) -> None:
    view = View(make_model("llama"))
    base = view.layer(0).get_parameter("mlp.up_proj.weight")
    masters = Masters(view, {0: ["mlp.up_proj.weight"]}, rank=rank)
    for param in masters.parameters.values():
        param.data.normal_()
    none, half, all_ = (masters.scaled(0, share)["mlp.up_proj.weight"] for share in (0.0, 0.5, 1.0))
    assert torch.equal(none, base)
    assert torch.equal(all_, masters.weights(0)["mlp.up_proj.weight"])
    torch.testing.assert_close(half, (base + all_) / 2)
