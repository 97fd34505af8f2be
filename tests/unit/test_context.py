"""What a method sees: losses of many candidates, kept under all that they depend on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from kit.planning import METHODS, Messages, calibration, plan_on, small_batches
from kit.planted import streamed_view
from kit.searching import BROKEN, TENSORS, assorted, block, context_of, cut, fresh, loss
from kit.tiny import FAMILY_NAMES, make_model, tokens

from sned.errors import DataError
from sned.plans.ops import DropLayers, Fold, Keep, Op
from sned.runtime.sweep import Cost

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sned.models.view import View

IDS = calibration().ids
ATTN, MLP = [block("attn", 1)], [block("mlp", 2)]
STAGES: dict[str, list[Op]] = {
    "nothing": [],
    "a layer": [DropLayers(layers=[3])],
    "an attention": [block("attn", 3)],
    "an mlp": [block("mlp", 3)],
    "channels": [Keep(axis="layers.3.mlp.hidden", units=range(9))],
    "other channels": [Keep(axis="layers.3.mlp.hidden", units=range(1, 10))],
    "a layer, with a map": [DropLayers(layers=[3]), Fold(layer=2, tensor="map")],
}
"""What may have been cut before a method begins, all of the same base."""


@pytest.fixture(autouse=True)
def batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three batches in a pass over the tokens of the contracts."""
    small_batches(monkeypatch)


@pytest.mark.parametrize("make", [fresh, streamed_view], ids=["loaded", "streamed"])
@pytest.mark.parametrize("name", FAMILY_NAMES)
def test_losses_are_those_of_the_cut_models(name: str, make: Callable[[str], View]) -> None:
    candidates = [ops for ops in assorted(name) if not any(isinstance(op, Keep) for op in ops)]
    want = [loss(cut(make_model(name), ops).model, IDS) for ops in candidates]
    assert context_of(make(name)).losses(candidates) == pytest.approx(want, abs=2e-4)


def test_some_windows_may_be_enough() -> None:
    ctx = context_of(fresh("llama"), cost=(cost := Cost()))
    assert ctx.losses([[]], windows=2) == pytest.approx([loss(make_model("llama"), IDS[:2])], abs=1e-5)
    assert cost.forward_layer_tokens == 5 * 2 * 16, "five layers, two windows of sixteen tokens"


def test_divergence_is_measured_from_where_the_method_began() -> None:
    ctx = context_of(fresh("llama"))
    assert ctx.losses([[]], objective="kl") == [0.0]
    ATTN[0].apply(ctx.view, {})
    ctx.ops += ATTN
    after, more = ctx.losses([[], MLP], objective="kl")
    assert 0 < after < more


def test_a_broken_candidate_scores_infinity() -> None:
    messages = Messages()
    ctx = context_of(fresh("llama"), progress=messages)
    healthy, broken = ctx.losses([ATTN, [BROKEN]])
    assert healthy == context_of(fresh("llama")).losses([ATTN])[0]
    assert broken == torch.inf
    assert "layer 2 returns NaN" in messages.warnings[0]


def test_without_tokens_there_is_nothing_to_measure() -> None:
    ctx = context_of(fresh("llama"))
    ctx.tokens = None
    with pytest.raises(DataError, match="needs calibration text"):
        ctx.losses([ATTN])


def test_finished_losses_are_free(tmp_path: Path) -> None:
    first = context_of(fresh("llama"), folder=tmp_path).losses([ATTN, MLP])
    ctx = context_of(fresh("llama"), folder=tmp_path, cost=(cost := Cost()))
    assert ctx.losses([MLP, ATTN]) == first[::-1]
    assert cost.forward_layer_tokens == 0


OTHERS: dict[str, dict[str, Any]] = {
    "tokens": {"text": tokens(6, 16, seed=4)},
    "objective": {"objective": "kl"},
    "weights": {"seed": 1},
    "ops made since": {"made": [block("attn", 3)]},
}


@pytest.mark.parametrize("other", OTHERS)
def test_losses_of_something_else_are_not_taken_for_them(other: str, tmp_path: Path) -> None:
    def losses(
        folder: Path | None, text: Any = None, objective: Any = "perplexity", seed: int = 0, made: Any = ()
    ) -> Any:
        ctx = context_of(fresh("llama", seed), text, folder=folder)
        for op in made:
            op.apply(ctx.view, TENSORS)
            ctx.ops.append(op)
        return ctx.losses([ATTN, MLP], objective=objective)

    plain, want = losses(tmp_path), losses(None, **OTHERS[other])
    assert losses(tmp_path, **OTHERS[other]) == want != plain


def test_every_earlier_stage_makes_losses_of_its_own(tmp_path: Path) -> None:
    """Plans in a row speak of the same base; a folder that serves them all must keep them apart."""
    for stage, ops in STAGES.items():
        want = context_of(cut(make_model("llama"), ops)).losses([ATTN])
        assert context_of(cut(make_model("llama"), ops), folder=tmp_path).losses([ATTN]) == want, stage


@pytest.mark.parametrize("method", METHODS)
def test_a_second_stage_may_share_the_folder_of_the_first(method: str, tmp_path: Path) -> None:
    """Planned for the whole model before, a method plans what it would without a folder for what is left of it."""
    plan_on(fresh("llama"), method, tmp_path)
    plans = []
    for folder in (None, tmp_path):
        view = fresh("llama")
        plan_on(view, "uidl", layers=1, span="2:3")
        plans.append(plan_on(view, method, folder))
    assert plans[0].stages == plans[1].stages
