"""NeuroAL: its metric against one written anew, and what its search must not do."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from kit.compare import assert_same_logits, swept
from kit.planning import Kill, Steps, plan_on
from kit.planted import layers_of, streamed_view
from kit.searching import context_of, fresh
from kit.sparse import OF_WEIGHTS, received, set_weights, weights_of, zeros_of
from kit.tiny import LAYERS, MLP, make_model, tokens

from sned.allocators import neuroal
from sned.models.matrices import all_matrices
from sned.models.view import View
from sned.plans.budget import Goal
from sned.runtime.alignment import Alignment, Reference
from sned.runtime.allocator import Task
from sned.runtime.method import find_method
from sned.runtime.quotas import UNIFORM, Shares, by_layer, quotas
from sned.runtime.sparsifier import by_score
from sned.runtime.sweep import Cost
from sned.score.importance import wanda

if TYPE_CHECKING:
    from sned.plans.plan import Plan

TEXT = tokens(4, 12, seed=3)
SPARSITY = 0.6
REFERENCES: list[Reference] = ["global", "local"]
by_reference = pytest.mark.parametrize("reference", REFERENCES)
on_both = pytest.mark.parametrize("make", [fresh, streamed_view], ids=["loaded", "streamed"])
WANDA = by_score("wanda", lambda w, x: wanda(w, x.norm), "norms", refine=None, update=False, keep_zeros=False)


def search(view: View, method: str = "wanda", folder: Path | None = None, **given: Any) -> Plan:
    """Plan with NeuroAL, on all of the text unless asked otherwise."""
    told = {"windows": len(TEXT)} | {name: given.pop(name) for name in ("step", "reference", "every") if name in given}
    allocate = "neuroal:" + ",".join(f"{name}={value}" for name, value in told.items())
    asked = {"pattern": "row", "sparsity": SPARSITY, "tokens": TEXT, **given}
    return plan_on(view, method, folder, allocate=allocate, **asked)


def ramp(spread: float, sparsity: float = SPARSITY) -> Shares:
    """Shares that rise with depth, by hand."""
    shares = {i: sparsity + spread * (2 * i / (LAYERS - 1) - 1) for i in range(LAYERS)}
    return by_layer(all_matrices(fresh("llama")), shares)


def task_of(view: View, sparsity: float = SPARSITY) -> Task:
    return Task(all_matrices(view), sparsity, "row", WANDA)


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
                rank = scores.argsort(dim=1, stable=True).argsort(dim=1)
                weights[matrix][rank < wanted[matrix.name].counts[:, None]] = 0
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
    spreads = neuroal.SPREADS[::3]
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
    found = Alignment(ctx, task_of(ctx.view), reference, len(TEXT)).drops(UNIFORM)
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
    drops = {which: Alignment(ctx, task_of(ctx.view), which, len(TEXT)).drops(ramp(0.2)) for which in REFERENCES}
    for layer in range(LAYERS - 1):
        assert not drops["local"][f"layers.{layer}.mlp.down"].any()
        assert drops["global"][f"layers.{layer}.mlp.down"].all()


@by_reference
def test_without_zeros_nothing_moves(reference: Reference) -> None:
    ctx = context_of(fresh("llama"), TEXT)
    none, some = (Alignment(ctx, task_of(ctx.view, share), reference, len(TEXT)) for share in (0.0, 0.01))
    assert none.judge(UNIFORM, math.inf, lambda _: None) == 0
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
    monkeypatch.setattr(neuroal, "SPREADS", (0.1,))
    views = {step: fresh("llama") for step in ("block", "both")}
    for step, view in views.items():
        search(view, step=step, reference="global")
    block, both = (zeros_of(view) for view in views.values())
    ctx = context_of(fresh("llama"), TEXT)
    drops = Alignment(ctx, task_of(ctx.view), "global", len(TEXT)).drops(ramp(0.1))
    for name, gone in both.items():
        counts = gone.sum(1)
        span = int(counts.max() - counts.min())
        assert counts.sum() == block[name].sum()
        if name in drops:
            assert (counts[drops[name].argsort()].diff() <= 0).all()
            assert abs(span - 0.2 * gone.shape[1]) < 2
        else:
            assert span <= 1, "queries, keys and the last rows have no reader"


def test_rows_of_a_reordered_mlp_take_their_share_along(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neuroal, "SPREADS", (0.15,))
    order = torch.randperm(MLP, generator=torch.Generator().manual_seed(0))
    model, view = make_model("llama"), fresh("llama")
    mlp = layers_of(model)[2].mlp
    for linear in (mlp.gate_proj, mlp.up_proj):
        linear.weight.data, linear.bias.data = linear.weight.data[order], linear.bias.data[order]
    mlp.down_proj.weight.data = mlp.down_proj.weight.data[:, order]
    moved = View(model)
    for other in (view, moved):
        search(other, step="row", sparsity=0.5)  # whole numbers, or the first rows lose one more to begin with
    want, found = zeros_of(view), zeros_of(moved)
    for role in ("gate", "up"):
        counts, reordered = (masks[f"layers.2.mlp.{role}"].sum(1) for masks in (want, found))
        assert torch.equal(reordered, counts[order])
        assert not torch.equal(reordered, counts)
    assert all(found[name].sum() == want[name].sum() for name in want)


class TestTheSearchLeavesNoTrace:
    """Whether it ends or is cut short, masks that were tried are taken back."""

    @on_both
    @pytest.mark.parametrize("method", OF_WEIGHTS)
    def test_weights_are_the_same_bits_when_it_ends(
        self, method: str, make: Callable[[str], View], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(neuroal, "SPREADS", (0.0, 0.1))
        ctx = context_of(make("gpt2"), TEXT)
        before = self.bits(ctx.view)
        kind = find_method(method)
        options = kind.parse({"pattern": "row", "allocate": "neuroal:step=both"})
        ops = kind.run(ctx, goal=Goal(sparsity=SPARSITY), **options)
        next(ops)  # the first op comes after the search, and was not applied
        assert "tried" in ctx.scores["allocation"]["row"]
        assert self.bits(ctx.view).keys() == before.keys()
        assert all(values.equal(before[name]) for name, values in self.bits(ctx.view).items())

    @on_both
    @pytest.mark.parametrize("after", [0, 1, 7, 24])
    def test_weights_are_the_same_bits_when_it_is_killed(self, after: int, make: Callable[[str], View]) -> None:
        view = make("llama")
        before = self.bits(view)
        with pytest.raises(KeyboardInterrupt):
            search(view, "sparsegpt", step="both", progress=Kill(after))
        assert all(values.equal(before[name]) for name, values in self.bits(view).items())

    @staticmethod
    def bits(view: View) -> dict[str, torch.Tensor]:
        found = {}
        for layer in view.layers:
            with view.materialised(layer) as block:
                found |= {f"{layer}.{n}": p.detach().clone().view(torch.int32) for n, p in block.named_parameters()}
        return found


class TestResuming:
    @pytest.mark.parametrize(
        ("method", "given"), [("magnitude", {"every": True, "reference": "local"}), ("sparsegpt", {"step": "both"})]
    )
    def test_a_killed_run_goes_on_where_it_stopped(
        self, method: str, given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(neuroal, "SPREADS", (0.0, 0.1, 0.2))
        steps, left = Steps(), Cost()
        straight = search(fresh("llama"), method, progress=steps, cost=left, **given)
        for after in range(0, steps.total, -(-steps.total // 4)):
            folder = tmp_path / str(after)
            with pytest.raises(KeyboardInterrupt):
                search(fresh("llama"), method, folder, progress=Kill(after), **given)
            view, cost = fresh("llama"), Cost()
            resumed = search(view, method, folder, cost=cost, **given)
            assert (resumed.digest, resumed.stages) == (straight.digest, straight.stages)
            straight.apply(other := fresh("llama"))
            assert_same_logits(swept(view), swept(other), exact=True)
            assert cost.forward_layer_tokens < left.forward_layer_tokens or after == 0
            left = cost
        assert search(fresh("llama"), method, folder, cost=(again := Cost()), **given).stages == straight.stages
        assert again.forward_layer_tokens == 0

    def test_what_was_given_up_against_one_rival_is_measured_against_another(self, tmp_path: Path) -> None:
        """A search of layers gives up what a search of rows, in the same folder, may have to choose."""
        for given in ({"step": "block", "every": True}, {"step": "row"}, {"step": "block"}):
            alone, shared = (search(fresh("llama"), folder=folder, **given) for folder in (None, tmp_path))
            assert shared.stages == alone.stages
        contexts = [context_of(fresh("llama"), TEXT, folder) for folder in (None, tmp_path / "one")]
        exact, alignment = (Alignment(ctx, task_of(ctx.view), "global", len(TEXT)) for ctx in contexts)
        whole = exact.judge(UNIFORM, math.inf, lambda _: None)
        asked = [whole / 9, whole / 2, whole / 10, math.inf, whole / 2, whole]
        found = [alignment.judge(UNIFORM, bound, lambda _: None) for bound in asked]
        assert found == [math.inf, math.inf, math.inf, whole, math.inf, whole]


@pytest.mark.parametrize(("seed", "reference"), [(0, "global"), (1, "local")])
def test_giving_up_early_changes_no_choice(seed: int, reference: Reference, monkeypatch: pytest.MonkeyPatch) -> None:
    plans = {every: search(fresh("llama", seed), reference=reference, every=every) for every in (True, False)}
    assert plans[True].stages[0].scores["allocation"]["block"]["given_up"] > 0
    judge = Alignment.judge
    monkeypatch.setattr(Alignment, "judge", lambda self, shares, _, advance: judge(self, shares, math.inf, advance))
    for every, plan in plans.items():
        patient = search(fresh("llama", seed), reference=reference, every=every)
        assert patient.digest == plan.digest
        assert patient.stages[0].scores["allocation"]["block"]["given_up"] == 0
