"""Where it is known beforehand what a merge leaves, and which merge is best."""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

import pytest
import torch
from kit.compare import assert_differ, assert_same_logits, logits
from kit.planning import plan_on
from kit.planted import idle_layers, layers_of
from kit.tiny import FAMILY_NAMES, make_model

from sned.models.merging import MergeMode
from sned.models.view import View
from sned.plans.ops import DropLayers, Merge

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn
    from transformers import PreTrainedModel

MODES: tuple[MergeMode, ...] = get_args(MergeMode)
every_mode = pytest.mark.parametrize("mode", MODES)
every_family = pytest.mark.parametrize("name", sorted(set(FAMILY_NAMES) - {"qwen3_moe"}))
same_everywhere = pytest.mark.parametrize(
    "name", sorted(set(FAMILY_NAMES) - {"qwen3_moe", "qwen2", "gemma2", "gemma3_text", "smollm3"})
)
"""Families in which no layer attends otherwise than the one before it."""


def norms(layer: nn.Module) -> dict[str, nn.Parameter]:
    owners = {name for name, module in layer.named_modules() if "Norm" in type(module).__name__}
    return {name: p for name, p in layer.named_parameters() if name.rpartition(".")[0] in owners}


@torch.no_grad()
def like(model: PreTrainedModel, example: int, others: Sequence[int], *, only_norms: bool = False) -> PreTrainedModel:
    """Give layers the weights of another, or its norms."""
    stack = layers_of(model)
    for i in others:
        for name, param in norms(stack[example]).items() if only_norms else stack[example].named_parameters():
            stack[i].get_parameter(name).copy_(param)
    return model


def merged(model: PreTrainedModel, op: Merge) -> torch.Tensor:
    op.apply(View(model), {})
    return logits(model)


@every_mode
@every_family
def test_of_layers_that_are_alike_every_mode_leaves_one(name: str, mode: MergeMode) -> None:
    alike, dropped = (like(make_model(name), 1, [2, 3]) for _ in range(2))
    DropLayers(layers=[2, 3]).apply(View(dropped), {})
    got = merged(alike, Merge(into=1, layers=(2, 3), mode=mode))
    assert_differ(got, logits(make_model(name)))
    assert_same_logits(got, logits(dropped))


@same_everywhere
def test_keeping_the_last_is_removing_those_before_it_and_giving_it_their_norms(name: str) -> None:
    swapped = like(make_model(name), 1, [3], only_norms=True)
    DropLayers(layers=[1, 2]).apply(View(swapped), {})
    got = merged(make_model(name), Merge(into=1, layers=(2, 3), mode="keep_last"))
    assert_same_logits(got, logits(swapped), exact=True)


@every_family
def test_keeping_the_first_is_removing_the_others(name: str) -> None:
    dropped = make_model(name)
    DropLayers(layers=[2, 3]).apply(View(dropped), {})
    got = merged(make_model(name), Merge(into=1, layers=(2, 3), mode="keep_first"))
    assert_same_logits(got, logits(dropped), exact=True)


@every_family
def test_with_one_other_layer_the_sum_of_differences_keeps_the_last(name: str) -> None:
    """The released code and the paper part ways at three layers."""
    last, paper = (
        merged(make_model(name), Merge(into=1, layers=(2,), mode=mode)) for mode in ("keep_last", "sum_diff")
    )
    assert_same_logits(last, paper, exact=True)


@every_family
def test_layers_that_do_nothing_go_first(name: str) -> None:
    """The base before them stays as it is."""
    model = idle_layers(make_model(name), [2, 3])
    dense = logits(model)
    plan = plan_on(View(model), "laco", mode="keep_first")
    assert plan.ops == (Merge(into=1, layers=(2, 3), mode="keep_first"),)
    assert plan.stages[0].scores["merges"][0]["similarity"] == pytest.approx(1, abs=1e-6)
    assert_same_logits(logits(model), dense)


@same_everywhere
def test_layers_that_do_nothing_make_way_for_the_next(name: str) -> None:
    """The first of them becomes the next that does something, if they share their norms."""
    model = like(idle_layers(make_model(name), [1, 2]), 1, [2, 3], only_norms=True)
    dense = logits(model)
    plan = plan_on(View(model), "laco", mode="keep_last")
    assert plan.ops == (Merge(into=1, layers=(2, 3), mode="keep_last"),)
    assert plan.stages[0].scores["merges"][0]["similarity"] == pytest.approx(1, abs=1e-6)
    assert_same_logits(logits(model), dense)


@every_family
def test_a_walk_stops_at_nothing_else(name: str) -> None:
    """With a threshold only just below one it passes by every base but the one before the idle layers."""
    model = idle_layers(make_model(name), [1, 2])
    plan = plan_on(View(model), "laco", mode="keep_first", merge=3, threshold=0.99999)
    assert plan.ops == (Merge(into=0, layers=(1, 2), mode="keep_first"),)
    assert plan.stages[0].scores["merges"][0]["tried"] == 2
