"""NeuroAL: its metric against one written anew, and what its search must not do."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from kit.planning import OF_WEIGHTS, plan_on
from kit.planted import streamed_view
from kit.searching import context_of, fresh
from kit.sparse import received, set_weights, weights_of, zeros_of
from kit.tiny import LAYERS, tokens

from sned.allocators import neuroal
from sned.models.matrices import all_matrices
from sned.models.view import View
from sned.plans.plan import Plan
from sned.runtime.alignment import Alignment, Reference
from sned.runtime.allocator import Task
from sned.runtime.quotas import UNIFORM, Shares, by_layer, quotas
from sned.runtime.sparsifier import by_score
from sned.score.importance import wanda

TEXT = tokens(4, 12, seed=3)
SPARSITY = 0.6
REFERENCES: list[Reference] = ["global", "local"]
by_reference = pytest.mark.parametrize("reference", REFERENCES)
on_both = pytest.mark.parametrize("make", [fresh, streamed_view], ids=["loaded", "streamed"])
WANDA = by_score("wanda", lambda w, x: wanda(w, x.norm), "norms", refine=None, update=False, keep_zeros=False)


def search(
    view: View, method: str = "wanda", folder: Path | None = None, *, progress: Any = None, **options: Any
) -> Plan:
    """Plan with NeuroAL, on all of the text unless asked otherwise."""
    told = {
        "windows": len(TEXT),
        **{k: options.pop(k) for k in ("step", "reference", "every", "windows") if k in options},
    }
    allocate = "neuroal:" + ",".join(f"{name}={value}" for name, value in told.items())
    given = {"pattern": "row", "sparsity": SPARSITY, "tokens": TEXT, **options}
    return plan_on(view, method, folder, allocate=allocate, **given, **({"progress": progress} if progress else {}))


def ramp(spread: float, sparsity: float = SPARSITY) -> Shares:
    """Shares that rise with depth, by hand."""
    shares = {i: sparsity + spread * (2 * i / (LAYERS - 1) - 1) for i in range(LAYERS)}
    return by_layer(all_matrices(fresh("llama")), shares)


class Pruned:
    """A model pruned by Wanda with some shares, a layer at a time, and the norms of all that its matrices receive."""

    def __init__(self, name: str, shares: Shares, seed: int = 0) -> None:
        view = fresh(name, seed)
        self.matrices, weights = all_matrices(view), weights_of(view)
        wanted = quotas(self.matrices, shares, SPARSITY, "row")
        self.dense, self.local = self.norms(view), {}
        for layer in view.layers:
            now = self.norms(view)
            for matrix in (m for m in self.matrices if m.layer == layer):
                self.local[matrix.name] = now[matrix.name]
                scores = weights[matrix].abs() * now[matrix.name]
                for row, score, count in zip(weights[matrix], scores, wanted[matrix.name].counts, strict=True):
                    row[score.argsort(stable=True)[:count]] = 0
            set_weights(view, weights)
        self.sparse = self.norms(view)

    @staticmethod
    def norms(view: View) -> dict[str, torch.Tensor]:
        return {name: states.square().sum(0).sqrt() for name, states in received(view, TEXT.ids).items()}

    def distance(self, reference: Reference) -> float:
        """Equation 3."""
        before = self.dense if reference == "global" else self.local
        return sum(
            float((before[m.name] / before[m.name].sum() - after / after.sum()).norm()) / m.columns
            for m, after in zip(self.matrices, self.sparse.values(), strict=True)
        )


@by_reference
@pytest.mark.parametrize(("name", "seed"), [("llama", 0), ("llama", 1), ("gpt2", 0), ("falcon", 0)])
def test_the_chosen_spread_is_the_one_of_least_distance(
    name: str, seed: int, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    spreads = neuroal.SPREADS[::2]
    monkeypatch.setattr(neuroal, "SPREADS", spreads)
    by_hand = {}
    for spread in spreads:
        shares = {i: SPARSITY + spread * (2 * i / (LAYERS - 1) - 1) for i in range(LAYERS)}
        by_hand[spread] = Pruned(name, by_layer(all_matrices(fresh(name)), shares), seed).distance(reference)
    told = search(fresh(name, seed), reference=reference, every=True).stages[0].scores["allocation"]["block"]
    assert told["spread"] == min(by_hand, key=by_hand.__getitem__)
    assert told["tried"] == {k: pytest.approx(by_hand[float(k)], rel=1e-5) for k in told["tried"]}
    assert len(told["tried"]) + told["given_up"] == len(spreads)


READERS = {"v": "attn.o", "o": "mlp.gate", "gate": "mlp.down", "up": "mlp.down"}


@by_reference
def test_rows_lose_what_their_readers_do_not_receive(reference: Reference) -> None:
    """By hand, from one model: down is read by the next layer, and a value head by the two heads of its group."""
    made = Pruned("llama", UNIFORM)
    ctx = context_of(fresh("llama"), TEXT)
    task = Task(made.matrices, SPARSITY, "row", WANDA)
    found = Alignment(ctx, task, reference, len(TEXT)).drops(UNIFORM)
    before = made.dense if reference == "global" else made.local
    lost = {name: (before[name] - made.sparse[name]) / TEXT.n_tokens**0.5 for name in before}
    want = {}
    for m in made.matrices:
        if m.role == "down" and m.layer < LAYERS - 1:
            want[m.name] = lost[f"layers.{m.layer + 1}.attn.q"]
        elif m.role in READERS:
            want[m.name] = lost[f"layers.{m.layer}.{READERS[m.role]}"]
        if m.role == "v":
            heads = want[m.name].view(2, 2, 8)
            want[m.name] = torch.cat([heads[group].mean(0) for group in range(2)])
    assert found.keys() == want.keys()
    for name, drop in want.items():
        torch.testing.assert_close(found[name], drop, atol=1e-5, rtol=1e-4)


def test_against_dense_layers_on_pruned_inputs_queries_keys_and_values_always_match() -> None:
    made = Pruned("llama", ramp(0.2))
    for m in made.matrices:
        assert made.local[m.name].equal(made.sparse[m.name]) == (m.role in "qkv")
    ctx = context_of(fresh("llama"), TEXT)
    task = Task(made.matrices, SPARSITY, "row", WANDA)
    drops = {which: Alignment(ctx, task, which, len(TEXT)).drops(ramp(0.2)) for which in REFERENCES}
    for layer in range(LAYERS - 1):
        assert not drops["local"][f"layers.{layer}.mlp.down"].any()
        assert drops["global"][f"layers.{layer}.mlp.down"].all()


@by_reference
def test_without_zeros_nothing_moves(reference: Reference) -> None:
    view = fresh("llama")
    task = Task(all_matrices(view), 0.0, "row", WANDA)
    alignment = Alignment(context_of(view, TEXT), task, reference, len(TEXT))
    assert alignment.judge(UNIFORM, math.inf, lambda _: None) == 0
    some = Alignment(context_of(view, TEXT), Task(task.matrices, 0.01, "row", WANDA), reference, len(TEXT))
    assert some.judge(UNIFORM, math.inf, lambda _: None) > 0


@pytest.mark.parametrize("step", ["block", "row", "both"])
@pytest.mark.parametrize("method", OF_WEIGHTS)
def test_without_spread_it_is_the_method_alone(method: str, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neuroal, "SPREADS", (0.0,))
    plain = plan_on(fresh("llama"), method, pattern="row", sparsity=SPARSITY, tokens=TEXT)
    plan = search(fresh("llama"), method, step=step)
    assert plan.ops == plain.ops
    assert plan.tensors.keys() == plain.tensors.keys()


@pytest.mark.parametrize("pattern", ["row", "matrix", "2:4"])
def test_shares_rise_with_depth(pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neuroal, "SPREADS", (0.25,))
    view = fresh("llama")
    search(view, pattern=pattern, sparsity=0.5)
    found = zeros_of(view)
    shares = [torch.cat([g.flatten() for n, g in found.items() if f"layers.{i}." in n]) for i in range(LAYERS)]
    by_depth = [float(gone.float().mean()) for gone in shares]
    if pattern == "2:4":
        assert by_depth == sorted(by_depth)
        assert by_depth[0] == 0.25
        assert by_depth[-1] == 0.75
    else:
        assert by_depth == pytest.approx([0.25, 0.375, 0.5, 0.625, 0.75], abs=1e-3)


def test_rows_that_lose_more_are_pruned_less_within_the_same_total(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neuroal, "SPREADS", (0.2,))
    views = {step: fresh("llama") for step in ("block", "both")}
    block, both = (
        zeros_of(view) for view in views.values() if search(view, step="both" if view is views["both"] else "block")
    )
    shares = ramp(0.2)
    ctx = context_of(fresh("llama"), TEXT)
    drops = Alignment(ctx, Task(all_matrices(ctx.view), SPARSITY, "row", WANDA), "global", len(TEXT)).drops(shares)
    assert {name for name in both if ".q" in name or ".k" in name}.isdisjoint(drops)
    for name, gone in both.items():
        counts = gone.sum(1)
        assert counts.sum() == block[name].sum()
        if name in drops:
            assert (counts[drops[name].argsort()].diff() <= 0).all()
            spread = 0.4 * gone.shape[1]
            assert abs(int(counts.max() - counts.min()) - spread) <= 1
        else:
            assert counts.max() - counts.min() <= 1
