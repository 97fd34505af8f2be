"""What DISP-LLM learns: planted useless features go, budgets are met, and what cannot be learned is said."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from kit.compare import assert_same_logits, logits
from kit.planning import Messages, calibration, plan_on
from kit.planted import spoken_by
from kit.searching import context_of
from kit.tiny import DENSE_NAMES, HIDDEN, make_model

from sned.errors import BudgetError, ConfigError, NumericalError, UnsupportedModelError
from sned.models.count import count, layer_params
from sned.models.view import View
from sned.plans.budget import Budget
from sned.plans.ops import Keep
from sned.runtime.method import find_method
from sned.runtime.planner import make_plan
from sned.runtime.sweep import Cost
from sned.training.hypernetwork import HyperNetwork
from sned.training.structure import Aim, StructureTask, body_params, find_gates, gated, starts_by_slope

if TYPE_CHECKING:
    from sned.plans.plan import Plan

KINDS = ("attn.read", "attn.write", "mlp.read", "mlp.hidden", "mlp.write")


def kept(plan: Plan) -> dict[str, tuple[int, ...]]:
    return {op.axis: op.units for op in plan.ops if isinstance(op, Keep)}


@pytest.mark.parametrize("name", DENSE_NAMES)
def test_parameters_are_counted_as_they_will_be(name: str) -> None:
    """GQA, biases, fused projections and norms included, whatever is kept of which axis."""
    view = View(make_model(name))
    widths = {f"layers.2.{kind}": 3 + 2 * i for i, kind in enumerate(KINDS)}
    expected = layer_params(view, 2, widths)
    assert layer_params(view, 2, {}) == sum(p.numel() for p in view.layer(2).parameters())
    as_tensors = {axis: torch.tensor(float(n), requires_grad=True) for axis, n in widths.items()}
    assert float(layer_params(view, 2, as_tensors).detach()) == expected
    for axis, n in widths.items():
        Keep(axis=axis, units=tuple(range(n))).apply(view, {})
    assert sum(p.numel() for p in view.layer(2).parameters()) == expected
    assert layer_params(view, 2, {"layers.2.mlp.hidden": 2}) < expected


@pytest.mark.parametrize("structure", ["free", "shared", "mlp"])
def test_what_misses_the_aim_is_pulled_towards_it(structure: Any) -> None:
    ctx = context_of(View(make_model("llama")))
    gates = find_gates(ctx.view, structure)
    net = HyperNetwork([torch.ones(len(gate.units)) for gate in gates], seed=0)
    size = body_params(ctx.view, gates, [len(gate.units) for gate in gates])
    assert size == count(ctx.view).body_params
    both, above = (StructureTask(ctx, gates, net, Aim(size, sides=sides), 1) for sides in ("both", "above"))
    for aim, sign in ((size, 0), (size * 4 // 5, 1), (size * 5 // 4, -1)):
        masks = [torch.ones(len(gate.units), requires_grad=True) for gate in gates]
        miss = both.miss(masks, aim)
        assert float(miss.detach()) == pytest.approx(abs(math.log(size / aim)))
        assert float(above.miss(masks, aim).detach()) == pytest.approx(max(0.0, math.log(size / aim)))
        if sign:
            assert all((slope.sign() == sign).all() for slope in torch.autograd.grad(miss, masks))


def test_the_budget_tightens_evenly_and_then_stays() -> None:
    aim = Aim(600, ramp=0.5)
    assert [aim.at(progress, 1000) for progress in (0.0, 0.25, 0.5, 1.0)] == [1000, 800, 600, 600]
    assert Aim(600).at(0.0, 1000) == 600


def test_open_gates_change_nothing_and_gates_are_cuts() -> None:
    view, model = View(make_model("qwen2")), make_model("qwen2")
    gates = find_gates(view, "free")
    with gated(view, gates, [torch.ones(len(gate.units)) for gate in gates]):
        assert_same_logits(logits(view.model), logits(model), exact=True)


def test_the_network_follows_its_seed_and_leaves_other_draws_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again, other = (HyperNetwork([torch.full((8,), 3.0), torch.zeros(4)], seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first(), again(), strict=True))
    assert not torch.equal(first()[0], other()[0])
    assert [round(float(own.detach().mean())) for own in first()] == [3, 0]


USELESS = range(8, 20)


def with_useless_features() -> Any:
    """A model in which one MLP does not look at some features, and some of its channels are dead."""
    model = make_model("llama")
    layer: Any = View(model).layer(2)
    for name in ("gate_proj", "up_proj"):
        getattr(layer.mlp, name).weight.data[:, list(USELESS)] = 0
    layer.mlp.down_proj.weight.data[:, list(USELESS)] = 0
    return model


def test_useless_features_and_channels_are_found() -> None:
    """By text enough to tell: of less, some units are better gone than there."""
    model = with_useless_features()
    given = {"epochs": 1, "batch": 32, "rate": 3e-3, "step": 1, "tokens": spoken_by(model, windows=600)}
    plan = plan_on(View(model), "displlm", remove=0.04, remove_of="body", **given)
    for axis, size in (("layers.2.mlp.read", HIDDEN), ("layers.2.mlp.hidden", 48)):
        gone = set(range(size)) - set(kept(plan).get(axis, range(size)))
        assert len(gone & set(USELESS)) >= max(3, 0.8 * len(gone)), axis


def test_gates_begin_at_the_budget_with_what_matters_least_closed() -> None:
    ctx = context_of(View(with_useless_features()))
    gates = find_gates(ctx.view, "free")
    whole = count(ctx.view).body_params
    starts = starts_by_slope(ctx, gates, round(0.7 * whole))
    left = body_params(ctx.view, gates, [int((own > 0).sum()) for own in starts])
    assert 0.68 * whole < left <= 0.7 * whole
    for gate, own in zip(gates, starts, strict=True):
        if gate.name in ("layers.2.mlp.read", "layers.2.mlp.hidden"):
            assert (own[list(USELESS)] == own.min()).all()


@pytest.mark.parametrize(("structure", "kinds"), [("shared", set(KINDS)), ("mlp", {"mlp.hidden"})])
def test_restricted_structures_are_restricted(structure: str, kinds: set[str]) -> None:
    asked = {"structure": structure, "remove": 0.5, "remove_of": "body", "epochs": 2}
    found = kept(plan_on(View(make_model("llama")), "displlm", **asked))
    assert {axis.split(".", 2)[2] for axis in found} <= kinds
    if structure == "shared":
        stream = {units for axis, units in found.items() if not axis.endswith("hidden")}
        assert len(stream) == 1


@pytest.mark.parametrize("step", [1, 4])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.8])
def test_the_budget_is_met_to_within_a_step(share: float, step: int) -> None:
    view = View(make_model("llama"))
    whole = count(view).body_params
    plan = plan_on(view, "displlm", remove=share, remove_of="body", step=step)
    gone = whole - count(view).body_params
    assert share * whole <= gone
    assert gone - share * whole < step * 3 * 48  # the most that one step of any gate is worth
    assert all(len(units) % step == 0 for units in kept(plan).values())


def test_a_budget_that_training_missed_is_said() -> None:
    messages = Messages()
    given = {"remove": 0.5, "remove_of": "body", "start": "open", "rate": 1e-6}
    plan_on(View(make_model("llama")), "displlm", progress=messages, **given)
    assert any("was not learned" in text and "Raise weight (16)" in text for text in messages.warnings)


def test_gates_that_close_too_far_are_told_of_with_what_helps() -> None:
    """A model of chance is the better the less of it is left."""
    messages = Messages()
    plan = plan_on(
        View(make_model("llama")), "displlm", progress=messages, start="open", rate=0.05, epochs=8, weight=100
    )
    structure = plan.stages[0].scores["structure"]
    assert structure["learned"] < 0.95 * structure["aimed"]
    assert any("Lower the rate (0.05)" in text for text in messages.warnings)


def test_what_cannot_be_is_refused_before_anything_is_run() -> None:
    with pytest.raises(BudgetError, match="closest reachable"):
        plan_on(View(make_model("llama")), "displlm", remove=0.95, remove_of="body", step=16)
    with pytest.raises(UnsupportedModelError, match="mixtures of experts"):
        plan_on(View(make_model("mixtral")), "displlm", remove=0.1)
    with pytest.raises(NumericalError, match="NaN"):
        plan_on(View(make_model("llama")), "displlm", start="open", weight=float("inf"))


@pytest.mark.parametrize("method", ["displlm", "taylor", "taylorsearch"])
def test_too_little_memory_is_known_before_the_start(method: str) -> None:
    cost = Cost()
    with pytest.raises(ConfigError, match=r"gradients through 5 layers need about .* GB are free") as caught:
        make_plan(
            View(make_model("llama")),
            find_method(method),
            calibration(),
            Budget(remove=0.1),
            cost=cost,
            free_memory=1000,
        )
    assert "policygrad" in (caught.value.hint or "")
    assert cost.forward_layer_tokens == 0


def test_what_branches_share_must_be_alike() -> None:
    view = View(make_model("llama"))
    Keep(axis="layers.1.mlp.read", units=tuple(range(9))).apply(view, {})
    with pytest.raises(ConfigError, match="structure=free"):
        find_gates(view, "shared")
