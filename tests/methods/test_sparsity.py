"""Pruning single weights: every way to say how many, with every way to say which and what becomes of the rest."""

from __future__ import annotations

import itertools
from functools import cache
from typing import TYPE_CHECKING

import pytest
import torch
from kit.compare import assert_same_logits, logits
from kit.planning import calibration, plan_on
from kit.sparse import (
    ALLOCATORS,
    OF_WEIGHTS,
    SHARE,
    TEXT,
    Way,
    count_zeros,
    pruned,
    received,
    shortened,
    weights_of,
    zeros_of,
)
from kit.tiny import DENSE_NAMES, make_model

from sned.allocators import neuroal
from sned.models.view import View
from sned.plans.budget import Budget
from sned.runtime.method import find_method
from sned.runtime.planner import make_plan

if TYPE_CHECKING:
    from sned.models.matrices import Matrix

every_method = pytest.mark.parametrize("method", OF_WEIGHTS)
WAYS = [
    way
    for way in itertools.starmap(Way, itertools.product(OF_WEIGHTS, ALLOCATORS, [None, "dsnot"], [False, True], SHARE))
    if (way.pattern == "row" or "step" not in way.allocate)
    and (way.update == (way.refine is not None) or "neuroal" not in way.allocate)
]
"""All of them, but for half of those with a search, which takes long."""
EVERYWHERE = [
    Way("wanda", "owl:multiple=2", "dsnot"),
    Way("sparsegpt", "alphapruning", None, update=True, pattern="matrix"),
    Way("magnitude", "neuroal", None, update=True, pattern="2:4"),
    Way("multiflow", "neuroal:step=row"),
]


@cache
def before(name: str) -> dict[Matrix, torch.Tensor]:
    """Return the matrices of a model that was shortened alone."""
    return weights_of(shortened(name))


def check(name: str, way: Way) -> None:
    """Prune a model in some way and count its zeros."""
    view, share = pruned(name, way), SHARE[way.pattern]
    after = weights_of(view)
    zeros, of = count_zeros(view)
    assert zeros == round(share * of)
    in_runs: dict[int, set[int]] = {}
    for matrix, weight in after.items():
        gone = weight == 0
        if way.allocate == "uniform":
            assert abs(int(gone.sum()) - share * matrix.size) < 1, matrix.name
        if way.pattern == "row" and "step" not in way.allocate:
            in_row = gone.sum(1)
            assert in_row.max() - in_row.min() <= 1, matrix.name
        if way.pattern == "2:4":
            in_runs.setdefault(matrix.layer, set()).update(gone.reshape(-1, 4).sum(1).tolist())
        kept_as_it_was = torch.equal(weight[~gone], before(name)[matrix][~gone])
        assert kept_as_it_was != way.update, matrix.name
    assert all(len(found) == 1 and max(found) < 4 for found in in_runs.values())
    assert way.allocate != "uniform" or all(found == {2} for found in in_runs.values())
    assert torch.isfinite(logits(view.model)).all()


@pytest.fixture
def few_spreads(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search of NeuroAL that has no choice."""
    monkeypatch.setattr(neuroal, "SPREADS", (0.2,))


@pytest.mark.usefixtures("few_spreads")
@pytest.mark.parametrize("way", WAYS, ids=lambda way: "-".join(map(str, way)))
def test_every_composition_meets_the_budget(way: Way) -> None:
    check("llama", way)


@pytest.mark.usefixtures("few_spreads")
@pytest.mark.parametrize("name", DENSE_NAMES)
@pytest.mark.parametrize("way", EVERYWHERE, ids=lambda way: way.method)
def test_on_every_family(way: Way, name: str) -> None:
    check(name, way)


@pytest.mark.parametrize(("allocate", "pattern"), [*((name, "row") for name in ALLOCATORS), ("uniform", "matrix")])
@every_method
def test_no_sparsity_changes_no_bit(method: str, allocate: str, pattern: str) -> None:
    dense = logits(shortened("llama").model)
    for refine, update in itertools.product([None, "dsnot"] if allocate == "uniform" else [None], [False, True]):
        view = pruned("llama", Way(method, allocate, refine, update, pattern), sparsity=0.0)
        assert_same_logits(logits(view.model), dense, exact=True)


def test_all_magnitudes_of_the_model_compete_with_each_other() -> None:
    view = View(make_model("llama"))
    every = torch.cat([weight.flatten().abs() for weight in weights_of(view).values()])
    lowest = every.argsort(stable=True)[: round(0.55 * len(every))]
    plan_on(view, "magnitude", pattern="global", sparsity=0.55)
    found = torch.cat([gone.flatten() for gone in zeros_of(view).values()])
    assert found.nonzero()[:, 0].tolist() == lowest.sort().values.tolist()


@pytest.mark.parametrize("share", [0.3, 0.7])
def test_the_variant_takes_one_share_of_the_scores_of_every_row(share: float) -> None:
    """Within a matrix, no row could lose another weight for less of its total than what some other row has lost."""
    view = View(make_model("llama"))
    dense, inputs = weights_of(view), received(view, TEXT.ids)
    plan_on(view, "wanda", variant=True, sparsity=share, tokens=TEXT)
    found = zeros_of(view)
    for matrix in (m for m in dense if m.layer == 0):
        gone = found[matrix.name]
        scores = dense[matrix].abs().double() * inputs[matrix.name].square().mean(0).sqrt()
        assert (scores.masked_fill(~gone, 0).amax(1) <= scores.masked_fill(gone, torch.inf).amin(1)).all()
        total = scores.sum(1)
        lost = scores.masked_fill(~gone, 0).sum(1)
        following = lost + scores.masked_fill(gone, torch.inf).amin(1)
        assert (lost / total).max() <= (following / total).min() * (1 + 1e-6)
        assert len(set(gone.sum(1).tolist())) > 2


def test_a_pattern_says_how_many() -> None:
    view = View(make_model("llama"))
    plan = make_plan(view, find_method("wanda"), calibration(), Budget(), {"pattern": "1:4"})
    assert plan.stages[0].options["sparsity"] == 0.75
    assert all((gone.view(-1, 4).sum(1) == 3).all() for gone in zeros_of(view).values())


@every_method
def test_a_refined_choice_takes_as_many_of_every_row(method: str) -> None:
    plain, other = (zeros_of(pruned("llama", Way(method, refine=r))) for r in (None, "dsnot"))
    assert any(not torch.equal(plain[name], other[name]) for name in plain)
    assert all(torch.equal(plain[name].sum(1), other[name].sum(1)) for name in plain)


@every_method
def test_what_stays_is_never_worse_off_with_an_update(method: str) -> None:
    """The first layer, where all ways see the same inputs and choose the same weights."""
    dense = View(make_model("llama"))
    inputs, before = received(dense, TEXT.ids), weights_of(dense)
    ways = [Way(method, update=update) for update in (False, True)]
    masked, updated = (weights_of(pruned("llama", way)) for way in ways)
    for matrix in (m for m in before if m.layer == 0):
        assert torch.equal(masked[matrix] == 0, updated[matrix] == 0) or method == "sparsegpt"
        errors = [((w[matrix] - before[matrix]).double() @ inputs[matrix.name].T).norm() for w in (masked, updated)]
        assert errors[1] < errors[0], matrix.name
