"""The training loop: it gets there, keeps the best, and a killed one ends with the same bits."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
import torch
from kit.planning import Kill, Messages, Steps
from kit.planted import idle_layers
from kit.tiny import make_model, tokens

from sned.models.view import View
from sned.runtime import journal as journals
from sned.runtime.journal import Journal
from sned.runtime.sweep import Cost
from sned.training.loop import fit
from sned.training.masters import Masters, all_matrices, all_parameters
from sned.training.schedule import Schedule
from sned.training.tasks import ModelTask, SpanTask

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from sned.training.loop import Fit

TEXT, HELD_OUT = tokens(24, 16, seed=3), tokens(4, 16, seed=4)
SCHEDULE = Schedule(batch=4, epochs=4, lr=0.02, evaluations=4)


def pair() -> tuple[View, View]:
    """A dense model whose layer 2 does nothing, and a student whose layer 1 is off: what is to be learned exists."""
    student = View(make_model("llama"))
    for param in student.layer(1).parameters():
        param.data *= 0.8
    return View(idle_layers(make_model("llama"), [2])), student


def train(
    folder: Path | None = None, schedule: Schedule = SCHEDULE, progress: Messages | Kill | Steps | None = None
) -> tuple[Fit, Masters]:
    """Train layer 1 of one model to do what layers 1 and 2 of another do."""
    dense, student = pair()
    masters = Masters(student, all_parameters(student, [1]))
    task = SpanTask(masters, dense, student, (1, 3), [1], "nmse", Cost())
    journal = Journal(folder)
    return fit(task, TEXT, HELD_OUT, schedule, journal=journal, key=[], progress=progress or Messages()), masters


def test_it_learns_and_keeps_the_best() -> None:
    found, masters = train()
    first, best = found.held_out
    assert found.ended == "done"
    assert best < first / 2
    assert found.curve[-1][1] == TEXT.n_tokens * SCHEDULE.epochs
    assert found.best == min(found.curve, key=lambda row: row[3])[0]
    dense, student = pair()
    for name, value in masters.weights(1).items():
        student.layer(1).get_parameter(name).data = value.detach()
    again = Masters(student, all_parameters(student, [1]))
    (loss,) = SpanTask(again, dense, student, (1, 3), [1], "nmse", Cost()).losses([HELD_OUT.ids], None)
    assert float(loss.detach()) == pytest.approx(best, rel=1e-5)


def test_no_token_looks_ahead() -> None:
    """What is trained sees what it will see when it is used: a token changes nothing before it."""
    dense, student = View(make_model("llama")), View(make_model("llama"))
    task = SpanTask(Masters(student, all_parameters(student, [1])), dense, student, (1, 3), [1], "nmse", Cost())
    made: list[torch.Tensor] = []
    student.layer(1).register_forward_hook(lambda _module, _args, out: made.append(out))

    def seen(ids: torch.Tensor) -> torch.Tensor:
        list(task.losses([ids], None))
        return made[-1]

    ids = HELD_OUT.ids[:1]
    other = ids.clone()
    other[0, 9] += 1
    first, second = seen(ids), seen(other)
    assert torch.equal(first[:, :9], second[:, :9])
    assert not torch.equal(first[:, 9:], second[:, 9:])


@pytest.mark.parametrize("after", [0, 3, 11, 23])
def test_a_killed_training_ends_with_the_same_bits(after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journals, "SAVE_EVERY_SECONDS", 0.0)
    straight, masters = train()
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, progress=Kill(after))
    resumed, again = train(tmp_path)
    assert repr(resumed) == repr(straight)
    assert all(torch.equal(p, again.parameters[name]) for name, p in masters.parameters.items())
    once_more, kept = train(tmp_path, progress=(steps := Steps()))
    assert repr(once_more) == repr(straight)
    assert all(torch.equal(p, kept.parameters[name]) for name, p in masters.parameters.items())
    assert steps.total == 0


def test_what_diverges_stops_and_gives_back_the_best(tmp_path: Path) -> None:
    wild = Schedule(batch=4, epochs=4, lr=50.0, warmup=0.0, evaluations=8)
    found, masters = train(tmp_path, wild, messages := Messages())
    assert found.ended == "diverged"
    assert found.best == 0
    assert "diverged" in messages.warnings[0]
    _, view = pair()
    assert all(torch.equal(value, view.layer(1).get_parameter(name)) for name, value in masters.weights(1).items())
    again, _ = train(tmp_path, wild)
    assert repr(again) == repr(found)


def test_a_loss_that_is_not_finite_ends_it() -> None:
    class Broken:
        masters = Masters(View(make_model("llama")), {1: ["mlp.up_proj.weight"]})
        parameters = masters.parameters

        def losses(self, batches: Sequence[torch.Tensor], step: int | None) -> Iterator[torch.Tensor]:
            for _ in batches:
                value = self.masters.weights(1)["mlp.up_proj.weight"].square().mean()
                yield value * math.nan if step == 2 else value

    found = fit(Broken(), TEXT, HELD_OUT, SCHEDULE, journal=Journal(), key=[], progress=(messages := Messages()))
    assert found.ended == "diverged"
    assert found.best < 3
    assert all(torch.isfinite(p).all() for p in Broken.masters.parameters.values())
    assert messages.warnings


def test_it_ends_early_when_nothing_gets_better() -> None:
    class Done:
        masters = Masters(View(make_model("llama")), {1: ["mlp.up_proj.weight"]})
        parameters = masters.parameters

        def losses(self, batches: Sequence[torch.Tensor], step: int | None) -> Iterator[torch.Tensor]:
            start = make_model("llama").model.layers[1].mlp.up_proj.weight.detach()
            for _ in batches:
                yield 1 + (self.masters.weights(1)["mlp.up_proj.weight"] - start).square().mean()

    schedule = Schedule(batch=1, lr=1e-3, evaluations=24, patience=2)
    found = fit(Done(), TEXT, HELD_OUT, schedule, journal=Journal(), key=[], progress=Messages())
    assert (found.ended, found.best) == ("no better", 0)
    assert len(found.curve) == 3


@pytest.mark.parametrize("loss", ["kl", "ce", "states"])
def test_a_whole_model_learns_from_another(loss: str) -> None:
    teacher, student = View(make_model("llama")), View(make_model("llama", seed=1))
    masters = Masters(student, all_matrices(student, student.layers), rank=8)
    task = ModelTask(masters, student, loss, teacher, cost := Cost())  # type: ignore[arg-type]
    found = fit(task, TEXT, HELD_OUT, SCHEDULE, journal=Journal(), key=[], progress=Messages())
    first, best = found.held_out
    assert best < first
    assert cost.forward_layer_tokens > 0
