"""New values for a parameter: loaded or streamed, tried or applied, and never in another view's tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from kit.compare import assert_differ, assert_same_logits, logits, swept
from kit.planted import streamed_view
from kit.tiny import DENSE_NAMES, FAMILY_NAMES, make_model

from sned.errors import PlanError
from sned.models.folding import output_projection
from sned.models.view import View
from sned.plans.ops import DropLayers, DropSublayer, Keep, SetWeight

if TYPE_CHECKING:
    from sned.plans.ops import Op

every_family = pytest.mark.parametrize("name", FAMILY_NAMES)


def new_values(name: str, *cuts: Op) -> tuple[SetWeight, dict[str, torch.Tensor]]:
    """Set the output projection of the attention of layer 1, as it is after some cuts, to something else."""
    view = View(make_model(name))
    for op in cuts:
        op.apply(view, {})
    param = f"{output_projection(view, 'attn')}.weight"
    old = view.layer(1).get_parameter(param)
    values = old + 0.2 * torch.randn(old.shape, generator=torch.Generator().manual_seed(1))
    return SetWeight(layer=1, param=param, tensor="new"), {"new": values}


@every_family
def test_a_trial_equals_the_op(name: str) -> None:
    op, tensors = new_values(name)
    view, fork, dense = View(make_model(name)), View(make_model(name)).fork(), logits(make_model(name))
    with op.trial(view, tensors):
        tried = swept(view)
    assert_differ(tried, dense)
    assert_same_logits(swept(view), dense, exact=True)
    other = fork.fork()
    op.apply(fork, tensors)
    assert_same_logits(logits(fork.model), tried, exact=True)
    assert torch.equal(fork.layer(1).get_parameter(op.param), tensors["new"])
    assert_same_logits(logits(other.model), dense, exact=True)


@every_family
def test_a_streamed_layer_is_read_with_its_new_values(name: str) -> None:
    cuts: list[Op] = [Keep(axis="layers.1.attn.group", units=[0]), DropLayers(layers=[0])]
    op, tensors = new_values(name, *cuts)
    streamed, loaded = streamed_view(name), View(make_model(name))
    for each in [*cuts, op]:
        each.apply(streamed, tensors)
        each.apply(loaded, tensors)
    assert_same_logits(swept(streamed), swept(loaded), exact=True)
    with SetWeight(layer=1, param=op.param, tensor="zero").trial(streamed, {"zero": torch.zeros_like(tensors["new"])}):
        assert_differ(swept(streamed), swept(loaded))
    assert_same_logits(swept(streamed), swept(loaded), exact=True)


@pytest.mark.parametrize("name", DENSE_NAMES)
def test_later_cuts_cut_the_new_values(name: str) -> None:
    """Whether a group goes before or after, what is left of the projection is the same."""
    cut = Keep(axis="layers.1.attn.group", units=[0])
    op, tensors = new_values(name)
    view, again = View(make_model(name)), View(make_model(name))
    op.apply(view, tensors)
    cut.apply(view, tensors)
    cut.apply(again, tensors)
    op.apply(again, {"new": view.layer(1).get_parameter(op.param).detach()})
    assert_same_logits(logits(again.model), logits(view.model), exact=True)


@pytest.mark.parametrize("make", [lambda name: View(make_model(name)), streamed_view], ids=["loaded", "streamed"])
@pytest.mark.parametrize("use", ["apply", "trial"])
def test_what_is_not_there_is_named(make, use: str) -> None:
    op, tensors = new_values("llama")
    for cut, changed, message in (
        (DropLayers(layers=[1]), op, "layer 1 was already removed"),
        (DropSublayer(layer=1, which="attn"), op, "layer 1 has no parameter 'self_attn.o_proj.weight', or not any"),
        (DropLayers(layers=[0]), op.model_copy(update={"param": "mlp.x"}), "layer 1 has no parameter 'mlp.x'"),
        (
            Keep(axis="layers.1.attn.group", units=[1]),
            op,
            r"o_proj.weight of layer 1 has the shape \[32, 16\], not \[32",
        ),
        (DropLayers(layers=[0]), op.model_copy(update={"tensor": "lost"}), "no tensor 'lost'"),
    ):
        view = make("llama")
        cut.apply(view, {})
        with pytest.raises(PlanError, match=message):
            getattr(changed, use)(view, tensors)
