"""Merging layers: what the formula says, loaded or streamed, tried or applied, and never in another view's tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

import pytest
import torch
from kit.compare import assert_differ, assert_same_logits, decoded, logits, swept
from kit.planning import calibration
from kit.planted import layers_of, streamed_view
from kit.tiny import DENSE_NAMES, FAMILY_NAMES, LAYERS, make_model

from sned.errors import PlanError
from sned.models.merging import MergeMode
from sned.models.view import View
from sned.plans.ops import DropLayers, DropSublayer, Keep, Merge, Op, Replace, SetWeight
from sned.plans.plan import Base, Plan, Size, Stage
from sned.plans.store import load_plan, save_plan
from sned.runtime import sweep as sweeps
from sned.runtime.objective import objective_of
from sned.runtime.sweep import Sweep
from sned.runtime.trials import Trials

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import nn

    MakeView = Callable[[str], View]

ALIKE = sorted(set(FAMILY_NAMES) - {"qwen3_moe"})
"""Families whose layers all have the same parameters; in the other, dense layers and experts take turns."""
MODES: tuple[MergeMode, ...] = get_args(MergeMode)
every_family = pytest.mark.parametrize("name", ALIKE)
every_mode = pytest.mark.parametrize("mode", MODES)
either_view = pytest.mark.parametrize(
    "make", [lambda name: View(make_model(name)), streamed_view], ids=["loaded", "streamed"]
)


def merged(mode: MergeMode = "keep_last", into: int = 1, layers: tuple[int, ...] = (2, 3)) -> Merge:
    return Merge(into=into, layers=layers, mode=mode)


def matrices_of(layer: nn.Module) -> dict[str, nn.Parameter]:
    """Every parameter of a layer that no norm owns."""
    norms = {name for name, module in layer.named_modules() if "Norm" in type(module).__name__}
    return {name: p for name, p in layer.named_parameters() if name.rpartition(".")[0] not in norms}


@torch.no_grad()
def by_hand(name: str, op: Merge) -> torch.Tensor:
    """The logits of a model whose base layer was given its values one by one, and the others cut out."""
    model = make_model(name)
    stack = layers_of(model)
    others = [matrices_of(stack[i]) for i in op.layers]
    for key, param in matrices_of(stack[op.into]).items():
        base, rest = param.double(), [other[key].double() for other in others]
        new = {
            "keep_first": lambda base=base: base,
            "keep_last": lambda rest=rest: rest[-1],
            "sum_diff": lambda base=base, rest=rest: base + sum(other - base for other in rest),
            "mean": lambda base=base, rest=rest: torch.stack([base, *rest]).mean(0),
        }[op.mode]()
        param.copy_(new)
    DropLayers(layers=op.layers).apply(View(model), {})
    return logits(model)


def after(view: View, *ops: Op, tensors: dict[str, torch.Tensor] | None = None) -> torch.Tensor:
    for op in ops:
        op.apply(view, tensors or {})
    return swept(view)


@every_mode
@every_family
def test_a_merge_does_what_its_formula_says(name: str, mode: MergeMode) -> None:
    for op in (merged(mode), merged(mode, 0, (1,)), merged(mode, 1, (2, 3, 4))):
        view = View(make_model(name))
        op.apply(view, {})
        assert list(view.layers) == [i for i in range(LAYERS) if i not in op.layers]
        want = by_hand(name, op)
        assert_same_logits(logits(view.model), want, exact=mode.startswith("keep"))
        assert_same_logits(decoded(view.model), want)


@every_family
def test_the_modes_are_four_different_things(name: str) -> None:
    found = [after(View(make_model(name)), merged(mode)) for mode in MODES]
    for i, one in enumerate(found):
        for other in found[:i]:
            assert_differ(one, other)


@every_family
def test_norms_stay_and_everything_else_is_that_of_the_last(name: str) -> None:
    view, model = View(make_model(name)), make_model(name)
    merged().apply(view, {})
    base, last = (dict(layers_of(model)[i].named_parameters()) for i in (1, 3))
    others = matrices_of(layers_of(model)[1]).keys()
    for key, param in view.layer(1).named_parameters():
        assert torch.equal(param, (last if key in others else base)[key]), key
    assert others < base.keys()


@either_view
@every_mode
@every_family
def test_a_trial_equals_the_op_and_leaves_nothing(name: str, mode: MergeMode, make: MakeView) -> None:
    view = make(name)
    dense = swept(view)
    with merged(mode).trial(view, {}):
        tried = swept(view)
    assert_differ(tried, dense)
    assert_same_logits(swept(view), dense, exact=True)
    assert view.active == list(range(LAYERS))
    assert_same_logits(after(view, merged(mode)), tried, exact=True)


@every_mode
@every_family
def test_a_streamed_model_merges_alike(name: str, mode: MergeMode) -> None:
    """Also what was merged or changed before, and what is changed later."""
    param = next(n for n in matrices_of(layers_of(make_model(name))[0]) if n.endswith("weight"))
    values = torch.randn(layers_of(make_model(name))[3].get_parameter(param).shape) * 0.2
    cuts = [Keep(axis=f"layers.{i}.attn.group", units=[0]) for i in (1, 2, 3)]
    ops = [SetWeight(layer=3, param=param, tensor="new"), merged(mode, 2, (3,)), *cuts[:2], merged(mode, 1, (2,))]
    streamed, loaded = streamed_view(name), View(make_model(name))
    tensors = {"new": values}
    assert_same_logits(after(streamed, *ops, tensors=tensors), after(loaded, *ops, tensors=tensors), exact=True)
    assert list(streamed.layers) == list(loaded.layers) == [0, 1, 4]
    assert_same_logits(after(streamed, DropLayers(layers=[0])), after(loaded, DropLayers(layers=[0])), exact=True)


@either_view
@every_mode
@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral"])
def test_a_fork_keeps_what_it_had(name: str, mode: MergeMode, make: MakeView) -> None:
    view = make(name)
    before, fork = swept(view), view.fork()
    values = {key: tensor.clone() for key, tensor in view.model.state_dict().items() if not tensor.is_meta}
    with merged(mode).trial(fork, {}):
        assert_same_logits(swept(view), before, exact=True)
    assert_differ(after(fork, merged(mode)), before)
    assert_same_logits(swept(view), before, exact=True)
    assert_same_logits(after(view.fork(), merged(mode)), swept(fork), exact=True)
    left = view.model.state_dict()
    assert all(torch.equal(left[key], tensor) for key, tensor in values.items())


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral"])
def test_the_last_layer_is_taken_over_without_a_copy(name: str) -> None:
    view = View(make_model(name))
    places = {key: p.data_ptr() for key, p in matrices_of(view.layer(3)).items()}
    merged().apply(view, {})
    assert {key: p.data_ptr() for key, p in matrices_of(view.layer(1)).items()} == places


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sums_are_rounded_once(dtype: torch.dtype) -> None:
    model = make_model("llama").to(dtype)
    weights = [layer.self_attn.q_proj.weight.double() for layer in layers_of(model)]
    view = View(model)
    merged("mean", 0, (1, 2, 3)).apply(view, {})
    mean = torch.stack(weights[:4]).mean(0).to(dtype)
    torch.testing.assert_close(view.layer(0).get_parameter("self_attn.q_proj.weight"), mean, rtol=0, atol=0)


@every_family
def test_trials_nest_like_ops(name: str) -> None:
    ops = [DropLayers(layers=[2]), merged("mean", 3, (4,)), merged("sum_diff", 1, (3,))]
    view, dense = View(make_model(name)), logits(make_model(name))
    with ops[0].trial(view, {}), ops[1].trial(view, {}), ops[2].trial(view, {}):
        tried = swept(view)
    assert_same_logits(swept(view), dense, exact=True)
    assert_same_logits(tried, after(view, *ops))
    assert list(view.layers) == [0, 1]


@either_view
@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral", "gemma3_text"])
def test_together_with_other_candidates_it_is_the_same_bit_for_bit(
    name: str, make: MakeView, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a merge reads a layer that another op of the candidate changes first."""
    monkeypatch.setattr(sweeps, "BATCH_TOKENS", 32)
    view, ids = make(name), calibration().ids
    last = merged("mean", 3, (4,))
    candidates: list[list[Op]] = [[], *([merged(mode)] for mode in MODES), [last], [DropLayers(layers=[2])]]
    candidates += [[last, merged("keep_last", 2, (3,))], [DropLayers(layers=[2]), last, merged("mean", 0, (1, 3))]]
    sweep = Sweep(view)
    trials = Trials(sweep, objective_of("perplexity", sweep, view.fork()), {}, lambda _text: None)
    together = dict(trials.measure(candidates, ids))
    for number, candidate in enumerate(candidates):
        assert torch.equal(together[number], trials.plain(candidate, ids)), candidate
    assert len({tuple(sums.flatten().tolist()) for sums in together.values()}) == len(candidates)


@pytest.mark.parametrize("name", DENSE_NAMES)
def test_layers_that_were_narrowed_alike_can_be_merged(name: str) -> None:
    cuts = [Keep(axis=f"layers.{i}.{kind}", units=[0]) for i in (1, 2) for kind in ("attn.group", "mlp.hidden")]
    op, view, wide = merged("mean", 1, (2,)), View(make_model(name)), View(make_model(name))
    want = after(wide, op, *cuts[:2])
    assert_same_logits(after(view, *cuts, op), want)


@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_a_plan_with_a_merge_survives_json(name: str, tmp_path: Path) -> None:
    view = View(make_model(name))
    base, dense = Base.of(view, ""), size(view)
    ops = (merged("sum_diff", 1, (2,)),)
    made = after(view, *ops)
    stage = Stage(method="x", options={}, ops=ops)
    save_plan(Plan(base=base, stages=(stage,), dense=dense, pruned=size(view)), tmp_path)
    again = View(make_model(name))
    load_plan(tmp_path).apply(again)
    assert_same_logits(swept(again), made, exact=True)


def size(view: View) -> Size:
    from sned.models.count import count

    return Size.of(count(view))


REFUSED: list[tuple[list[Op], Merge, str]] = [
    ([], merged(layers=(3, 4)), "layers 3-4 cannot be merged into layer 1: they do not follow each other after"),
    ([], merged(layers=(2, 4)), "do not follow each other after layer 1"),
    ([], merged(into=3, layers=(1, 2)), "do not follow each other after layer 3"),
    ([], merged(into=2, layers=(2, 3)), "do not follow each other after layer 2"),
    ([], merged(into=4, layers=(5,)), "layer 5 does not exist"),
    ([DropLayers(layers=[2])], merged(), "layer 2 was already removed"),
    ([DropLayers(layers=[1])], merged(), "layer 1 was already removed"),
    ([merged()], merged(layers=(2,)), "layer 2 was already removed"),
    ([Replace(layers=[2], tensor="map")], merged(), "layer 2 was replaced by a simple map"),
    ([Replace(layers=[1], tensor="map")], merged(), "layer 1 was replaced by a simple map"),
    ([DropSublayer(layer=3, which="attn")], merged(), "layer 3 has no attn any more"),
    ([DropSublayer(layer=1, which="mlp")], merged(), "layer 1 has no mlp any more"),
    ([Keep(axis="layers.2.attn.group", units=[0])], merged(), r"is \[.*\] in layer 1 and \[.*\] in layer 2"),
]


@either_view
@pytest.mark.parametrize("use", ["apply", "trial"])
@pytest.mark.parametrize(("before", "op", "message"), REFUSED)
@pytest.mark.parametrize("name", ["llama", "opt"])
def test_what_cannot_be_merged_is_refused(
    name: str, before: list[Op], op: Merge, message: str, use: str, make: MakeView
) -> None:
    view, tensors = make(name), {"map": torch.eye(32) * 1.3}
    left = after(view, *before, tensors=tensors)
    for mode in MODES:
        with pytest.raises(PlanError, match=message):
            _use(op.model_copy(update={"mode": mode}), use, view)
    assert_same_logits(swept(view), left, exact=True)


def _use(op: Op, use: str, view: View) -> Any:
    if use == "apply":
        return op.apply(view, {})
    with op.trial(view, {}):
        return None


def test_dense_layers_and_experts_do_not_mix() -> None:
    view = View(make_model("qwen3_moe"))
    dense = swept(view)
    with pytest.raises(PlanError, match=r"layers 1 cannot be merged into layer 0: layer \d alone has mlp\."):
        merged("mean", 0, (1,)).apply(view, {})
    assert_same_logits(swept(view), dense, exact=True)
