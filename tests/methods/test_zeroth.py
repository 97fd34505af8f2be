"""Zeroth order on models: weights come back to the bit, and what the loss does not answer to goes."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import torch
from kit.planning import Messages, calibration, plan_on
from kit.planted import dead_units, streamed_view
from kit.searching import context_of, fresh, loss
from kit.tiny import make_model

from sned.errors import BudgetError
from sned.models import trial
from sned.models.matrices import matrices
from sned.models.view import View
from sned.plans.ops import Keep
from sned.runtime.objective import token_nll
from sned.runtime.parts import find_parts
from sned.runtime.random_steps import feature_worths, gates_moved, slopes, weights_moved
from sned.runtime.sensitivity import part_sensitivities
from sned.score.spsa import direction, estimate, rank_correlation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sned.runtime.context import Context
    from sned.runtime.parts import Part

NAMES = ["llama", "falcon", "phi3", "gpt2", "gemma2"]


def state(ctx: Context) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in ctx.view.model.named_parameters()}


@pytest.mark.parametrize("name", NAMES)
def test_moving_moves_every_matrix_and_leaves_no_trace(name: str) -> None:
    ctx = context_of(fresh(name))
    before = state(ctx)
    with weights_moved(ctx, 2, 1e-3):
        for layer in ctx.view.layers:
            for m in matrices(ctx.view, layer):
                param = dict(ctx.view.layer(layer).named_parameters())[m.param]
                old = next(p for key, p in before.items() if key.endswith(f"{layer}.{m.param}"))
                step = 1e-3 * direction(ctx.seed, 2, m.name, (m.rows, m.columns))
                torch.testing.assert_close(m.read(param.detach()), m.read(old) + step, atol=1e-6, rtol=0)
    after = state(ctx)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("form", ["gates", "weights"])
def test_a_slope_is_that_of_the_whole_model(form: str) -> None:
    """Against central differences of the model's own loss."""
    ctx, ids = context_of(fresh("llama")), calibration().ids
    parts = find_parts(ctx, "widths")
    moved = partial(gates_moved, ctx, parts) if form == "gates" else partial(weights_moved, ctx)
    (found,) = slopes(ctx, form, moved, 1, 1e-2)
    ends = []
    for amount in (1e-2, -1e-2):
        with moved(0, amount):
            ends.append(loss(ctx.view.model, ids))
    assert found == pytest.approx((ends[0] - ends[1]) / 2e-2, rel=1e-2, abs=1e-4)


def test_many_gate_directions_rank_as_the_gradient_does() -> None:
    ctx = context_of(fresh("llama"))
    parts = find_parts(ctx, "widths", "mlp", 16)
    found = slopes(ctx, "gates", partial(gates_moved, ctx, parts), 150, 1e-2)
    steep = estimate(found, ctx.seed, "parts", [len(parts)]).abs()
    assert rank_correlation(steep, gradient(ctx, parts).abs()) > 0.8


def gradient(ctx: Context, parts: Sequence[Part]) -> torch.Tensor:
    """That of the whole model's loss by one gate on each part, by ordinary back-propagation."""
    gates = torch.zeros(len(parts), requires_grad=True)
    with ExitStack() as stack, torch.enable_grad():
        for name in {part.axis for part in parts}:
            shares = [(1.0 + gates[i]) * _mask(ctx, p) for i, p in enumerate(parts) if p.axis == name]
            stack.enter_context(trial.gate(ctx.view, ctx.view.axis(name), torch.stack(shares).sum(0)))
        ids = ctx.calibration.ids
        token_nll(ctx.view.model(ids, use_cache=False).logits, ids).mean().backward()
    assert gates.grad is not None
    return gates.grad


def _mask(ctx: Context, part: Part) -> torch.Tensor:
    mask = torch.zeros(ctx.view.axis(part.axis).size)
    mask[list(part.units)] = 1.0
    return mask


@pytest.mark.parametrize("name", NAMES)
def test_one_gate_direction_leaves_what_wanda_says(name: str) -> None:
    messages = Messages()
    plan = plan_on(fresh(name), "zeroth", directions=1, kinds="mlp", mlp_group=2, progress=messages)
    agreement = plan.stages[0].scores["agreement"]
    assert agreement > 0.9
    assert any(f"Wanda-sp to {agreement:.2f}" in text for text in messages.told)


def test_the_gradient_of_a_part_is_that_of_its_gate() -> None:
    ctx = context_of(fresh("phi3"))
    parts = find_parts(ctx, "widths")
    torch.testing.assert_close(
        part_sensitivities(ctx, parts), gradient(ctx, parts).double().abs(), rtol=1e-3, atol=1e-6
    )


@pytest.mark.parametrize(("directions", "least", "most"), [(2, -1.0, 0.7), (4000, 0.9, 1.0)])
def test_how_far_ranks_agree_with_true_gradients_is_said(
    directions: int, least: float, most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With slopes worked out beside it, so that thousands cost nothing: enough of them say all."""
    ctx = context_of(fresh("llama"))
    steep = gradient(ctx, find_parts(ctx, "widths", "mlp", 4))

    def exact(*_: Any) -> list[float]:
        return [float(steep @ direction(0, k, "parts", [len(steep)])) for k in range(directions)]

    monkeypatch.setattr("sned.methods.zeroth.slopes", exact)
    messages, given = Messages(), {"kinds": "mlp", "mlp_group": 4, "directions": directions}
    plain = plan_on(fresh("llama"), "zeroth", **given)
    told = plan_on(fresh("llama"), "zeroth", true_gradients=True, progress=messages, **given)
    agreement = told.stages[0].scores["agreement_with_gradients"]
    assert least < agreement <= most
    assert any(f"true gradients to {agreement:.2f}" in text for text in messages.told)
    assert "agreement_with_gradients" not in plain.stages[0].scores
    assert told.ops == plain.ops


def test_few_directions_of_weights_know_less_of_true_gradients_than_of_wanda() -> None:
    plan = plan_on(fresh("gpt2"), "zeroth", form="weights", kinds="mlp", directions=4, true_gradients=True)
    scores = plan.stages[0].scores
    assert scores["agreement_with_gradients"] < scores["agreement"]


@pytest.mark.parametrize("name", NAMES)
def test_weight_by_weight_few_directions_rank_as_wanda_does(name: str) -> None:
    """What the published score knows of the gradient is lost in its absolute values."""
    plan = plan_on(fresh(name), "zeroth", form="weights", directions=4, kinds="mlp")
    assert plan.stages[0].scores["agreement"] > 0.4


@pytest.mark.parametrize("form", ["gates", "weights"])
def test_a_budget_out_of_reach_is_refused_before_directions_are_tried(
    form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sned.methods.zeroth.slopes", lambda *_: pytest.fail("a direction was tried"))
    with pytest.raises(BudgetError, match="cannot be removed"):
        plan_on(fresh("llama"), "zeroth", form=form, remove=0.8)


def test_dead_channels_go_first() -> None:
    axis, dead = "layers.3.mlp.hidden", [1, 4, 5, 9, 12, 14]
    view = View(dead_units(make_model("llama"), axis, dead))
    plan = plan_on(view, "zeroth", form="weights", kinds="mlp")
    kept = {op.axis: op.units for op in plan.ops if isinstance(op, Keep)}
    gone = set(range(48)) - set(kept[axis])
    assert gone <= set(dead) or gone >= set(dead)


def test_weights_are_scored_layer_by_layer_from_disk_too() -> None:
    loaded, streamed = context_of(fresh("phi3")), context_of(streamed_view("phi3"))
    found = [slopes(ctx, "weights", partial(weights_moved, ctx), 3, 1e-3) for ctx in (loaded, streamed)]
    assert found[0] == found[1]
    axes = [axis for axis in loaded.view.geometry.axes.values() if axis.layer == 2]
    one, other = (feature_worths(ctx, axes, found[0]) for ctx in (loaded, streamed))
    assert all(torch.equal(one[axis.name], other[axis.name]) for axis in axes)
