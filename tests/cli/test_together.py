"""Training in several processes, as a launcher starts them: the same model as in one, written once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from kit.compare import assert_same_logits, logits
from kit.tiny import save_model_folder

import sned as package
from sned.cli.main import main
from sned.errors import ConfigError
from sned.jobs.plan import plan
from sned.jobs.request import LoadRequest, PlanRequest
from sned.plans.budget import Budget
from sned.plans.store import load_plan
from sned.progress import SILENT
from sned.runtime.crew import ALONE, Crew

if TYPE_CHECKING:
    from collections.abc import Callable

    from .conftest import Outcome

TEXT = ["--calib", "random", "--calib-tokens", "4096", "--seq-len", "512", "--eval", "random", "--eval-tokens", "1024"]
HEAL = ["--train", "full", "--lr", "0.002", "--batch", "6", "--epochs", "2"]
"""Three batches in a step, which two processes share unevenly."""
TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def together(*command: str) -> Any:
    """Carry out a command in two processes, of which one alone speaks: what it prints is one document."""
    done = subprocess.run(
        [*TWO, "-m", "sned", *command, "--json"], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_two_processes_prune_and_heal_as_one_does(tmp_path: Path) -> None:
    """Gates that both train, then weights, where both hold the models together."""
    model = str(save_model_folder(tmp_path / "dense", "llama"))
    learn = ["-m", "displlm", "--remove", "20%", "--epochs", "2", "--batch", "4", "--rate", "0.02", *TEXT[:6]]
    together("prune", model, *learn, *TEXT[6:], "--no-speed", "-o", str(tmp_path / "cut"))
    assert main(["plan", model, *learn, "-o", str(tmp_path / "plan"), "--quiet"]) == 0
    assert load_plan(tmp_path / "cut").ops == load_plan(tmp_path / "plan").ops
    assert main(["heal", str(tmp_path / "cut"), *TEXT, *HEAL, "-o", str(tmp_path / "alone"), "--quiet"]) == 0
    told = together("heal", str(tmp_path / "cut"), *TEXT, *HEAL, "-o", str(tmp_path / "together"), "--shard")
    (mine,) = told["training"]
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


SHARED = """
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from kit.planning import Kill, Messages, Steps, plan_on
from kit.planted import idle_layers, streamed_view
from kit.tiny import make_model, tokens
from sned.models.view import View
from sned.runtime import journal as journals, sweep
from sned.runtime.crew import ALONE, joined
from sned.runtime.journal import Journal
from sned.runtime.shares import SharedSource, shared
from sned.runtime.sweep import Cost
from sned.training.loop import fit
from sned.training.masters import Masters, all_matrices, all_parameters
from sned.training.schedule import Schedule
from sned.training.tasks import ModelTask

journals.SAVE_EVERY_SECONDS, sweep.BATCH_TOKENS = 0.0, 64
place, text, held_out = Path(sys.argv[1]), tokens(12, 32, seed=3), tokens(2, 32, seed=4)

def train(crew, rank, shares, folder=None, progress=None):
    if shares:
        view, teacher = streamed_view("llama"), streamed_view("llama", seed=1)
    else:
        view, teacher = View(make_model("llama").bfloat16()), View(make_model("llama", seed=1).bfloat16())
    with shared(crew, view) if shares else nullcontext(), shared(crew, teacher) if shares else nullcontext():
        names = (all_matrices if rank else all_parameters)(view, [1, 3])
        masters = Masters(view, names, rank=rank, crew=crew)
        task = ModelTask(masters, view, "kl", teacher, Cost())
        schedule = Schedule(batch=6, lr=0.01, evaluations=2)  # three batches in a step, two processes
        journal = Journal(place / folder) if crew.leads and folder else Journal()
        found = fit(task, text, held_out, schedule, journal=journal, key=[], progress=progress or Messages(), crew=crew)
        values = {(i, name): value.detach() for i in masters.layers for name, value in masters.weights(i).items()}
        if shares and crew.size > 1:
            assert view.source.held == teacher.source.held  # three of five layers, or two
            every = sum(p.numel() * 4 for layer in view.layers.values() for p in layer.parameters())
            assert abs(view.source.held / every - (3 - crew.rank) / 5) < 0.01, view.source.held
    return found, values, masters.parameters.values()

with joined() as crew:
    for rank, shares in ((None, False), (4, False), (None, True), (4, True)):
        straight, values, params = train(crew, rank, shares)
        assert straight.held_out[1] < straight.held_out[0], straight
        alone, _, _ = train(ALONE, rank, shares)
        for row, other in zip(straight.curve, alone.curve, strict=True):
            assert row[3] == pytest.approx(other[3], rel=1e-4 if shares else 1e-2), (rank, shares)
        folder = f"{rank}-{shares}"
        try:
            train(crew, rank, shares, folder, Kill(1))
            raise SystemExit("it was not killed")
        except KeyboardInterrupt:
            pass
        resumed, again, _ = train(crew, rank, shares, folder)
        assert repr(resumed) == repr(straight)
        for where, value in values.items():
            assert torch.equal(value, again[where])
            theirs = value.clone()
            crew.send(theirs)
            assert torch.equal(value, theirs), where
        own = sum(p.numel() for p in params if p.dtype == torch.float32 and not p.is_meta)
        total = sum(p.numel() for p in params)
        largest = max(p.numel() for p in params)
        assert own == total if rank else abs(own - total / 2) <= largest / 2, (own, total)
        assert any(p.is_meta for p in params) is (shares and not rank)

    for method, given in (("displlm", {"batch": 6, "epochs": 2, "rate": 0.02}), ("streamline", {"batch": 6})):
        given |= {"tokens": text, **({"layers": 2} if method == "streamline" else {"remove": 0.2})}
        def planned(crew, **more):
            return plan_on(View(make_model("llama")), method, crew=crew, **given, **more)
        straight, alone = planned(crew), planned(ALONE)
        if method == "displlm":
            assert straight.ops == alone.ops
        kept = "structure" if method == "displlm" else "training"
        found, other = (made.stages[0].scores[kept] for made in (straight, alone))
        for row, beside in zip(found["curve"], other["curve"], strict=True):
            assert row[3] == pytest.approx(beside[3], rel=1e-4)
        folder, steps = place / method if crew.leads else None, Steps()
        planned(crew, progress=steps)
        with pytest.raises(KeyboardInterrupt):
            planned(crew, folder=folder, progress=Kill(steps.total - 3))
        digests = [straight.digest, planned(crew, folder=folder).digest]
        assert digests == [crew.heed(digests[0])] * 2

threads = [(task / "comm").read_text() for task in Path("/proc/self/task").glob("*")]
assert not [name for name in threads if "gloo" in name], "threads that outlive the group can abort the process"
"""


def test_each_process_keeps_its_share_and_a_killed_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    """Full weights of the other process are in the model's own dtype, without moments; low-rank factors in float32.

    Where the models are held in shares, each process has its layers alone, and full weights of the other nowhere.
    """
    (tmp_path / "script.py").write_text(SHARED)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [*TWO, str(tmp_path / "script.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", [["scan", "x"], ["apply", "x", "y", "-o", "z"], ["methods"]])
def test_other_commands_refuse_to_run_in_several(
    sned: Callable[..., Outcome], command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = sned(*command)
    assert done.code == 2
    assert f"sned {command[0]} runs in one process" in done.err


def test_a_method_that_trains_nothing_refuses_to_run_in_several(tmp_path: Path) -> None:
    request = PlanRequest(LoadRequest(str(tmp_path)), "uidl", Budget(layers=2), tmp_path / "out")
    with pytest.raises(ConfigError, match="uidl runs in one process, and a launcher has started 2") as caught:
        plan(request, SILENT, Crew(1, 2))
    assert caught.value.hint is not None
    assert "displlm, streamline" in caught.value.hint


def test_half_an_environment_is_no_launcher(sned: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    done = sned("heal", "x", "-o", "y")
    assert done.code == 2
    assert (
        "WORLD_SIZE tells of 2 processes, but not how to reach them: RANK, MASTER_ADDR, MASTER_PORT missing" in done.err
    )
    assert "torchrun" in done.err


def test_what_is_shared_out_is_shared_evenly() -> None:
    sizes = {"a": 9, "b": 5, "c": 4, "d": 1, "e": 1}
    assert Crew(1, 2).owners(sizes) == {"a": 0, "b": 1, "c": 1, "d": 0, "e": 1}
    assert Crew(0, 2).owners(dict(reversed(sizes.items()))) == Crew(1, 2).owners(sizes), "all come to the same"
    assert set(ALONE.owners(sizes).values()) == {0}


def test_every_batch_is_somebodys() -> None:
    for n in range(7):
        for size in (1, 2, 3, 5):
            shares = [Crew(rank, size).share(list(range(n))) for rank in range(size)]
            assert sorted(item for share in shares for item, counts in share if counts) == list(range(n))
            assert len({len(share) for share in shares}) == 1, "all have as much to do"
    assert ALONE.heed({"a": 1}) == {"a": 1}
