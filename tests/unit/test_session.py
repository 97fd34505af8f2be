"""Unfinished work: kept on failure, gone on success, and never taken for another job's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from kit.planning import Messages
from kit.tiny import make_model, save_model_folder

from sned.checkpoint.model import load
from sned.errors import BudgetError, CheckpointError, ConfigError, NumericalError
from sned.jobs.request import LoadRequest, PlanRequest, TextRequest
from sned.jobs.session import Recorder, Session, open_model, read_text, runs_slowly, spare_source, unfinished_work
from sned.models.view import View
from sned.plans.budget import Budget


@pytest.fixture
def request_(tmp_path: Path) -> PlanRequest:
    return PlanRequest(LoadRequest("demo"), "uidl", Budget(layers=1), tmp_path / "out")


def leave_work(request: PlanRequest, facts: dict) -> None:
    def interrupted() -> None:
        with unfinished_work(request.out, facts, resume=request.resume) as journal:
            journal.recall("loss", ["a"], lambda: 1.5)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()


def never() -> float:
    raise AssertionError("finished work was done again")


def test_the_same_job_goes_on(request_: PlanRequest) -> None:
    leave_work(request_, {"seed": 1})
    with unfinished_work(request_.out, {"seed": 1}, resume=True) as journal:
        assert journal.recall("loss", ["a"], never) == 1.5
    assert list(request_.out.parent.iterdir()) == []


def test_another_job_is_refused_with_what_differs(request_: PlanRequest) -> None:
    leave_work(request_, {"seed": 1, "dtype": "bf16"})
    with (
        pytest.raises(ConfigError, match="seed: 1 then, 2 now") as caught,
        unfinished_work(request_.out, {"seed": 2, "dtype": "bf16"}, resume=True),
    ):
        pass
    assert "dtype" not in str(caught.value)
    assert "--no-resume" in str(caught.value)


def test_starting_over_forgets(request_: PlanRequest) -> None:
    leave_work(request_, {"seed": 1})
    with unfinished_work(request_.out, {"seed": 2}, resume=False) as journal:
        assert journal.recall("loss", ["a"], lambda: 2.5) == 2.5


@pytest.mark.parametrize(
    ("error", "kept"),
    [(BudgetError, False), (ConfigError, False), (NumericalError, False), (CheckpointError, True), (OSError, True)],
)
def test_work_is_kept_unless_the_same_job_would_fail_again(
    request_: PlanRequest, error: type[Exception], kept: bool
) -> None:
    def job() -> None:
        with unfinished_work(request_.out, {"seed": 1}, resume=True) as journal:
            journal.recall("loss", ["a"], lambda: 1.5)
            raise error("it cannot be")

    with pytest.raises(error, match="cannot be"):
        job()
    assert bool(list(request_.out.parent.iterdir())) is kept


def test_what_an_earlier_run_left_outlives_a_refusal(request_: PlanRequest) -> None:
    """Such as that memory is short just now."""
    leave_work(request_, {"seed": 1})
    with pytest.raises(ConfigError, match="short"), unfinished_work(request_.out, {"seed": 1}, resume=True):
        raise ConfigError("memory is short")
    with unfinished_work(request_.out, {"seed": 1}, resume=True) as journal:
        assert journal.recall("loss", ["a"], never) == 1.5


def test_a_model_is_never_replaced_by_its_own_result(tmp_path: Path) -> None:
    model = load(str(save_model_folder(tmp_path / "model", "llama")))
    with pytest.raises(CheckpointError, match="is the model itself"):
        spare_source(model, tmp_path / "x" / ".." / "model")


def test_warnings_are_told_once_and_kept() -> None:
    heard = Messages()
    recorder = Recorder(heard)
    for _ in range(2):
        recorder.warn("few tokens")
    assert heard.warnings == recorder.warnings == ["few tokens"]


@pytest.mark.parametrize(("asked", "got"), [(None, 48), (32, 32)])
def test_text_is_as_long_as_asked_or_as_usual(tmp_path: Path, asked: int | None, got: int) -> None:
    model = load(str(save_model_folder(tmp_path / "model", "llama")))
    assert read_text(model, TextRequest(("random",), asked, seq_len=16), 48, seed=0).n_tokens == got


@pytest.mark.parametrize(
    ("dtype", "machine", "capability", "slow"),
    [
        (torch.bfloat16, "x86_64", "AVX2", True),
        (torch.float16, "AMD64", "DEFAULT", True),
        (torch.float32, "x86_64", "AVX2", False),
        (torch.bfloat16, "x86_64", "AVX512", False),
        (torch.bfloat16, "aarch64", "DEFAULT", False),
        (torch.bfloat16, "arm64", "DEFAULT", False),
    ],
)
def test_half_precision_is_slow_on_some_cpus(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, machine: str, capability: str, slow: bool
) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: capability)
    assert runs_slowly(View(make_model("llama").to(dtype))) is slow


def test_who_will_run_slowly_is_told_the_remedy_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sned.jobs.session.runs_slowly", lambda _: True)
    heard, request = Messages(), LoadRequest(str(save_model_folder(tmp_path / "model", "llama")), dtype="bf16")
    session = Session(Recorder(heard))
    open_model(request, session, to_run=False)
    assert heard.warnings == []
    for _ in range(2):
        open_model(request, session)
    assert len(heard.warnings) == 1
    assert "bfloat16" in heard.warnings[0]
    assert "--dtype fp32" in heard.warnings[0]
