"""Many candidates at once: the same losses as one by one, bit for bit, for as little computing as can be."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from kit.planning import Messages, calibration
from kit.planted import streamed_view
from kit.searching import BROKEN, TENSORS, assorted, block, blocks, cut, fresh, loss
from kit.tiny import FAMILY_NAMES, LAYERS, make_model, tokens

from sned.plans.ops import DropLayers, Op, Replace
from sned.runtime import sweep as sweeps
from sned.runtime import trials as trials_module
from sned.runtime.objective import ObjectiveName, objective_of
from sned.runtime.sweep import Cost, Sweep
from sned.runtime.trials import Trials, n_segments, segment_tokens

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sned.models.view import View

every_family = pytest.mark.parametrize("name", FAMILY_NAMES)
either_view = pytest.mark.parametrize("make", [fresh, streamed_view], ids=["loaded", "streamed"])
IDS = calibration().ids


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three batches, of which a streamed model takes two at a time."""
    monkeypatch.setattr(sweeps, "BATCH_TOKENS", 32)
    monkeypatch.setattr(sweeps, "STREAM_CHUNK_TOKENS", 64)


def trials_on(
    view: View, objective: ObjectiveName = "perplexity", cost: Cost | None = None, messages: Messages | None = None
) -> Trials:
    sweep = Sweep(view, cost)
    return Trials(sweep, objective_of(objective, sweep, view.fork()), TENSORS, (messages or Messages()).warn)


def measured(trials: Trials, candidates: Sequence[Sequence[Op]], ids: torch.Tensor = IDS) -> list[torch.Tensor]:
    """The sums of all candidates in order, each given once."""
    found = list(trials.measure(candidates, ids))
    assert sorted(c for c, _ in found) == list(range(len(candidates)))
    return [sums for _, sums in sorted(found, key=lambda pair: pair[0])]


@either_view
@every_family
def test_together_is_the_same_as_one_by_one_bit_for_bit(name: str, make: Callable[[str], View]) -> None:
    candidates = assorted(name)
    together = measured(trials_on(make(name)), candidates)
    plain = trials_on(make(name))
    for candidate, sums in zip(candidates, together, strict=True):
        assert torch.equal(sums, plain.plain(candidate, IDS)), candidate
    assert torch.isfinite(torch.stack(together)).all()
    idle = name == "falcon/multi_query"  # keeping its only group changes nothing
    assert len({tuple(sums.flatten().tolist()) for sums in together}) == len(set(candidates)) - idle


@pytest.mark.parametrize("objective", ["perplexity", "kl"])
@pytest.mark.parametrize("held", [1, 3 * 32 * 32 * 4, 40 * 32 * 32 * 4])
@either_view
@pytest.mark.parametrize("name", ["llama", "gemma2", "falcon", "mixtral"])
def test_little_memory_changes_nothing(
    name: str, make: Callable[[str], View], held: int, objective: ObjectiveName, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One stream at a time; three; or all of them, but a batch at a time."""
    candidates = assorted(name)
    plenty = measured(trials_on(make(name), objective), candidates)
    monkeypatch.setattr(trials_module, "HELD_BYTES", held)
    little = measured(trials_on(make(name), objective), candidates)
    assert all(torch.equal(a, b) for a, b in zip(plenty, little, strict=True))


@pytest.mark.parametrize("length", [16, 129, 130, 300])
def test_losses_are_those_of_the_cut_model(length: int) -> None:
    """By surgery and the model's own forward pass; every segment holds its own part of a window."""
    ids = tokens(3, length, seed=5).ids[:, :256]
    candidates = list(blocks("llama").values())
    for ops, sums in zip(candidates, measured(trials_on(fresh("llama")), candidates, ids), strict=True):
        assert sums.shape == (3, n_segments(ids.shape[1]))
        predicted = ids.shape[1] - 1
        assert float(sums.sum()) / (3 * predicted) == pytest.approx(loss(cut(make_model("llama"), ops).model, ids))
    assert segment_tokens(ids.shape[1]).sum() == predicted


@pytest.mark.parametrize("length", [2, 128, 129, 130, 257, 258])
def test_segments_cover_a_window_once(length: int) -> None:
    counts = segment_tokens(length)
    assert len(counts) == n_segments(length)
    assert counts.sum() == length - 1
    assert (counts[:-1] == trials_module.SEGMENT_TOKENS).all()
    assert 0 < counts[-1] <= trials_module.SEGMENT_TOKENS


def least(candidates: Sequence[Sequence[Op]], view: View) -> int:
    """Layer evaluations if every layer meets each distinct past once."""
    total, pasts = 0, [()] * len(candidates)
    for index in range(LAYERS):
        pasts = [
            (*past, tuple(op for op in ops if index in op.touched)) for past, ops in zip(pasts, candidates, strict=True)
        ]
        total += sum(not any(_passes_over(op, index) for op in past[-1]) for past in set(pasts))
    return total


def _passes_over(op: Op, index: int) -> bool:
    return isinstance(op, DropLayers) or (isinstance(op, Replace) and index > op.layers[0])


@either_view
@every_family
def test_what_candidates_share_is_computed_once(name: str, make: Callable[[str], View]) -> None:
    view, candidates = make(name), assorted(name)
    measured(trials_on(view, cost=(cost := Cost())), candidates)
    assert cost.forward_layer_tokens == least(candidates, view) * IDS.numel()


@pytest.mark.parametrize("at_once", [1, 2, 3, 8])
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "mixtral"])
def test_few_at_once_cost_no_more_and_come_soon(name: str, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first are known when the layers of no more than those under way were run, and no layer runs twice."""
    monkeypatch.setattr(trials_module, "AT_ONCE", at_once)
    view, candidates, spent = fresh(name), assorted(name), dict[int, int]()
    trials, ids = trials_on(view, cost=(cost := Cost())), IDS[:2]
    for c, _ in trials.measure(candidates, ids):
        spent[c] = cost.forward_layer_tokens
    assert cost.forward_layer_tokens == least(candidates, view) * ids.numel()
    assert min(spent.values()) <= at_once * LAYERS * ids.numel()
    assert len(set(spent.values())) >= len(set(candidates)) // (2 * at_once)


def test_a_candidate_costs_the_layers_from_its_first_change_on() -> None:
    cost = Cost()
    measured(trials_on(fresh("llama"), cost=cost), [(), *blocks("llama").values()])
    assert cost.forward_layer_tokens == (LAYERS + 2 * sum(LAYERS - i for i in range(LAYERS))) * IDS.numel()


def test_a_streamed_layer_is_read_once_for_all_candidates_of_a_chunk() -> None:
    view = streamed_view("llama")
    measured(trials_on(view), assorted("llama"))
    reads = view._source.reads  # pyright: ignore
    assert max(reads) <= 2, "one chunk of batches, and what the view itself looks at when it is made"


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral"])
def test_a_broken_candidate_is_infinite_and_harms_no_other(name: str) -> None:
    messages, others = Messages(), assorted(name)
    candidates = [*others[:4], (BROKEN,), *others[4:], (BROKEN, block("attn", 4))]
    found = measured(trials_on(fresh(name), messages=messages), candidates)
    broken = [sums for ops, sums in zip(candidates, found, strict=True) if BROKEN in ops]
    assert all((sums == torch.inf).all() for sums in broken)
    assert all(sums.shape == found[0].shape for sums in broken)
    healthy = [sums for ops, sums in zip(candidates, found, strict=True) if BROKEN not in ops]
    assert all(map(torch.equal, healthy, measured(trials_on(fresh(name)), others)))
    assert messages.warnings
    assert set(messages.warnings) == {"a candidate was dropped: layer 2 returns NaN or infinity"}
    assert (trials_on(fresh(name)).plain([BROKEN], IDS) == torch.inf).all()


def test_broken_logits_are_told_too() -> None:
    model, messages = make_model("llama"), Messages()
    model.get_output_embeddings().weight.data[7] = torch.inf
    trials = trials_on(cut(model, []), messages=messages)
    assert (measured(trials, [()])[0] == torch.inf).all()
    assert trials.reason == "its logits hold NaN or infinity"
    assert trials.reason in messages.warnings[0]


@every_family
def test_nothing_of_a_trial_stays(name: str) -> None:
    view, candidates = fresh(name), [*assorted(name), (BROKEN,)]
    trials = trials_on(view)
    before = trials.plain((), IDS)
    measured(trials, candidates)
    assert view.active == list(range(LAYERS))
    assert torch.equal(trials.plain((), IDS), before)
