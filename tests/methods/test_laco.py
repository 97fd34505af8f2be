"""LaCo against its algorithm written out: on lists of layers, with a model's own forward pass."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, get_args

import pytest
import torch
from kit.planning import Kill, Steps, calibration, plan_on, small_batches
from kit.planted import streamed_view
from kit.searching import BROKEN, context_of
from kit.tiny import FAMILY_NAMES, LAYERS, make_model
from rich.console import Console

from sned.canon import parse_span
from sned.cli.plans import parts
from sned.errors import BudgetError, ConfigError
from sned.models.merging import MergeMode
from sned.models.view import View
from sned.plans.diff import layer_states
from sned.plans.ops import Merge, Op
from sned.runtime import journal as journals
from sned.runtime.likeness import Likeness
from sned.runtime.search import Search
from sned.runtime.sweep import Cost

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from transformers import PreTrainedModel

    from sned.plans.plan import Plan

MODES: tuple[MergeMode, ...] = get_args(MergeMode)
every_family = pytest.mark.parametrize("name", sorted(set(FAMILY_NAMES) - {"qwen3_moe"}))
every_mode = pytest.mark.parametrize("mode", MODES)
TEXT = calibration()
SEEN = TEXT.ids[:4]
"""As many windows as are compared by default."""
LOW = -0.99
"""A threshold that every merge passes."""


@torch.no_grad()
def final_states(model: PreTrainedModel, ids: torch.Tensor = SEEN) -> torch.Tensor:
    """What leaves the final norm, one vector per window, by the model's own forward pass."""
    return model.base_model(ids, use_cache=False).last_hidden_state.flatten(1).double()


def similarity(name: str, ops: list[Op], ids: torch.Tensor = SEEN) -> float:
    """How like the whole model one is after some ops, with each window's states in one vector."""
    view = View(make_model(name))
    for op in ops:
        op.apply(view, {})
    return _cosine(final_states(view.model, ids), final_states(make_model(name), ids))


def _cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))).mean())


def rows(plan: Plan) -> list[dict[str, Any]]:
    return plan.stages[0].scores["merges"]


@dataclass
class Walk:
    """The published walk, on positions in the list of layers that are left; the last layer may not go."""

    name: str
    mode: MergeMode
    size: int
    threshold: float
    stride: int
    wanted: int

    def run(self) -> tuple[list[Merge], list[float]]:
        ops: list[Merge] = []
        found: list[float] = []
        left, position = list(range(LAYERS)), LAYERS - 1 - self.size
        while position >= 0 and (gone := LAYERS - len(left)) < self.wanted:
            after = left[position + 1 : len(left) - 1][: min(self.size - 1, self.wanted - gone)]
            op = Merge(into=left[position], layers=after, mode=self.mode)
            value = similarity(self.name, [*ops, op])
            if value > self.threshold:
                ops, found = [*ops, op], [*found, value]
                left = [i for i in left if i not in after]
                position -= self.stride
            else:
                position -= 1
        return ops, found


@pytest.mark.parametrize("given", [{}, {"merge": 2}, {"mode": "mean"}, {"layers": 3, "merge": 2}], ids=str)
@every_family
def test_what_is_stated_is_what_the_final_states_say(name: str, given: dict[str, Any]) -> None:
    plan = plan_on(View(make_model(name)), "laco", **{"layers": 2} | given)
    for n, row in enumerate(rows(plan), 1):
        assert row["similarity"] == pytest.approx(similarity(name, list(plan.ops[:n])), abs=1e-5)
    assert [(row["into"], parse_span(row["layers"])) for row in rows(plan)] == [
        (op.into, op.layers) for op in plan.ops if isinstance(op, Merge)
    ]


@every_mode
@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral"])
def test_by_default_the_best_of_all_merges_is_made(name: str, size: int, mode: MergeMode) -> None:
    plan = plan_on(View(make_model(name)), "laco", layers=2, merge=size, mode=mode)
    left, done = list(range(LAYERS)), []
    for op in plan.ops:
        n = len(op.touched) - 1
        bases = range(len(left) - n - 1)  # the last layer stays
        tried = [Merge(into=left[b], layers=left[b + 1 : b + 1 + n], mode=mode) for b in bases]
        assert op == max(tried, key=lambda each: similarity(name, [*done, each]))
        left, done = [i for i in left if i not in op.touched[1:]], [*done, op]
    assert len(left) == LAYERS - 2
    assert {len(op.touched) - 1 for op in plan.ops} == {size - 1}


@every_mode
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_walk_is_the_published_one(name: str, mode: MergeMode, stride: int) -> None:
    """At thresholds between the similarities that a walk meets, so that each decides otherwise."""
    first = sorted(similarity(name, [Merge(into=i, layers=(i + 1,), mode=mode)]) for i in range(3))
    for threshold in (LOW, *((a + b) / 2 for a, b in pairwise(first))):
        walk = Walk(name, mode, 2, threshold, stride, wanted=2)
        ops, found = walk.run()
        view = View(make_model(name))
        if sum(len(op.layers) for op in ops) < 2:
            with pytest.raises(BudgetError, match=f"{len(ops)} of 2 layers are merged away"):
                plan_on(view, "laco", merge=2, mode=mode, threshold=threshold, stride=stride)
            continue
        plan = plan_on(view, "laco", merge=2, mode=mode, threshold=threshold, stride=stride)
        assert list(plan.ops) == ops
        assert [row["similarity"] for row in rows(plan)] == pytest.approx(found, abs=1e-5)
        assert all(row["similarity"] > threshold for row in rows(plan))


def test_every_merge_tried_is_counted() -> None:
    plan = plan_on(View(make_model("llama")), "laco", merge=2, threshold=LOW)
    assert [row["tried"] for row in rows(plan)] == [1, 1]
    best = plan_on(View(make_model("llama")), "laco", merge=2)
    assert [row["tried"] for row in rows(best)] == [3, 2]


@pytest.mark.parametrize("given", [{}, {"threshold": LOW}])
def test_the_last_merge_takes_as_many_layers_as_are_left(given: dict[str, Any]) -> None:
    plan = plan_on(View(make_model("llama")), "laco", layers=3, merge=3, **given)
    assert [len(op.touched) - 1 for op in plan.ops] == [2, 1]
    wide = plan_on(View(make_model("llama")), "laco", layers=3, merge=9, **given)
    assert wide.ops == (Merge(into=0, layers=(1, 2, 3), mode="keep_last"),)


@pytest.mark.parametrize("given", [{}, {"threshold": LOW}])
def test_a_range_can_be_given(given: dict[str, Any]) -> None:
    """The base layer may lie before it."""
    plan = plan_on(View(make_model("llama")), "laco", layers=2, min_start=3, max_end=5, **given)
    assert plan.ops == (Merge(into=2, layers=(3, 4), mode="keep_last"),)


@pytest.mark.parametrize("given", [{}, {"threshold": LOW}])
def test_some_windows_are_enough(given: dict[str, Any]) -> None:
    default, *plans = (
        plan_on(View(make_model("llama")), "laco", **asked, **given)
        for asked in ({}, *({"sentences": n} for n in (1, 4, 6, 9)))
    )
    one, four, six, more = plans
    assert rows(four) == rows(default)
    assert rows(more) == rows(six), "there are six"
    assert rows(one)[0]["similarity"] == pytest.approx(similarity("llama", list(one.ops[:1]), TEXT.ids[:1]), abs=1e-5)
    assert len({rows(plan)[0]["similarity"] for plan in (one, four, six)}) == 3


def test_a_threshold_that_is_too_high_is_an_error_that_says_how_far_it_went() -> None:
    message = r"0 of 2 layers are merged away: .* above 0.9999; the most is 0\.\d{3}\n.*lower --threshold"
    with pytest.raises(BudgetError, match=message) as caught:
        plan_on(View(make_model("llama")), "laco", threshold=0.9999)
    assert caught.value.exit_code == 5


def test_a_walk_that_strides_past_everything_says_so_too() -> None:
    with pytest.raises(BudgetError, match=r"1 of 2 layers are merged away: .* above -0.99\n"):
        plan_on(View(make_model("llama")), "laco", threshold=LOW, merge=2, stride=9)


def test_a_stride_needs_a_walk() -> None:
    with pytest.raises(ConfigError, match=r"--stride belongs to the walk .*\n.*--threshold"):
        plan_on(View(make_model("llama")), "laco", stride=2)


@pytest.mark.parametrize("given", [{"merge": 1}, {"threshold": 1.0}, {"mode": "first"}, {"sentences": 0}], ids=str)
def test_options_that_mean_nothing_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(given))):
        plan_on(View(make_model("llama")), "laco", **given)


def test_what_an_earlier_stage_left_in_part_is_not_merged() -> None:
    view = View(make_model("llama"))
    plan_on(view, "blockpruner", blocks=1, types="mha")
    (halved,) = (i for i in view.layers if not view.has_branch(i, "attn"))
    with pytest.raises(BudgetError, match=r"\d of 3 layers are merged away: no other layers can be merged"):
        plan_on(view, "laco", layers=3)
    assert halved in view.layers


def test_a_layer_with_a_map_is_not_merged() -> None:
    view = View(make_model("llama"))
    plan_on(view, "replaceme", layers=1, span="2:3", standalone=True)
    plan = plan_on(view, "laco", layers=1)
    assert 2 not in plan.ops[0].touched


@pytest.mark.parametrize("given", [{}, {"threshold": LOW}, {"mode": "sum_diff", "merge": 2}], ids=str)
def test_a_walk_is_the_same_streamed_and_killed(
    given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_batches(monkeypatch)
    monkeypatch.setattr(journals, "SAVE_EVERY_SECONDS", 0.0)
    steps, whole, spent = Steps(), Cost(), Cost()
    straight = plan_on(View(make_model("llama")), "laco", progress=steps, cost=whole, **given)
    assert plan_on(streamed_view("llama"), "laco", **given).stages == straight.stages
    with pytest.raises(KeyboardInterrupt):
        plan_on(View(make_model("llama")), "laco", tmp_path, progress=Kill(after=steps.total // 2), **given)
    assert plan_on(View(make_model("llama")), "laco", tmp_path, cost=spent, **given).stages == straight.stages
    assert spent.forward_layer_tokens < whole.forward_layer_tokens
    again = Cost()
    plan_on(View(make_model("llama")), "laco", tmp_path, cost=again, **given)
    assert again.forward_layer_tokens == 0


def test_a_reader_sees_every_merge_and_its_similarity() -> None:
    plan = plan_on(View(make_model("llama")), "laco", layers=3)
    row = rows(plan)[-1]
    state = layer_states(plan)[row["into"]]
    assert f"similarity {row['similarity']:.3f}" in state.note
    console = Console(width=100, color_system=None)
    with console.capture() as capture:
        for part in parts(plan):
            console.print(part)
    shown = capture.get()
    assert "similarity to the base" in shown
    for row in rows(plan):
        assert f"{row['layers'].replace('-', '–')} into {row['into']} " in shown
        assert f"{row['similarity']:.4f}" in shown


class TestLikeness:
    @staticmethod
    def loss(view: View, *ops: Op, windows: int = len(TEXT)) -> float:
        ctx = context_of(view)
        return Search(ctx, objective=Likeness(ctx, TEXT.take(windows)), windows=windows).loss(ops)

    @every_family
    def test_it_is_one_where_nothing_is_merged(self, name: str) -> None:
        assert self.loss(View(make_model(name))) == pytest.approx(0, abs=1e-12)

    @pytest.mark.parametrize("make", [lambda: View(make_model("llama")), lambda: streamed_view("llama")])
    @pytest.mark.parametrize("windows", [1, 4, 6])
    def test_the_mean_is_over_windows(self, make: Callable[[], View], windows: int) -> None:
        op = Merge(into=1, layers=(2, 3), mode="mean")
        want = 1 - similarity("llama", [op], TEXT.ids[:windows])
        assert self.loss(make(), op, windows=windows) == pytest.approx(want, abs=1e-5)

    def test_states_that_are_not_finite_are_infinitely_far(self) -> None:
        assert self.loss(View(make_model("llama")), BROKEN) == torch.inf
