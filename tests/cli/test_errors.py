"""Every way to fail ends in one message on stderr and the documented exit code."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

import pytest
import torch

from sned import errors

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from .conftest import Outcome

PRUNE = ["prune", "demo", "-m", "uidl", "--layers", "2", "-o", "out"]
BLOCKS = ["prune", "demo", "-m", "blockpruner", "-o", "out"]
CODES = {
    errors.ConfigError: 2,
    errors.UnsupportedModelError: 3,
    errors.PlanError: 4,
    errors.BudgetError: 5,
    errors.DataError: 6,
    errors.NumericalError: 7,
    errors.CheckpointError: 8,
    errors.VerificationError: 10,
}
JOBS = {
    "prune": ("sned.jobs.prune.prune", PRUNE),
    "plan": ("sned.jobs.plan.plan", ["plan", *PRUNE[1:]]),
    "apply": ("sned.jobs.apply.apply", ["apply", "demo", "plan", "-o", "out"]),
    "inspect": ("sned.jobs.inspect.inspect", ["inspect", "demo"]),
    "scan": ("sned.jobs.scan.scan", ["scan", "demo"]),
    "eval": ("sned.jobs.evaluate.evaluate", ["eval", "demo"]),
    "stability": ("sned.jobs.stability.compare_logs", ["stability", "base.jsonl", "pruned.jsonl"]),
    "bench": ("sned.jobs.bench.bench", ["bench", "demo"]),
    "demo": ("sned.jobs.demo.demo", ["demo"]),
    "report": ("sned.jobs.report.rewrite", ["report", "out"]),
    "import": ("sned.jobs.published.import_plan", ["import", "demo", "theirs.json", "-o", "out"]),
    "pack": ("sned.jobs.pack.pack", ["pack", "out", "-o", "packed"]),
    "unpack": ("sned.jobs.pack.unpack", ["unpack", "packed", "-o", "out"]),
    "dry run": ("sned.jobs.forecast.dry_run", [*PRUNE, "--dry-run"]),
}


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, BaseException], None]:
    """Let a job fail."""

    def let(job: str, error: BaseException) -> None:
        def fail(*_: Any, **__: Any) -> None:
            raise error

        monkeypatch.setattr(job, fail)

    return let


@pytest.mark.parametrize("kind", CODES)
def test_each_error_has_its_code(
    sned: Callable[..., Outcome], failing: Callable[[str, BaseException], None], kind: type[errors.SnedError]
) -> None:
    failing("sned.jobs.prune.prune", kind("layer 7 [is] odd", hint="do this"))
    got = sned(*PRUNE)
    assert got.code == CODES[kind]
    assert got.out == ""
    assert got.err == "error: layer 7 [is] odd\n  hint: do this\n"


def test_a_missing_package_names_the_remedy(
    sned: Callable[..., Outcome], failing: Callable[[str, BaseException], None]
) -> None:
    failing("sned.jobs.prune.prune", errors.MissingExtraError("gguf", "gguf", purpose="reading GGUF"))
    got = sned(*PRUNE)
    assert got.code == 9
    assert "pip install 'sned[gguf]'" in got.err


@pytest.mark.parametrize("name", JOBS)
def test_every_command_reports_what_its_job_raises(
    sned: Callable[..., Outcome], failing: Callable[[str, BaseException], None], name: str
) -> None:
    job, args = JOBS[name]
    failing(job, errors.CheckpointError("no weights"))
    got = sned(*args)
    assert (got.code, got.out) == (8, "")
    assert "error: no weights" in got.err
    assert "Traceback" not in got.err


def test_a_traceback_comes_only_when_asked_for(
    sned: Callable[..., Outcome], failing: Callable[[str, BaseException], None]
) -> None:
    failing("sned.jobs.prune.prune", errors.PlanError("bad"))
    assert "Traceback" in sned(*PRUNE, "-v").err


def test_a_bug_says_that_it_is_one(sned: Callable[..., Outcome], failing: Callable[[str, BaseException], None]) -> None:
    failing("sned.jobs.prune.prune", KeyError("layers"))
    got = sned(*PRUNE)
    assert (got.code, got.out) == (1, "")
    assert "KeyError: 'layers'" in got.err
    assert "bug in sned" in got.err
    assert "Traceback" not in got.err


@pytest.mark.parametrize(
    ("command", "hint"), [(PRUNE, "--no-resume"), (["demo"], "goes on"), (["scan", "demo"], "again")]
)
def test_an_interrupt_says_how_to_go_on(
    sned: Callable[..., Outcome], failing: Callable[[str, BaseException], None], command: list[str], hint: str
) -> None:
    name = next(name for name, (_, args) in JOBS.items() if args[0] == command[0])
    failing(JOBS[name][0], KeyboardInterrupt())
    got = sned(*command)
    assert (got.code, got.out) == (130, "")
    assert hint in got.err
    assert "Traceback" not in got.err


def test_a_full_disk_is_not_a_bug(sned: Callable[..., Outcome], failing: Callable[[str, BaseException], None]) -> None:
    failing("sned.jobs.prune.prune", OSError(errno.ENOSPC, "No space left on device"))
    got = sned(*PRUNE)
    assert got.code == 8
    assert "disk is full" in got.err
    assert "bug" not in got.err


def _torch_out_of_memory() -> BaseException:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    return caught.value


@pytest.mark.parametrize("error", [MemoryError, _torch_out_of_memory])
def test_too_little_memory_is_not_a_bug(
    sned: Callable[..., Outcome],
    failing: Callable[[str, BaseException], None],
    error: Callable[[], BaseException],
) -> None:
    failing("sned.jobs.prune.prune", error())
    got = sned(*PRUNE)
    assert got.code == 1
    assert "out of memory" in got.err
    assert "--stream on" in got.err
    assert "bug" not in got.err


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["prun"], 2, "Did you mean"),
        (["prune"], 2, "MODEL"),
        (["prune", "demo", "-m", "uidl", "--layers", "2"], 2, "--out"),
        ([*PRUNE[:4], "-o", "out"], 2, "--layers N or --remove 25%"),
        ([*PRUNE, "--remove", "25%"], 2, "--layers and --remove are given together"),
        ([*PRUNE, "--blocks", "3"], 2, "--layers and --blocks are given together"),
        ([*PRUNE[:4], "--blocks", "3", "-o", "out"], 2, "uidl takes no budget of blocks"),
        ([*BLOCKS, "--layers", "3"], 2, "use --blocks N or --remove 25%"),
        ([*BLOCKS, "--blocks", "0"], 5, "--blocks 0 removes nothing"),
        ([*BLOCKS, "--blocks", "3", "--confidence", "2"], 2, "confidence"),
        ([*PRUNE[:4], "--remove", "25", "-o", "out"], 2, "25%"),
        ([*PRUNE[:4], "--remove", "most", "-o", "out"], 2, "not a share"),
        ([*PRUNE[:4], "--layers", "0", "-o", "out"], 5, "removes nothing"),
        ([*PRUNE[:4], "--layers", "two", "-o", "out"], 2, "--layers"),
        ([*PRUNE, "--remove-of", "body"], 2, "--remove-of"),
        ([*PRUNE, "--calib", "c4"], 2, "builtin:c4"),
        ([*PRUNE, "--eval", "wiki"], 2, "builtin:wiki"),
        ([*PRUNE, "--calib", "file:not/there.txt"], 6, "not/there.txt"),
        ([*PRUNE, "--seq-len", "1"], 2, "--seq-len 1"),
        ([*PRUNE, "--calib-tokens", "0"], 2, "--calib-tokens 0"),
        ([*PRUNE, "--dtype", "int8"], 2, "--dtype"),
        ([*PRUNE, "--seed", "-1"], 2, "--seed"),
        (["prune", "demo", "-m", "uidle", "--layers", "2", "-o", "out"], 2, "did you mean uidl"),
        (["methods", "uidle"], 2, "did you mean uidl"),
        (["show", "nowhere"], 4, "no plan at nowhere"),
        (["show", "nowhere", "--as", "multipruner"], 4, "no plan at nowhere"),
        (["show", "nowhere", "--base", "demo"], 2, "--base is for --as multipruner"),
        (["import", "demo", "nowhere.json", "-o", "out"], 4, "nowhere.json is not readable JSON"),
        (["report", "nowhere"], 8, "nowhere"),
        (["stability", "nowhere.jsonl", "pruned.jsonl"], 6, "nowhere.jsonl does not exist"),
        (["stability", "a.jsonl", "b.jsonl", "--ddof", "2"], 2, "--ddof"),
    ],
)
def test_bad_input_is_refused_before_a_model_is_loaded(
    sned: Callable[..., Outcome],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    args: list[str],
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sned.jobs.session.load", lambda *_, **__: pytest.fail("a model was loaded"))
    got = sned(*args)
    assert got.code == code
    assert got.out == ""
    assert message in got.err
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_not_replaced(
    sned: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("sned.jobs.session.load", lambda *_, **__: pytest.fail("a model was loaded"))
    (tmp_path / "mine.txt").write_text("keep")
    got = sned(*PRUNE[:-1], tmp_path)
    assert got.code == 8
    assert "--overwrite" in got.err
    assert (tmp_path / "mine.txt").read_text() == "keep"
