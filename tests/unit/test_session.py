"""Unfinished work: kept on failure, gone on success, and never taken for another job's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from kit.planning import Messages
from kit.tiny import save_model_folder

from sned.checkpoint.model import load
from sned.errors import CheckpointError, ConfigError
from sned.jobs.request import LoadRequest, PlanRequest
from sned.jobs.session import Recorder, spare_source, unfinished_work
from sned.plans.budget import Budget


@pytest.fixture
def request_(tmp_path: Path) -> PlanRequest:
    return PlanRequest(LoadRequest("demo"), "uidl", Budget(layers=1), tmp_path / "out")


def leave_work(request: PlanRequest, facts: dict) -> None:
    def interrupted() -> None:
        with unfinished_work(request, facts) as journal:
            journal.recall("loss", ["a"], lambda: 1.5)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()


def never() -> float:
    raise AssertionError("finished work was done again")


def test_the_same_job_goes_on(request_: PlanRequest) -> None:
    leave_work(request_, {"seed": 1})
    with unfinished_work(request_, {"seed": 1}) as journal:
        assert journal.recall("loss", ["a"], never) == 1.5
    assert list(request_.out.parent.iterdir()) == []


def test_another_job_is_refused_with_what_differs(request_: PlanRequest) -> None:
    leave_work(request_, {"seed": 1, "dtype": "bf16"})
    with (
        pytest.raises(ConfigError, match="seed: 1 then, 2 now") as caught,
        unfinished_work(request_, {"seed": 2, "dtype": "bf16"}),
    ):
        pass
    assert "dtype" not in str(caught.value)
    assert "--no-resume" in str(caught.value)


def test_starting_over_forgets(request_: PlanRequest) -> None:
    leave_work(request_, {"seed": 1})
    with unfinished_work(replace(request_, resume=False), {"seed": 2}) as journal:
        assert journal.recall("loss", ["a"], lambda: 2.5) == 2.5


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
