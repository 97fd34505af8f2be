"""Simple maps in the place of layers: what each kind computes, and that nothing of another size is taken for one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from kit.compare import assert_same_logits, logits
from kit.planted import idle_layers
from kit.tiny import FAMILY_NAMES, HIDDEN, IDS, STAND_INS, make_model, stand_ins

from sned.errors import PlanError
from sned.models.view import View
from sned.plans.ops import Replace
from sned.runtime.sweep import Site, Sweep

if TYPE_CHECKING:
    from sned.plans.ops import Spec

every_family = pytest.mark.parametrize("name", FAMILY_NAMES)
TENSORS = stand_ins(5)


def replaced(name: str, op: Replace) -> torch.Tensor:
    view = View(make_model(name))
    op.apply(view, TENSORS)
    return logits(view.model)


IDENTITIES = {
    "linear": torch.eye(HIDDEN),
    "shift": torch.zeros(HIDDEN),
    "scale": torch.ones(HIDDEN),
    "lowrank": torch.cat([torch.randn(3, HIDDEN), torch.zeros(3, HIDDEN)]),
}


@pytest.mark.parametrize("spec", STAND_INS)
@every_family
def test_what_changes_nothing_stands_for_idle_layers(name: str, spec: Spec) -> None:
    model = idle_layers(make_model(name), [1, 2])
    dense = logits(model)
    Replace(layers=[1, 2], spec=spec, tensor=spec).apply(View(model), IDENTITIES)
    assert_same_logits(logits(model), dense)


AS_LINEAR = {
    "scale": torch.diag(TENSORS["scale"]),
    "lowrank": torch.eye(HIDDEN) + TENSORS["lowrank"][:3].T @ TENSORS["lowrank"][3:],
}


@pytest.mark.parametrize("spec", AS_LINEAR)
@every_family
def test_a_scale_and_a_low_rank_update_are_linear_maps(name: str, spec: Spec) -> None:
    view = View(make_model(name))
    Replace(layers=[2], tensor=spec).apply(view, AS_LINEAR)
    assert_same_logits(replaced(name, Replace(layers=[2], spec=spec, tensor=spec)), logits(view.model))


@every_family
def test_a_shift_adds_the_same_to_every_token(name: str) -> None:
    view = View(make_model(name))
    Replace(layers=[2], spec="shift", tensor="shift").apply(view, TENSORS)
    sweep = Sweep(view)
    (chunk,) = sweep.chunks(IDS)
    ((_, (before, after)),) = sweep.activations(chunk, [(Site("resid", 2), Site("resid", 3))])
    torch.testing.assert_close(after - before, TENSORS["shift"].expand_as(after), atol=1e-5, rtol=1e-5)


WRONG = {"linear": [(HIDDEN,), (HIDDEN, 4), (4, HIDDEN)], "shift": [(1, HIDDEN), (4,), ()], "scale": [(HIDDEN, HIDDEN)]}
WRONG["lowrank"] = [(HIDDEN,), (5, HIDDEN), (0, HIDDEN), (6, 4), (2, 3, HIDDEN)]


@pytest.mark.parametrize(("spec", "shape"), [(spec, shape) for spec, shapes in WRONG.items() for shape in shapes])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_map_of_the_wrong_size_is_refused(name: str, spec: Spec, shape: tuple[int, ...]) -> None:
    view, op, tensors = View(make_model(name)), Replace(layers=[2], spec=spec, tensor="t"), {"t": torch.ones(shape)}
    dense = logits(view.model)
    with pytest.raises(PlanError, match=rf"a {spec} map of this model is \[.*\] in size, not"):
        op.apply(view, tensors)
    with pytest.raises(PlanError, match=rf"a {spec} map of this model is"), op.trial(view, tensors):
        pass
    assert_same_logits(logits(view.model), dense, exact=True)
