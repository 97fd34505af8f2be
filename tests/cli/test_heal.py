"""Healing from the command line: a pruned folder goes in, a better one comes out; and what cannot be healed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import torch
from kit.compare import assert_same_logits, logits
from kit.tiny import save_model_folder

import sned as package
from sned.cli.main import main
from sned.plans.store import load_plan

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from .conftest import Outcome

TEXT = ["--calib", "random", "--calib-tokens", "512", "--seq-len", "16", "--eval", "random", "--eval-tokens", "64"]
FAST = [*TEXT, "--batch", "4", "--epochs", "2", "--quiet"]


def prune(model: Path, out: Path) -> Path:
    arguments = ["prune", str(model), "-m", "uidl", "--layers", "2", *TEXT, "-o", str(out), "--quiet"]
    assert main(arguments) == 0
    return out


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model_folder(tmp_path_factory.mktemp("dense") / "model", "llama")


@pytest.fixture(scope="module")
def pruned(model: Path) -> Path:
    """Pruned once, for no test changes it."""
    return prune(model, model.with_name("pruned"))


def test_a_pruned_model_learns_from_the_one_it_came_from(
    sned: Callable[..., Outcome], model: Path, pruned: Path, tmp_path: Path
) -> None:
    done = sned("heal", pruned, *FAST, "--lr", "0.005", "-o", tmp_path / "healed", "--json")
    assert done.code == 0, done.err
    (training,) = done.document["training"]
    curve = [row["held_out"] for row in training["curve"]]
    assert min(curve) < curve[0]
    assert done.document["method"] == "heal"
    before = done.document["baselines"][0]
    assert before["method"] == "before training"
    earlier = json.loads((pruned / "sned" / "report.json").read_text())
    assert before["perplexity"] == pytest.approx(earlier["quality"]["pruned"]["perplexity"], rel=1e-4)
    assert done.document["verify"]["stock_class"]
    page = (tmp_path / "healed" / "sned" / "report.html").read_text()
    assert "trained" in page


def test_the_plan_of_a_healed_model_makes_it_again(
    sned: Callable[..., Outcome], model: Path, pruned: Path, tmp_path: Path
) -> None:
    """And what was healed once can be healed again."""
    healed, again, twice = tmp_path / "healed", tmp_path / "again", tmp_path / "twice"
    assert sned("heal", pruned, *FAST, "-o", healed).code == 0
    shown = sned("show", healed)
    assert shown.code == 0
    assert "heal" in shown.out
    applied = sned("apply", model, healed, "-o", again, "--quiet")
    assert applied.code == 0, applied.err
    with torch.no_grad():
        ours, theirs = package.load(str(again)), package.load(str(healed))
        assert_same_logits(logits(ours.view.model), logits(theirs.view.model), exact=True)
    done = sned("heal", healed, *FAST, "--train", "full", "--last", 1, "-o", twice, "--json")
    assert done.code == 0, done.err
    assert len(done.document["training"]) == 2


def test_zeros_that_a_plan_made_stay_unless_freed(sned: Callable[..., Outcome], model: Path, tmp_path: Path) -> None:
    sparse = tmp_path / "sparse"
    done = sned("prune", model, "-m", "wanda", "--sparsity", "50%", *TEXT, "-o", sparse, "--quiet")
    assert done.code == 0, done.err
    kept = sned("heal", sparse, *FAST, "--lr", "0.005", "-o", tmp_path / "kept", "--json")
    assert kept.document["sparsity"]["ratio"] == pytest.approx(0.5, abs=1e-3)
    freed = sned("heal", sparse, *FAST, "--lr", "0.005", "--free-zeros", "-o", tmp_path / "freed", "--json")
    assert freed.document["sparsity"]["ratio"] < 0.1


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        (["--train", "transform"], 2, ["no linear map", "replaceme"]),
        (["--base", "./nowhere"], 8, ["nowhere"]),
        (["--calib-tokens", "16"], 6, ["two windows"]),
        (["--lr", "0"], 2, ["lr"]),
        (["--last", "0"], 2, ["last"]),
        (["--last", "99"], 2, ["has 3 layers", "99"]),
        (["--train", "full", "--rank", "4"], 2, ["no rank"]),
        (["--train", "full", "--alpha", "4"], 2, ["no alpha"]),
        (["--first-share", "1.5"], 2, ["first-share"]),
        (["--shard"], 2, ["one process holds the models whole", "torchrun"]),
    ],
)
def test_what_cannot_be_done_is_said(
    sned: Callable[..., Outcome], pruned: Path, tmp_path: Path, change: list[str], code: int, words: list[str]
) -> None:
    done = sned("heal", pruned, *FAST, *change, "-o", tmp_path / "healed")
    assert done.code == code, done.err
    assert all(word in done.err for word in words), done.err
    assert not (tmp_path / "healed").exists()


def test_too_little_memory_is_said_before_training(
    sned: Callable[..., Outcome], pruned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sned.jobs.heal.free_memory", lambda _device: 10_000)
    done = sned("heal", pruned, *FAST, "--train", "full", "-o", tmp_path / "healed")
    assert done.code == 2
    assert "needs about" in done.err
    assert "--train lora" in done.err
    assert not (tmp_path / "healed").exists()


@pytest.mark.parametrize("how", [["--recompute"], ["--stream", "on"]])
def test_how_a_model_is_held_changes_no_byte(
    sned: Callable[..., Outcome], pruned: Path, tmp_path: Path, how: list[str]
) -> None:
    for name, given in (("kept", []), ("again", how)):
        assert sned("heal", pruned, *FAST, *given, "-o", tmp_path / name).code == 0
    kept, again = (tmp_path / name / "model.safetensors" for name in ("kept", "again"))
    assert kept.read_bytes() == again.read_bytes()
    assert load_plan(tmp_path / "kept").digest == load_plan(tmp_path / "again").digest


def test_only_what_sned_pruned_is_healed(sned: Callable[..., Outcome], tmp_path: Path) -> None:
    model = save_model_folder(tmp_path / "model", "llama")
    pruned = prune(model, tmp_path / "pruned")
    done = sned("heal", model, *FAST, "-o", tmp_path / "healed")
    assert done.code == 8
    assert "prune it first" in done.err
    itself = sned("heal", pruned, *FAST, "--overwrite", "-o", pruned)
    assert itself.code == 8
    assert "itself" in itself.err
    model.rename(tmp_path / "moved")
    lost = sned("heal", pruned, *FAST, "-o", tmp_path / "healed")
    assert lost.code == 8
    assert "--base" in lost.err
    assert sned("heal", pruned, "--base", tmp_path / "moved", *FAST, "-o", tmp_path / "healed").code == 0
