"""Where it is known which weights must go, or how many of a layer, methods and allocators find just that."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from kit.compare import assert_same_logits, logits
from kit.planning import plan_on
from kit.planted import layers_of
from kit.sparse import OF_WEIGHTS, received, set_weights, weights_of, zeros_of
from kit.tiny import HEAD_DIM, HIDDEN, LAYERS, MLP, make_model, tokens

from sned.models.view import View
from sned.runtime import inputs
from sned.score import obs

if TYPE_CHECKING:
    from transformers import PreTrainedModel


MANY = tokens(20, 16, seed=3)
ODD = 2
"""The layer that is not like the others."""


def shares(view: View) -> list[float]:
    """The share of zeros of each layer."""
    found: list[list[torch.Tensor]] = [[] for _ in range(LAYERS)]
    for name, gone in zeros_of(view).items():
        found[int(name.split(".")[1])].append(gone.flatten())
    return [float(torch.cat(parts).float().mean()) for parts in found]


def one_weight_in(view: View) -> float:
    return 1 / sum(w.numel() for m, w in weights_of(view).items() if m.layer == 0)


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
def test_a_layer_with_outliers_keeps_more(method: str) -> None:
    """It alone has scores far above the mean, so that the others share what it is spared."""
    view = View(make_model("llama"))
    for matrix, weight in weights_of(view).items():
        if matrix.layer == ODD:
            weight[3, ::8] *= 100
            set_weights(view, {matrix: weight})
    plan = plan_on(view, method, allocate="owl:multiple=20,spread=0.1", sparsity=0.6, pattern="matrix")
    outliers = plan.stages[0].scores["allocation"]["layers"]
    assert [float(outliers[str(i)]) > 0 for i in range(LAYERS)] == [i == ODD for i in range(LAYERS)]
    rest = 0.6 + 0.2 / LAYERS
    want = [rest - 0.2 if i == ODD else rest for i in range(LAYERS)]
    assert shares(view) == pytest.approx(want, abs=8 * one_weight_in(view))


def with_spectra(kind: str) -> View:
    """Let all layers have the weights of the first but for one, whose matrices have other singular values."""
    view = View(make_model("llama"))
    weights = weights_of(view)
    first = {matrix.role: weight.clone() for matrix, weight in weights.items() if matrix.layer == 0}
    for matrix in weights:
        weight = first[matrix.role] * 2.0**matrix.layer  # no scale matters
        if matrix.layer == ODD:
            left, values, right = torch.linalg.svd(weight, full_matrices=False)
            heavy = torch.arange(1, len(values) + 1).float() ** -3
            weight = left @ torch.diag(heavy if kind == "heavy" else torch.ones_like(values)) @ right
        set_weights(view, {matrix: weight})
    return view


@pytest.mark.parametrize("estimator", ["peak", "compat", "mid"])
@pytest.mark.parametrize("per", ["layer", "matrix"])
def test_a_layer_of_heavier_tails_keeps_more(per: str, estimator: str) -> None:
    """Of two exponents the smaller stands for `1 - spread`, the larger for `1 + spread`, in proportion."""
    view, spread = with_spectra("heavy"), 0.3
    plan_on(view, "magnitude", allocate=f"alphapruning:spread={spread},estimator={estimator},per={per}", sparsity=0.5)
    found = shares(view)
    if per == "layer":
        one = 0.5 * LAYERS / ((1 - spread) + (LAYERS - 1) * (1 + spread))
        want = [one * (1 - spread if i == ODD else 1 + spread) for i in range(LAYERS)]
        assert found == pytest.approx(want, abs=8 * one_weight_in(view))
    assert found[ODD] < min(found[:ODD] + found[ODD + 1 :]) - 0.1


def test_a_layer_without_a_tail_is_pruned_as_those_of_the_lightest() -> None:
    view = with_spectra("orthogonal")
    plan = plan_on(view, "magnitude", allocate="alphapruning:spread=0.5", sparsity=0.5)
    assert not any(f"layers.{ODD}." in name for name in plan.stages[0].scores["allocation"]["matrices"])
    assert shares(view) == pytest.approx([0.5] * LAYERS, abs=8 * one_weight_in(view))


def with_dead_inputs() -> tuple[PreTrainedModel, dict[str, list[int]]]:
    """Return a model in which an eighth of what every matrix reads is always zero, and which columns that is."""
    model = make_model("llama")
    features, channels, unit = list(range(0, HIDDEN, 8)), list(range(5, MLP, 8)), 3
    for block in layers_of(model):
        for norm in (block.input_layernorm, block.post_attention_layernorm):
            norm.weight.data[features] = 0
        block.self_attn.v_proj.weight.data[unit::HEAD_DIM] = 0
        for param in (block.mlp.gate_proj.weight, block.mlp.gate_proj.bias):
            param.data[channels] = 0
    dead = dict.fromkeys(("q", "k", "v", "gate", "up"), features)
    return model, dead | {"o": list(range(unit, HIDDEN, HEAD_DIM)), "down": channels}


@pytest.mark.parametrize("pattern", ["row", "matrix"])
@pytest.mark.parametrize("given", [{"update": True}, {"update": False}, {"refine": "dsnot"}], ids=str)
@pytest.mark.parametrize("method", ["wanda", "multiflow", "sparsegpt"])
def test_what_reads_nothing_goes_first_and_is_not_missed(method: str, given: dict[str, Any], pattern: str) -> None:
    model, dead = with_dead_inputs()
    view, dense = View(model), logits(model)
    plan_on(view, method, sparsity=1 / 8, pattern=pattern, **given)
    found = zeros_of(view)
    for matrix in weights_of(view):
        gone = found[matrix.name][~found[matrix.name].all(1)]  # rows that are zero altogether have no order
        if pattern == "row" or matrix.role not in ("v", "gate"):
            columns = torch.zeros(matrix.columns, dtype=torch.bool)
            columns[dead[matrix.role]] = True
            assert torch.equal(gone, columns.expand_as(gone)), matrix.name
    assert_same_logits(logits(view.model), dense)


def with_twins() -> PreTrainedModel:
    """Return a model in which every second thing that a matrix reads is a copy of the one before it."""
    model = make_model("llama")
    embedding = model.get_input_embeddings().weight.data
    embedding[:, 1::2] = embedding[:, ::2]
    for block in layers_of(model):
        attn, mlp = block.self_attn, block.mlp
        writers = [attn.v_proj, attn.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj]
        for module in (block.input_layernorm, block.post_attention_layernorm, *writers):
            for param in module.parameters():
                param.data[1::2] = param.data[::2]
    return model


def moved(view: View, dense: View) -> list[float]:
    """By how much the outputs of the first layer's matrices move, relative to them."""
    states, before = received(dense, MANY.ids), weights_of(dense)
    pairs = [(before[m].double(), w.double(), states[m.name].T) for m, w in weights_of(view).items() if m.layer == 0]
    return [float(((new - old) @ x).norm() / (old @ x).norm()) for old, new, x in pairs]


@pytest.mark.parametrize(("damping", "most"), [(0.01, 0.05), (1e-4, 3e-3)])
def test_a_twin_does_the_work_of_one_that_went(damping: float, most: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of each pair goes, and its twin takes its weight over; all that is lost is what the damping costs."""
    monkeypatch.setattr(inputs, "factor", lambda gram: obs.factor(gram, damping))
    repaired, blind, dense = (View(with_twins()) for _ in range(3))
    for view, update in ((repaired, True), (blind, False)):
        plan_on(view, "sparsegpt", pattern="1:2", sparsity=0.5, tokens=MANY, update=update)
    assert max(moved(repaired, dense)) < most
    assert min(moved(blind, dense)) > 0.5
    want = logits(dense.model)
    assert (logits(repaired.model) - want).norm() < 5 * most * want.norm()
    assert (logits(blind.model) - want).norm() > 0.5 * want.norm()


@pytest.mark.parametrize("pattern", ["row", "2:4"])
@pytest.mark.parametrize("method", OF_WEIGHTS)
def test_swaps_bring_the_mean_output_back(method: str, pattern: str) -> None:
    """Inputs that are not zero on average leave a row off by a constant, of which DSnoT takes off most."""
    views = [View(make_model("llama")) for _ in range(3)]
    for view in views:
        embedding = view.model.get_input_embeddings().weight.data
        embedding += 2 * torch.randn(HIDDEN, generator=torch.Generator().manual_seed(5))
    dense, *others = views
    given = {"sparsity": 0.5, "pattern": pattern, "tokens": MANY} | ({"update": False} if method == "sparsegpt" else {})
    for view, refine in zip(others, (None, "dsnot"), strict=True):
        plan_on(view, method, refine=refine, **given)
    before, means = weights_of(dense), {name: x.mean(0) for name, x in received(dense, MANY.ids).items()}
    for matrix in (m for m in before if m.layer == 0):
        off = [((weights_of(view)[matrix] - before[matrix]).double() @ means[matrix.name]).norm() for view in others]
        assert off[1] < 0.5 * off[0], matrix.name
