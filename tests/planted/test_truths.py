"""Where the right answer is known, every method that looks at the model must find it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from kit.compare import assert_differ, assert_same_logits, logits
from kit.planning import plan_on
from kit.planted import idle_layers, quiet_layers, spoken_by
from kit.tiny import DENSE_NAMES, FAMILY_NAMES, HIDDEN, LAYERS, make_model, tokens

from sned.models.view import View
from sned.plans.ops import DropLayers, DropSublayer, Replace
from sned.runtime.statistics import CutMoments, Distances, Influence
from sned.runtime.sweep import Sweep
from sned.score.linear_map import fit_closed

if TYPE_CHECKING:
    from sned.plans.plan import Plan

every_family = pytest.mark.parametrize("name", FAMILY_NAMES)
SEEING = ["uidl", "shortgpt", "replaceme"]
SEARCHING = {"blockpruner": {"objective": "kl"}, "multipruner": {"objective": "kl", "split": "1:0:0"}}
MANY = tokens(40, 16, seed=3)


def removed(plan: Plan) -> list[int]:
    return sorted(i for op in plan.ops if isinstance(op, DropLayers | Replace) for i in op.layers)


@every_family
@pytest.mark.parametrize("method", SEEING)
@pytest.mark.parametrize("idle", [[1, 2], [2, 3]], ids=str)
def test_layers_that_do_nothing_are_found(method: str, name: str, idle: list[int]) -> None:
    model = idle_layers(make_model(name), idle)
    dense = logits(model)
    plan = plan_on(View(model), method, tokens=spoken_by(model))
    assert removed(plan) == idle
    assert_same_logits(logits(model), dense)


@every_family
def test_shortgpt_finds_them_apart(name: str) -> None:
    model = idle_layers(make_model(name), [1, 3])
    view = View(model)
    plan = plan_on(view, "shortgpt")
    assert plan.ops == (DropLayers(layers=[1, 3]),)
    influence = plan.stages[0].scores["influence"]
    assert influence[1] == pytest.approx(0, abs=1e-6)
    assert influence[3] == pytest.approx(0, abs=1e-6)
    assert min(influence[i] for i in (0, 2, 4)) > 1e-3


@pytest.mark.parametrize("method", SEARCHING)
@pytest.mark.parametrize("name", DENSE_NAMES)
def test_searches_take_what_does_nothing_out_of_the_midst_of_the_rest(method: str, name: str) -> None:
    """Both blocks of layers 1 and 3 are idle, which is more than is asked for; no other is touched."""
    model = idle_layers(make_model(name), [1, 3])
    dense, view = logits(model), View(model)
    plan = plan_on(view, method, tokens=spoken_by(model), remove=0.05, **SEARCHING[method])
    assert {op.layer for op in plan.ops if isinstance(op, DropSublayer)} <= {1, 3}
    assert plan.ops
    assert all(isinstance(op, DropSublayer) for op in plan.ops)
    assert_same_logits(logits(view.model), dense)


@every_family
@pytest.mark.parametrize("method", SEEING)
def test_the_quietest_layers_are_preferred(method: str, name: str) -> None:
    view = View(quiet_layers(make_model(name), [2, 3]))
    plan = plan_on(view, method, **({"probe": 0} if method == "replaceme" else {}))
    assert removed(plan) == [2, 3]


@every_family
@pytest.mark.parametrize("given", [{}, {"ridge": 0.0}, {"structure": "diagonal"}, {"structure": "lower"}], ids=str)
def test_the_map_over_idle_layers_is_the_identity(name: str, given: dict[str, object]) -> None:
    model = idle_layers(make_model(name), [1, 2])
    plan = plan_on(View(model), "replaceme", tokens=MANY, span="1:3", **given)
    (matrix,) = plan.tensors.values()
    torch.testing.assert_close(matrix, torch.eye(HIDDEN), atol=2e-3, rtol=0)
    assert plan.stages[0].scores["fit"][0]["relative_error"] < 1e-3


@pytest.mark.parametrize("structure", ["orthogonal", "full"])
def test_the_map_over_idle_layers_is_the_identity_even_when_turned(structure: str) -> None:
    model = idle_layers(make_model("llama"), [1, 2])
    plan = plan_on(View(model), "replaceme", tokens=MANY, span="1:3", structure=structure)
    (matrix,) = plan.tensors.values()
    torch.testing.assert_close(matrix, torch.eye(HIDDEN), atol=2e-3, rtol=0)


def measured(model_view: View, statistic: Distances | Influence) -> dict[str, object]:
    sweep = Sweep(model_view)
    for chunk in sweep.chunks(MANY.ids):
        for _, activations in sweep.activations(chunk, [statistic.sites]):
            statistic.update(*activations)
    return statistic.result()


@every_family
def test_distances_over_idle_layers_are_zero(name: str) -> None:
    view = View(idle_layers(make_model(name), [1, 2]))
    angular = measured(view, Distances(list(range(LAYERS + 1))))["angular"]
    assert angular[1][3] == pytest.approx(0, abs=1e-3)
    assert angular[1][2] == pytest.approx(0, abs=1e-3)
    assert angular[0][1] > 1e-2
    assert angular[3][4] > 1e-2


@every_family
def test_idle_layers_have_no_influence(name: str) -> None:
    view = View(idle_layers(make_model(name), [2]))
    idle, busy = (measured(view, Influence(i, i + 1)) for i in (2, 3))
    for part in ("layer", "attn", "mlp"):
        assert all(abs(value) < 1e-6 for value in idle[part].values())
        assert all(value > 1e-4 for value in busy[part].values())


@pytest.mark.parametrize("standalone", [False, True])
def test_a_linear_block_is_recovered(standalone: bool) -> None:
    """Folded: a block that adds `M K` is made up for by `I + K`. Stand-alone: one that maps `x` to `x B`, by `B`."""
    generator = torch.Generator().manual_seed(0)
    moments = CutMoments(1, 2, 4, HIDDEN, standalone=standalone)
    kernel = 0.3 * torch.randn(HIDDEN, HIDDEN, generator=generator)
    for _ in range(4):
        start, added = (torch.randn(3, 40, HIDDEN, generator=generator) for _ in range(2))
        if standalone:
            moments.update(start, start @ kernel)
        else:
            moments.update(added, start, start + added @ kernel)
    fit = fit_closed(moments.result())
    want = kernel if standalone else torch.eye(HIDDEN) + kernel
    torch.testing.assert_close(fit.matrix, want.double(), atol=1e-4, rtol=1e-4)
    assert fit.relative_error < 1e-3
    assert fit.rank == HIDDEN


def test_a_block_linear_in_the_stream_is_beyond_a_fold_but_not_a_layer() -> None:
    """The folded map sees the MLP's output alone; only the stand-alone layer can repeat `x B` exactly."""
    generator = torch.Generator().manual_seed(0)
    folded, alone = CutMoments(1, 2, 4, HIDDEN), CutMoments(1, 2, 4, HIDDEN, standalone=True)
    turn = torch.linalg.qr(torch.randn(HIDDEN, HIDDEN, generator=generator)).Q
    for _ in range(4):
        start, added = (torch.randn(3, 40, HIDDEN, generator=generator) for _ in range(2))
        folded.update(added, start, start @ turn)
        alone.update(start, start @ turn)
    assert fit_closed(folded.result()).relative_error > 0.3
    assert fit_closed(alone.result()).relative_error < 1e-3


def test_random_and_deepest_do_not_look() -> None:
    """The baselines would find idle layers only by luck, so that beating them means something."""
    model = idle_layers(make_model("llama"), [1, 2])
    dense = logits(model)
    view = View(model)
    plan_on(view, "deepest")
    assert_differ(logits(view.model), dense)
