"""wandasp, taylor and policygrad: what does nothing goes, and the budget is met to within one part."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from kit.compare import assert_same_logits, logits
from kit.planning import FROM_GATES, Messages, calibration, plan_on
from kit.planted import dead_units, idle_layers, spoken_by, streamed_view
from kit.searching import context_of, fresh, loss
from kit.tiny import CONFIGS, DENSE_NAMES, LAYERS, MLP, fill, make_model
from transformers import AutoModelForCausalLM, FalconConfig

from sned.errors import BudgetError, UnsupportedModelError
from sned.models import trial
from sned.models.count import branch_counts, count
from sned.models.view import View
from sned.plans.ops import DropLayers, DropSublayer, Keep
from sned.runtime.parts import find_parts, keep_highest, percentiles, unit_worths
from sned.runtime.sensitivity import gate_sensitivities, weight_sensitivities
from sned.runtime.sweep import SUBLAYERS, Cost

if TYPE_CHECKING:
    from sned.plans.plan import Plan

AXIS = "layers.3.mlp.hidden"
DEAD = [1, 4, 5, 9, 12, 14]


def kept(plan: Plan) -> dict[str, tuple[int, ...]]:
    return {op.axis: op.units for op in plan.ops if isinstance(op, Keep)}


def removed(plan: Plan) -> int:
    return plan.dense.params - plan.pruned.params


@pytest.mark.parametrize("name", DENSE_NAMES)
def test_dead_channels_go_first(name: str) -> None:
    """Where they are no more than what is asked for; nothing else of that axis goes before them."""
    plan = plan_on(View(dead_units(make_model(name), AXIS, DEAD)), "wandasp", kinds="mlp")
    gone = set(range(View(make_model(name)).axis(AXIS).size)) - set(kept(plan).get(AXIS, ()))
    assert gone <= set(DEAD) or gone >= set(DEAD)
    assert gone


@pytest.mark.parametrize("name", ["llama", "falcon", "phi3", "gpt2", "opt"])
def test_worth_is_what_the_readers_receive(name: str) -> None:
    """By its definition, weight by weight, from what the model's own forward pass feeds the reader."""
    view = fresh(name)
    kinds = ("attn.group", "mlp.hidden")
    axes = [axis for axis in view.geometry.axes.values() if axis.layer in (0, 2) and axis.kind in kinds]
    found = unit_worths(context_of(fresh(name)), axes)
    for axis in axes:
        inputs: list[torch.Tensor] = []
        reader: Any = view.layer(axis.layer).get_submodule(axis.taps[0])
        handle = reader.register_forward_pre_hook(lambda _m, args, into=inputs: into.append(args[0].flatten(0, -2)))
        logits(view.model, calibration().ids)
        handle.remove()
        norm = torch.cat(inputs).double().square().mean(0).sqrt()
        weight = reader.weight.double().T if type(reader).__name__ == "Conv1D" else reader.weight.double()
        channels = (weight.abs() * norm).mean(0)
        wanted = [float(channels[u * axis.tap_block : (u + 1) * axis.tap_block].mean()) for u in range(axis.size)]
        assert found[axis.name].tolist() == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("across", ["global", "standard"])
def test_what_scores_least_anywhere_goes(across: str) -> None:
    """Channels of all axes on one list: by score per parameter, or by score in deviations from the axis' mean."""
    view = fresh("mistral")
    axes = [axis for axis in view.geometry.axes.values() if axis.kind == "mlp.hidden"]
    worths = unit_worths(context_of(view), axes)
    if across == "standard":
        worths = {name: (own - own.mean()) / own.std(correction=0) for name, own in worths.items()}
    plan = plan_on(fresh("mistral"), "wandasp", kinds="mlp", across=across, remove=0.1)
    gone = {(axis.name, u) for axis in axes for u in set(range(axis.size)) - set(kept(plan).get(axis.name, range(MLP)))}
    everywhere = sorted((float(own[u]), (name, u)) for name, own in worths.items() for u in range(MLP))
    assert gone == {place for _, place in everywhere[: len(gone)]}
    assert len({len(units) for units in kept(plan).values()}) > 1


def test_uniform_takes_the_same_share_of_every_axis() -> None:
    plan = plan_on(fresh("llama"), "wandasp", kinds="mlp", remove=0.2)
    widths = [len(units) for units in kept(plan).values()]
    assert len(widths) == LAYERS
    assert max(widths) - min(widths) <= 1


@pytest.mark.parametrize("name", ["llama", "gpt_neox", "gemma2"])
@pytest.mark.parametrize("method", ["wandasp", "policygrad"])
@pytest.mark.parametrize("remove", [0.05, 0.2])
def test_no_part_too_many_goes(method: str, name: str, remove: float) -> None:
    given = {"epochs": 1} if method == "policygrad" else {}
    plan = plan_on(View(make_model(name)), method, remove=remove, **given)
    largest = max(part.params for part in find_parts(context_of(fresh(name)), "widths"))
    target = remove * plan.dense.params
    assert target <= removed(plan) < target + largest


@pytest.mark.parametrize("name", ["llama", "gpt2", "phi", "mixtral"])
def test_a_policy_learns_which_layers_do_nothing(name: str) -> None:
    """Even chances to begin with; two of five layers are idle, and the text is the model's own."""
    model = idle_layers(make_model(name), [1, 3])
    dense, view = logits(model), View(model)
    one = sum(p.numel() for p in view.layer(1).parameters()) / count(view).params
    plan = plan_on(view, "policygrad", tokens=spoken_by(model), remove=1.9 * one, units="layers", epochs=8, rate=0.5)
    assert {i for op in plan.ops if isinstance(op, DropLayers) for i in op.layers} == {1, 3}
    assert_same_logits(logits(view.model), dense)
    chances = plan.stages[0].scores["chances"]
    assert max(chances["layer.1"], chances["layer.3"]) < min(chances[f"layer.{i}"] for i in (0, 2, 4))


@pytest.mark.parametrize("baseline", ["others", "moving"])
def test_a_policy_learns_which_blocks_do_nothing(baseline: str) -> None:
    model = idle_layers(make_model("llama"), [1, 3])
    view = View(model)
    given = {"units": "blocks", "epochs": 3, "rate": 1.5, "start": "even", "baseline": baseline, "objective": "kl"}
    plan = plan_on(view, "policygrad", tokens=spoken_by(model), remove=0.12, **given)
    gone = {(op.which, op.layer) for op in plan.ops if isinstance(op, DropSublayer)}
    assert gone
    assert {layer for _, layer in gone} <= {1, 3}


def test_a_policy_finds_channels_that_its_first_chances_favour() -> None:
    """Channels that are loud but matter to nobody: their readers cancel each other out in the stream."""
    model = make_model("llama")
    layer: Any = View(model).layer(2)
    for unit in range(8):  # each as loud as can be, and undone by its twin
        twin = unit + 8
        for param in (p for name in ("gate_proj", "up_proj") for p in getattr(layer.mlp, name).parameters()):
            param.data[unit] *= 3
            param.data[twin] = param.data[unit]
        down = layer.mlp.down_proj.weight.data
        down[:, unit] *= 3
        down[:, twin] = -down[:, unit]
    worths = unit_worths(context_of(View(model)), [View(model).axis("layers.2.mlp.hidden")])["layers.2.mlp.hidden"]
    assert worths[:16].min() > worths[16:].max(), "Wanda-sp is misled"
    view = View(model)
    plan = plan_on(
        view,
        "policygrad",
        tokens=spoken_by(model),
        remove=0.1,
        kinds="mlp",
        mlp_group=16,
        epochs=8,
        rate=1.0,
        objective="kl",
    )
    assert not set(range(16)) & set(kept(plan)["layers.2.mlp.hidden"])


def test_every_axis_keeps_something() -> None:
    ctx = context_of(fresh("llama"))
    parts = find_parts(ctx, "widths", "both", 16)
    all_that_may = sum(p.params for p in parts) - sum(
        min(p.params for p in parts if p.axis == axis) for axis in {p.axis for p in parts}
    )
    stay = keep_highest(ctx, parts, percentiles(parts), all_that_may)
    assert {p.axis for p, s in zip(parts, stay.tolist(), strict=True) if s} == {p.axis for p in parts}
    with pytest.raises(BudgetError, match="closest reachable"):
        keep_highest(ctx, parts, percentiles(parts), sum(p.params for p in parts))


@pytest.mark.parametrize("name", ["llama", "falcon", "phi3", "gpt2", "gemma2"])
def test_sensitivity_is_how_the_loss_answers_to_a_unit(name: str) -> None:
    """By finite differences of the whole model's loss in double precision, unit by unit."""
    view, tokens = View(make_model(name).double()), calibration()
    axes = [axis for axis in view.geometry.axes.values() if axis.layer in (1, 4)]
    found = gate_sensitivities(context_of(View(make_model(name)), tokens), axes)
    for axis in axes:
        for unit in (0, axis.size - 1):
            steps = []
            for turn in (0.01, -0.01):
                mask = torch.ones(axis.size, dtype=torch.float64)
                mask[unit] += turn
                with trial.gate(view, axis, mask):
                    steps.append(loss(view.model, tokens.ids))
            assert float(found[axis.name][unit]) == pytest.approx(abs(steps[0] - steps[1]) / 0.02, rel=0.01, abs=1e-4)


@pytest.mark.parametrize("name", ["llama", "falcon", "phi3", "gpt2", "gemma2", "olmo2", "opt", "gpt_neox"])
def test_a_unit_answers_for_all_of_its_weights(name: str) -> None:
    """By ordinary back-propagation; a model that holds |weight x gradient| loses as much of it as a cut takes away."""
    text, model = calibration(), make_model(name).requires_grad_(True)
    chances = model(text.ids).logits[:, :-1].flatten(0, 1)
    torch.nn.functional.cross_entropy(chances, text.ids[:, 1:].flatten()).backward()
    for p in model.parameters():
        p.data = (p.data * p.grad).abs() if p.dim() == 2 and p.grad is not None else torch.zeros_like(p)
    felt = View(model.requires_grad_(False))

    def held(view: View, layer: int) -> float:
        return sum(float(p.double().sum()) for p in view.layer(layer).parameters())

    axes = [axis for axis in felt.geometry.axes.values() if axis.layer in (0, 4)]
    found = weight_sensitivities(context_of(fresh(name), text), axes)
    for axis in axes:
        for unit in (0, axis.size - 1):
            cut = felt.fork()
            Keep(axis=axis.name, units=tuple(u for u in range(axis.size) if u != unit)).apply(cut, {})
            lost = held(felt, axis.layer) - held(cut, axis.layer)
            assert float(found[axis.name][unit]) == pytest.approx(lost, rel=1e-3)


def test_a_streamed_models_weights_are_felt_the_same() -> None:
    plan = plan_on(streamed_view("llama"), "taylor", form="weights")
    assert plan.ops == plan_on(fresh("llama"), "taylor", form="weights").ops
    assert plan.ops != plan_on(fresh("llama"), "taylor").ops


@pytest.mark.parametrize("form", ["gates", "weights"])
@pytest.mark.parametrize("across", ["uniform", "global"])
def test_taylor_cuts_dead_channels_first(across: str, form: str) -> None:
    model = dead_units(make_model("llama"), AXIS, DEAD)
    plan = plan_on(View(model), "taylor", kinds="mlp", across=across, form=form)
    gone = set(range(48)) - set(kept(plan)[AXIS])
    assert gone <= set(DEAD) or gone >= set(DEAD)


@pytest.mark.parametrize("units", ["widths", "blocks"])
def test_with_separate_budgets_attention_gives_the_same_share_as_mlps(units: str) -> None:
    """To within one part, while in all no less goes than is asked for; one budget for all spends it elsewhere."""
    view, dense = fresh("llama"), fresh("llama")
    parts = find_parts(context_of(dense), units)
    asked: dict[str, Any] = {"remove_of": "body", "start": "even", "epochs": 1, "units": units, "remove": 0.3}
    plan = plan_on(view, "policygrad", budgets="separate", **asked)
    assert removed(plan) >= 0.3 * plan.dense.body_params
    total = sum(part.params for part in parts)
    for which in SUBLAYERS:
        gone = sum(branch_counts(dense, i, which).params for i in range(LAYERS))
        gone -= sum(branch_counts(view, i, which).params for i in view.layers if view.has_branch(i, which))
        size = sum(part.params for part in parts if part.name.startswith(which))
        assert abs(gone - 0.3 * plan.dense.body_params * size / total) <= max(part.params for part in parts)
    assert plan_on(fresh("llama"), "policygrad", **asked).ops != plan.ops


@pytest.mark.parametrize("method", ["flap", "policygrad", "taylor", "taylorsearch", "wandasp", "zeroth"])
def test_heads_that_carry_positions_are_refused_at_once(method: str) -> None:
    model = AutoModelForCausalLM.from_config(FalconConfig(**CONFIGS["falcon/serial"], alibi=True)).eval()
    fill(model, 0)
    cost = Cost()
    with pytest.raises(UnsupportedModelError, match=r"number of the head \(ALiBi\)") as caught:
        plan_on(View(model), method, cost=cost)
    assert "--kinds mlp" in (caught.value.hint or "")
    assert cost.forward_layer_tokens == 0


@pytest.mark.parametrize("method", FROM_GATES)
@pytest.mark.parametrize("kinds", ["both", "heads"])
def test_heads_whose_gates_are_no_cuts_are_refused_at_once(method: str, kinds: str) -> None:
    cost, told = Cost(), Messages()
    with pytest.raises(UnsupportedModelError, match="a norm of this model spans all its heads") as caught:
        plan_on(fresh("olmo2"), method, cost=cost, progress=told, kinds=kinds)
    assert "--kinds mlp" in (caught.value.hint or "")
    assert cost.forward_layer_tokens == 0
    assert not told.warnings


@pytest.mark.parametrize(
    ("method", "given"),
    [
        ("policygrad", {"units": "blocks"}),
        ("taylor", {"form": "weights"}),
        ("zeroth", {"form": "weights"}),
        ("wandasp", {}),
        ("flap", {}),
    ],
)
def test_what_learns_from_no_gate_on_a_head_goes_on(method: str, given: dict[str, Any]) -> None:
    """Heads that are cut there by other scores are warned of."""
    told = Messages()
    plan = plan_on(fresh("olmo2"), method, progress=told, **({"kinds": "both"} | given))
    assert removed(plan)
    assert bool(told.warnings) == (method != "policygrad")
    assert all("a norm spans all heads" in warning for warning in told.warnings)
