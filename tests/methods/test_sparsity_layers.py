"""Pruning single weights layer after layer: what each sees, what it costs, and what earlier zeros become."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from kit.compare import assert_same_logits, logits
from kit.planning import plan_on
from kit.planted import streamed_view
from kit.searching import fresh
from kit.sparse import OF_WEIGHTS, TEXT, count_zeros, received, set_weights, weights_of, zeros_of
from kit.tiny import DENSE_NAMES, make_model, save_model_folder, tokens
from transformers import AutoModelForCausalLM

import sned
from sned.errors import BudgetError
from sned.models.matrices import all_matrices
from sned.models.view import View

every_method = pytest.mark.parametrize("method", OF_WEIGHTS)
MANY = tokens(20, 16, seed=3)


def rms(inputs: torch.Tensor) -> torch.Tensor:
    return inputs.square().mean(0).sqrt()


def lowest_half(scores: torch.Tensor) -> torch.Tensor:
    """Mark half of every row."""
    first = scores.argsort(dim=1, stable=True)[:, : scores.shape[1] // 2]
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, first, value=True)


def pruned_by_hand(name: str, *, on_pruned: bool) -> dict[str, torch.Tensor]:
    """Return what Wanda takes when layers are pruned one by one and the model is run anew after each."""
    view = View(make_model(name))
    dense, inputs = weights_of(view), received(view, TEXT.ids)
    masks: dict[str, torch.Tensor] = {}
    for layer in view.layers:
        if on_pruned:
            inputs = received(view, TEXT.ids)
        own = [matrix for matrix in dense if matrix.layer == layer]
        masks |= {m.name: lowest_half(dense[m].abs().double() * rms(inputs[m.name])) for m in own}
        set_weights(view, {m: dense[m].masked_fill(masks[m.name], 0.0) for m in own})
    return masks


@pytest.mark.parametrize("name", DENSE_NAMES)
def test_each_layer_is_judged_on_what_the_pruned_ones_before_it_compute(name: str) -> None:
    view = View(make_model(name))
    plan_on(view, "wanda", sparsity=0.5, tokens=TEXT)
    found, by_hand, on_dense = zeros_of(view), *(pruned_by_hand(name, on_pruned=p) for p in (True, False))
    other = {matrix.layer for matrix in all_matrices(view) if not found[matrix.name].equal(on_dense[matrix.name])}
    assert [key for key in found if not found[key].equal(by_hand[key])] == []
    assert other == {1, 2, 3, 4}, "the dense model would have told something else"


def uneven(name: str) -> View:
    """Return a model whose norms and rows differ in scale, and so all inputs do."""
    model = make_model(name)
    generator = torch.Generator().manual_seed(0)
    for param in [p for n, p in model.named_parameters() if p.dim() == 1 and not n.endswith("bias")]:
        param.data *= (torch.randn(param.shape, generator=generator) / 2).exp()
    view = View(model)
    sized = {m: w * (torch.randn(len(w), 1, generator=generator) / 2).exp() for m, w in weights_of(view).items()}
    set_weights(view, sized)
    return view


def first_layer_errors(name: str, method: str, **given: Any) -> list[float]:
    """Return by how much the outputs of each matrix of the first layer move, whose inputs no method changes."""
    view = uneven(name)
    inputs, dense = received(view, MANY.ids), weights_of(view)
    plan_on(view, method, tokens=MANY, **given)
    return [
        float(((weight - dense[m]).double() @ inputs[m.name].T).norm())
        for m, weight in weights_of(view).items()
        if m.layer == 0
    ]


def test_seeing_more_of_the_inputs_moves_the_outputs_less() -> None:
    """Where input channels differ, SparseGPT is better than Wanda, and Wanda than magnitudes."""
    better: list[bool] = []
    for name in DENSE_NAMES[::2]:
        ways = ("sparsegpt", "wanda", "magnitude")
        errors = [first_layer_errors(name, method, sparsity=0.5, pattern="row") for method in ways]
        better += [solved < scored <= blind for solved, scored, blind in zip(*errors, strict=True)]
    assert sum(better) >= 0.9 * len(better)


@every_method
def test_more_zeros_move_the_outputs_more(method: str) -> None:
    errors = [first_layer_errors("llama", method, sparsity=s) for s in (0.2, 0.4, 0.6, 0.8)]
    for by_sparsity in zip(*errors, strict=True):
        assert list(by_sparsity) == sorted(by_sparsity)
        assert by_sparsity[0] > 0


class TestAlreadySparse:
    """A model that lost some weights of every row before."""

    @staticmethod
    def sparse(share: float = 0.3) -> tuple[View, dict[str, torch.Tensor]]:
        view = View(make_model("llama"))
        plan_on(view, "magnitude", pattern="row", sparsity=share)
        return view, zeros_of(view)

    def check(self, view: View, before: dict[str, torch.Tensor], *, stay: bool) -> None:
        back = {name: int((before[name] & ~gone).sum()) for name, gone in zeros_of(view).items()}
        assert any(back.values()) != stay

    @pytest.mark.parametrize("pattern", ["row", "matrix"])
    @pytest.mark.parametrize("refine", [None, "dsnot"])
    @every_method
    def test_its_zeros_count_and_stay(self, method: str, refine: str | None, pattern: str) -> None:
        view, before = self.sparse()
        update = {"update": False} if method == "sparsegpt" else {}
        plan = plan_on(view, method, sparsity=0.5, refine=refine, pattern=pattern, **update)
        self.check(view, before, stay=True)
        zeros, of = count_zeros(view)
        assert zeros == of // 2
        rows = {row["matrix"]: row["zero_before"] for row in plan.stages[0].scores["sparsity"]}
        assert rows == {name: int(gone.sum()) for name, gone in before.items()}

    @pytest.mark.parametrize("pattern", ["row", "matrix", "2:4"])
    @every_method
    def test_an_update_keeps_them_if_asked_to(self, method: str, pattern: str) -> None:
        view, before = self.sparse()
        plan_on(view, method, sparsity=0.5, pattern=pattern, update=True, keep_zeros=True)
        self.check(view, before, stay=True)
        zeros, of = count_zeros(view)
        assert zeros == of // 2 if pattern != "2:4" else zeros > of // 2, "some runs had three zeros before"

    @every_method
    def test_without_being_asked_an_update_brings_back_what_a_run_has_too_many_of(self, method: str) -> None:
        view, before = self.sparse()
        plan_on(view, method, sparsity=0.5, pattern="2:4", update=True)
        self.check(view, before, stay=False)
        zeros, of = count_zeros(view)
        assert zeros < of * 0.51

    def test_sparsegpt_says_that_there_are_too_many(self) -> None:
        view, _ = self.sparse(0.6)
        with pytest.raises(BudgetError, match=r"^layers\.0\.attn\.q: more weights .* are zero already"):
            plan_on(view, "sparsegpt", sparsity=0.5, keep_zeros=True)

    @pytest.mark.parametrize("make", [fresh, streamed_view], ids=["loaded", "streamed"])
    @pytest.mark.parametrize("method", ["shortgpt", "wanda", "multipruner"])
    def test_nothing_is_taken_from_a_journal_of_the_model_before(self, method: str, make: Any, tmp_path: Path) -> None:
        """Zeros leave every shape as it is; what was measured before them is worthless all the same."""
        amount = {"sparsity": 0.5} if method == "wanda" else {}
        plan_on(make("llama"), method, tmp_path, **amount)
        plans = []
        for folder in (None, tmp_path):
            view = make("llama")
            plan_on(view, "magnitude", sparsity=0.002)
            plans.append(plan_on(view, method, folder, **amount))
        assert plans[0].stages == plans[1].stages


def test_a_saved_model_has_the_same_zeros_for_transformers(tmp_path: Path) -> None:
    """New values, then a mask, in fused projections."""
    dense = sned.load(str(save_model_folder(tmp_path / "dense", "phi3")))
    first = sned.plan(dense, "sparsegpt", TEXT, sparsity=0.3, pattern="row")
    second = sned.plan(sned.apply(first, dense), "wanda", TEXT, sparsity=0.55, allocate="owl:multiple=2")
    pruned = sned.apply(first.then(second), dense)
    sned.save(pruned, tmp_path / "out")
    loaded = View(AutoModelForCausalLM.from_pretrained(tmp_path / "out"))
    want = zeros_of(pruned.view)
    assert {name: gone.equal(want[name]) for name, gone in zeros_of(loaded).items()} == dict.fromkeys(want, True)
    assert count_zeros(loaded)[0] == round(0.55 * count_zeros(loaded)[1])
    assert not any(torch.signbit(weight[weight == 0]).any() for weight in weights_of(loaded).values())
    assert_same_logits(logits(loaded.model), logits(pruned.view.model))
    assert count_zeros(dense.view)[0] == 0
