"""Healing in several processes, as a launcher starts them: the same model as in one, written once."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from kit.compare import assert_same_logits, logits
from kit.tiny import save_model_folder

import sned as package
from sned.cli.main import main
from sned.runtime.crew import ALONE, Crew

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from .conftest import Outcome

TEXT = ["--calib", "random", "--calib-tokens", "4096", "--seq-len", "512", "--eval", "random", "--eval-tokens", "1024"]
HEAL = ["--train", "full", "--lr", "0.002", "--batch", "6", "--epochs", "2"]
"""Three batches in a step, which two processes share unevenly."""


def test_two_processes_train_the_model_that_one_does(tmp_path: Path) -> None:
    model = save_model_folder(tmp_path / "dense", "llama")
    assert (
        main(["prune", str(model), "-m", "deepest", "--layers", "2", *TEXT, "-o", str(tmp_path / "cut"), "--quiet"])
        == 0
    )
    assert main(["heal", str(tmp_path / "cut"), *TEXT, *HEAL, "-o", str(tmp_path / "alone"), "--quiet"]) == 0
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "sned"]
    together = [*launch, "heal", str(tmp_path / "cut"), *TEXT, *HEAL, "-o", str(tmp_path / "together"), "--json"]
    done = subprocess.run(together, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    (mine,) = json.loads(done.stdout)["training"]  # one document: one process alone speaks
    (theirs,) = json.loads((tmp_path / "alone" / "sned" / "report.json").read_text())["training"]
    assert [row["step"] for row in mine["curve"]] == [row["step"] for row in theirs["curve"]]
    for key in ("loss", "held_out"):
        ours, other = ([row[key] for row in run["curve"] if row[key] is not None] for run in (mine, theirs))
        assert ours == pytest.approx(other, rel=1e-4)
    assert theirs["curve"][-1]["held_out"] < theirs["curve"][0]["held_out"]
    ids = package.Tokens.from_source("random", None, tokens=64, seq_len=16, vocab_size=128).ids
    healed = [package.load(str(tmp_path / name)).view.model for name in ("alone", "together", "cut")]
    assert_same_logits(logits(healed[1], ids), logits(healed[0], ids))
    assert (logits(healed[0], ids) - logits(healed[2], ids)).abs().max() > 1e-2
    assert not [path.name for path in tmp_path.iterdir() if path.name.endswith(".work")]


@pytest.mark.parametrize("command", [["prune", "x", "-m", "uidl"], ["plan", "x", "-m", "displlm"], ["methods"]])
def test_other_commands_refuse_to_run_in_several(
    sned: Callable[..., Outcome], command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = sned(*command)
    assert done.code == 2
    assert f"sned {command[0]} runs in one process" in done.err


def test_every_batch_is_somebodys() -> None:
    for n in range(7):
        for size in (1, 2, 3, 5):
            shares = [Crew(rank, size).share(list(range(n))) for rank in range(size)]
            assert sorted(item for share in shares for item in share) == list(range(n))
            assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert ALONE.heed({"a": 1}) == {"a": 1}
