"""Search: all three ways choose the same, the cheaper ones for less, and a killed one goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from kit.planning import Kill, Messages, Steps, calibration, small_batches
from kit.planted import idle_layers, layers_of, quiet_layers, spoken_by
from kit.searching import BROKEN, block, blocks, context_of, cut, fresh, loss
from kit.tiny import FAMILY_NAMES, LAYERS, make_model, tokens

from sned.errors import NumericalError
from sned.models.view import View
from sned.runtime.objective import Perplexity
from sned.runtime.search import Search
from sned.runtime.sweep import Cost

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel

    from sned.data.tokens import Tokens
    from sned.runtime.context import Context
    from sned.runtime.search import Choice

every_way = pytest.mark.parametrize("way", ["exact", "racing", "exhaustive"])
MANY = tokens(32, 16, seed=3)
BLOCKS = 2 * LAYERS


@pytest.fixture(autouse=True)
def heats(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two windows in a heat of the tokens of the contracts."""
    small_batches(monkeypatch)


def search(ctx: Context, way: Any, **given: Any) -> Search:
    return Search(ctx, way, **given)


def chosen(name: str, way: str, *, seed: int = 0, drops: int = 2, **given: Any) -> tuple[list[Choice], int]:
    """Several steps in a row, each from the model as it is then, and what they cost in layer evaluations."""
    view, cost, candidates, choices = fresh(name, seed), Cost(), blocks(name), []
    ctx = context_of(view, given.pop("text", None), cost=cost)
    searching = search(ctx, way, **given)
    for _ in range(drops):
        choices.append(searching.best(candidates))
        for op in candidates.pop(choices[-1].key):
            op.apply(view, ctx.tensors)
            ctx.ops.append(op)
    return choices, cost.forward_layer_tokens


@pytest.mark.parametrize(
    ("name", "objective", "seed"),
    [(name, "perplexity", 0) for name in FAMILY_NAMES] + [(name, "kl", 1) for name in ("llama", "gemma2", "mixtral")],
)
def test_exact_is_exhaustive(name: str, seed: int, objective: str) -> None:
    (exact, less), (exhaustive, more) = (
        chosen(name, way, seed=seed, objective=objective) for way in ("exact", "exhaustive")
    )
    assert [(c.key, c.loss, c.increase, c.tokens) for c in exact] == [
        (c.key, c.loss, c.increase, c.tokens) for c in exhaustive
    ]
    assert less < more


def said(model: PreTrainedModel) -> Tokens:
    """Text by the model itself, on which it costs something to remove anything that does anything."""
    return spoken_by(model, windows=32, length=16)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "falcon", "mixtral"])
def test_a_clear_winner_is_found_for_less_and_less(name: str) -> None:
    """A candidate is given up once it has lost more than another in all, and in a race long before."""
    model = idle_layers(make_model(name), [3])
    text, costs = said(model), list[int]()
    for way in ("racing", "exact", "exhaustive"):
        ctx = context_of(View(model), text, cost=(cost := Cost()))
        best = search(ctx, way).best(blocks(name))
        assert (best.key, best.increase) == ("attn.3", 0)
        assert best.loss == pytest.approx(loss(model, text.ids[: best.tokens // 15]), abs=1e-5)
        costs.append(cost.forward_layer_tokens)
    assert costs[0] < costs[1] < costs[2]


def test_exact_stops_measuring_what_has_lost_already() -> None:
    """Three blocks that lose more in two windows than the idle one in all of them meet no third."""
    model = idle_layers(make_model("llama"), [3])
    model.get_output_embeddings().weight.data *= 8
    text = spoken_by(model, windows=8, length=16)
    candidates = {"idle": (block("attn", 3),), **{f"mlp.{i}": (block("mlp", i),) for i in (0, 1, 2)}}
    best = search(context_of(View(model), text, cost=(cost := Cost())), "exact").best(candidates)
    assert best.key == "idle"
    both, others = LAYERS + 2, 5 + 4 + 3  # layers that a window goes through for base and idle, and for the others
    bound = 2 * LAYERS  # by how much a bound falls short is found on two windows of the idle one
    assert cost.forward_layer_tokens == text.length * (8 * both + 2 * others + bound)


@pytest.mark.parametrize("falls_short_by", [0.0, 0.02, 50.0])
def test_exact_gives_up_by_bounds_who_is_clearly_behind(falls_short_by: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """With good bounds one candidate alone meets all windows; with poor ones nobody is judged by them, for the same."""
    model = idle_layers(make_model("llama"), [3])
    text, met = said(model), dict.fromkeys(("per_token", "least"), 0)
    candidates = {"idle": (block("attn", 3),), **{f"mlp.{i}": (block("mlp", i),) for i in (0, 1, 2)}}
    whole = Perplexity.per_token
    plain = search(context_of(View(model), text), "exhaustive").best(candidates)

    def measured(which: str, less: float) -> Any:
        def per_token(objective: Perplexity, ids: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
            met[which] += len(ids)
            return whole(objective, ids, hidden) - less

        return per_token

    monkeypatch.setattr(Perplexity, "per_token", measured("per_token", 0))
    monkeypatch.setattr(Perplexity, "least", measured("least", falls_short_by))
    best = search(context_of(View(model), text), "exact").best(candidates)
    assert (best.key, best.loss, best.increase) == (plain.key, plain.loss, plain.increase)
    n, heat = len(text), 2
    if falls_short_by < 1:
        assert met["per_token"] == 2 * n + 3 * heat
        assert met["least"] > 3 * n / 2
    else:
        assert met["per_token"] > 4 * n
        assert met["least"] == heat


@pytest.mark.parametrize("seed", range(4))
def test_racing_at_high_confidence_is_exhaustive(seed: int) -> None:
    """The first block goes; afterwards a race may overlook what has become better than it was."""
    text = said(make_model("llama", seed))
    racing, exhaustive = (
        chosen("llama", way, seed=seed, drops=1, confidence=0.9999, text=text)[0] for way in ("racing", "exhaustive")
    )
    assert [c.key for c in racing] == [c.key for c in exhaustive]


def test_a_race_ends_when_one_is_left() -> None:
    model = idle_layers(make_model("llama"), [3])
    text = said(model)
    loud = {f"mlp.{i}": (block("mlp", i),) for i in (0, 1)}
    best = search(context_of(View(model), text), "racing", confidence=0.99).best({"idle": (block("attn", 3),)} | loud)
    assert best.key == "idle"
    assert best.tokens < text.n_tokens / 2


@every_way
def test_ties_go_to_the_first(way: str) -> None:
    model = idle_layers(make_model("llama"), [1, 3])
    view, text, candidates = View(model), said(model), blocks("llama")
    assert search(context_of(view, text), way).best(candidates).key == "attn.1"
    backwards = dict(reversed(candidates.items()))
    assert search(context_of(view, text), way).best(backwards).key == "mlp.3"


@every_way
@pytest.mark.parametrize("name", ["llama", "falcon/serial", "qwen3_moe"])
def test_a_choice_states_what_the_cut_model_loses(name: str, way: str) -> None:
    candidates, ids = blocks(name), calibration().ids
    best = search(context_of(fresh(name)), way).best(candidates)
    met = ids[: best.tokens // (ids.shape[1] - 1)]
    after = loss(cut(make_model(name), candidates[best.key]).model, met)
    assert best.loss == pytest.approx(after, abs=1e-5)
    assert best.increase == pytest.approx(after - loss(make_model(name), met), abs=1e-5)
    assert best.measured == len(candidates)


@every_way
def test_savings_weigh_what_is_lost(way: str) -> None:
    """The increase per thing saved decides, and where savings are alike, the increase alone."""
    candidates, ids = blocks("llama"), calibration().ids
    base = loss(make_model("llama"), ids)
    increase = {k: loss(cut(make_model("llama"), ops).model, ids) - base for k, ops in candidates.items()}
    for seed in range(4):
        draws = torch.rand(len(candidates), generator=torch.Generator().manual_seed(seed)).tolist()
        savings = {k: 0.05 + 0.95 * draw for k, draw in zip(candidates, draws, strict=True)}
        want = min(candidates, key=lambda k: increase[k] / savings[k])
        best = search(context_of(fresh("llama")), way, confidence=0.9999).best(candidates, savings)
        assert best.key == want
        assert best.increase == pytest.approx(increase[want], abs=1e-5) or way == "racing"
    alike = search(context_of(fresh("llama")), way).best(candidates, dict.fromkeys(candidates, 0.3))
    assert alike == search(context_of(fresh("llama")), way).best(candidates)


@every_way
@pytest.mark.parametrize("objective", ["perplexity", "kl"])
def test_a_broken_candidate_never_wins_and_is_told(way: str, objective: Any) -> None:
    messages, candidates = Messages(), {"broken": (BROKEN,), "good": (block("attn", 1),), "worse": (BROKEN,)}
    best = search(context_of(fresh("llama"), progress=messages), way, objective=objective).best(candidates)
    assert best.key == "good"
    assert any("layer 2 returns NaN or infinity" in warning for warning in messages.warnings)


@every_way
def test_no_candidate_left_is_an_error(way: str) -> None:
    with pytest.raises(NumericalError, match="no candidate gives a finite loss: layer 2 returns NaN") as caught:
        search(context_of(fresh("llama")), way).best({"a": (BROKEN,), "b": (BROKEN, block("attn", 1))})
    assert caught.value.hint == "try --dtype fp32"


@every_way
def test_a_model_that_is_broken_itself_is_an_error_that_names_the_layer(way: str) -> None:
    model = make_model("llama")
    layers_of(model)[3].mlp.down_proj.weight.data[0, 0] = torch.nan
    with pytest.raises(NumericalError, match="the model itself gives no finite loss: layer 3 returns NaN"):
        search(context_of(View(model)), way).best(blocks("llama"))


class TestLaziness:
    """A race does not look again at what was hopeless, unless hope returns."""

    IDLE = (block("attn", 3),)

    @staticmethod
    def race() -> tuple[Context, Search]:
        """A model in which layer 3 does nothing, and all else something: no divergence is as little as none."""
        model = idle_layers(make_model("llama"), [3])
        ctx = context_of(View(model), said(model))
        return ctx, search(ctx, "racing", objective="kl", confidence=0.95)

    def test_the_hopeless_are_not_measured_again(self) -> None:
        candidates, (ctx, searching) = blocks("llama"), self.race()
        first = searching.best(candidates)
        assert (first.key, first.measured) == ("attn.3", BLOCKS)
        del candidates["attn.3"]
        second = searching.best(candidates)
        assert second.key == "mlp.3"
        assert second.measured <= BLOCKS / 3
        del candidates["mlp.3"]
        third = searching.best(candidates)
        assert third.key == search(ctx, "exhaustive", objective="kl").best(candidates).key
        assert third.measured < len(candidates)

    def test_they_are_once_they_may_win(self) -> None:
        """The cheapest of the step before has become dear, so that all others are looked at again."""
        others = {f"mlp.{i}": (block("mlp", i),) for i in (0, 1, 4)}
        ctx, searching = self.race()
        assert searching.best({"turncoat": self.IDLE, **others}).key == "turncoat"
        dear = tuple(op for ops in others.values() for op in ops)
        best = searching.best({"turncoat": dear, **others})
        assert best.measured == 4
        assert best.key == search(ctx, "exhaustive", objective="kl").best(others).key

    def test_new_candidates_are_always_measured(self) -> None:
        candidates, (_, searching) = blocks("llama"), self.race()
        searching.best({key: ops for key, ops in candidates.items() if key.startswith("mlp")})
        best = searching.best(candidates)
        assert best.key == "attn.3"
        assert best.measured >= LAYERS


def search_twice(way: str, folder: Path | None, cost: Cost, progress: Any) -> list[Choice]:
    """Two steps of a search, the second from the model that the first has left."""
    view = View(quiet_layers(make_model("llama"), [3]))
    ctx = context_of(view, calibration().take(4), folder=folder, cost=cost, progress=progress)
    searching, candidates = search(ctx, way), {k: v for k, v in blocks("llama").items() if k[-1] in "13"}
    first = searching.best(candidates)
    for op in candidates.pop(first.key):
        op.apply(view, ctx.tensors)
        ctx.ops.append(op)
    return [first, searching.best(candidates)]


@every_way
def test_killed_at_any_step_nothing_finished_is_computed_again(way: str, tmp_path: Path) -> None:
    steps, whole = Steps(), Cost()
    straight = search_twice(way, None, whole, steps)
    batch = (LAYERS + sum(LAYERS - i for i in (1, 3)) * 2) * 32 * (2 if way == "exhaustive" else 1)
    if way == "racing":
        batch *= 2  # heats grow
    for after in range(steps.total):
        before, rest, folder = Cost(), Cost(), tmp_path / str(after)
        with pytest.raises(KeyboardInterrupt):
            search_twice(way, folder, before, Kill(after))
        assert search_twice(way, folder, rest, Messages()) == straight
        assert before.forward_layer_tokens + rest.forward_layer_tokens <= whole.forward_layer_tokens + batch
        free = Cost()
        assert search_twice(way, folder, free, Messages()) == straight
        assert free.forward_layer_tokens == 0


@every_way
def test_a_run_killed_while_it_writes_goes_on_too(way: str, tmp_path: Path) -> None:
    """The last line of what was kept may be cut off anywhere."""
    straight = search_twice(way, tmp_path / "whole", Cost(), Messages())
    kept = (tmp_path / "whole" / "done" / "values.jsonl").read_text()
    for number, end in enumerate(range(0, len(kept), len(kept) // 8)):
        folder = tmp_path / str(number) / "done"
        folder.mkdir(parents=True)
        (folder / "values.jsonl").write_text(kept[:end])
        assert search_twice(way, folder.parent, Cost(), Messages()) == straight
        assert search_twice(way, folder.parent, cost := Cost(), Messages()) == straight
        assert cost.forward_layer_tokens == 0


def test_progress_ends_where_it_was_announced() -> None:
    """A bar that stops short, or runs over, would tell a user that something is amiss."""

    class Sums(Messages):
        def __init__(self) -> None:
            super().__init__()
            self.rows: list[list[int]] = []

        def task(self, label: str, total: int) -> Any:
            from contextlib import nullcontext

            self.rows.append([total, 0])
            return nullcontext(lambda units: self.rows[-1].__setitem__(1, self.rows[-1][1] + units))

    for way in ("exact", "exhaustive", "racing"):
        progress = Sums()
        search(context_of(fresh("llama"), MANY, progress=progress), way).best(blocks("llama"))
        ((announced, done),) = progress.rows
        assert done <= announced
        assert done == announced or way == "racing"


@pytest.mark.parametrize("windows", [1, 2, 3, 5, 6])
@every_way
def test_any_number_of_windows_will_do(way: str, windows: int) -> None:
    text = calibration().take(windows)
    best = search(context_of(fresh("llama"), text), way).best(blocks("llama"))
    reference = search(context_of(fresh("llama"), text), "exhaustive").best(blocks("llama"))
    assert best.key == reference.key
