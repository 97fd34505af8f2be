"""The real SmolLM2-135M through the command line, as a user would run it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from kit.shell import FP32, REAL, generates_without_sned, sned

pytestmark = REAL

SHORT = ["--calib-tokens", "2048", "--seq-len", "512", *FP32]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("real")


@pytest.fixture(scope="module")
def pruned(home: Path) -> Path:
    out = home / "pruned"
    done = sned(
        "prune", "demo", "-m", "replaceme", "--layers", "6", *SHORT,
        "--eval-tokens", "1024", "--baseline", "random", "--no-speed", "-o", out, "--json",
    )  # fmt: skip
    assert json.loads(done.stdout) == json.loads((out / "sned" / "report.json").read_text())
    return out


@pytest.fixture(scope="module")
def report(pruned: Path) -> dict:
    return json.loads((pruned / "sned" / "report.json").read_text())


def test_the_result_is_smaller_and_better_than_chance(report: dict) -> None:
    assert report["model"]["params"]["dense"] == 134_515_008
    assert report["model"]["params"]["pruned"] == 134_515_008 - 6 * 3_540_096
    assert [layer["state"] for layer in report["stack"]].count("removed") == 6
    dense, ours = report["quality"]["dense"]["perplexity"], report["quality"]["pruned"]["perplexity"]
    chance = report["baselines"][0]["perplexity"]
    assert 10 < dense < 30, "the dense model is broken, or the text is another"
    assert dense < ours < 3 * dense
    assert ours < chance
    assert 0 < report["quality"]["kl"] < 2
    assert report["verify"] == {**report["verify"], "stock_class": True}
    assert report["verify"]["max_logit_error"] < 1e-4


def test_it_loads_and_generates_in_a_process_that_never_saw_sned(pruned: Path) -> None:
    assert generates_without_sned(pruned) == ["LlamaForCausalLM", "24", "8"]


def test_the_folder_is_whole_and_nothing_is_left_beside_it(pruned: Path) -> None:
    names = {path.relative_to(pruned).as_posix() for path in pruned.rglob("*") if path.is_file()}
    expected = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "README.md"}
    expected |= {f"sned/{n}" for n in ("plan.json", "plan.safetensors", "report.json", "report.html", "recipe.yaml")}
    assert expected | {"sned/journal.jsonl", "sned/log.jsonl"} <= names
    assert [path.name for path in pruned.parent.iterdir() if path.name.startswith(".pruned")] == []


def test_its_plan_makes_the_same_weights_again(pruned: Path, home: Path) -> None:
    again = home / "again"
    sned("apply", "demo", pruned, *FP32, "-o", again)
    assert (again / "model.safetensors").read_bytes() == (pruned / "model.safetensors").read_bytes()


def test_a_plan_refuses_a_model_it_was_not_made_for(pruned: Path, home: Path) -> None:
    done = sned("apply", pruned, pruned, *FP32, "-o", home / "wrong", check=4)
    assert "layers: 30 / 24" in done.stderr
    assert not (home / "wrong").exists()


def test_weights_that_are_not_finite_are_named(pruned: Path, home: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    sick = home / "sick"
    shutil.copytree(pruned, sick)
    tensors = load_file(sick / "model.safetensors")
    tensors["model.layers.3.mlp.up_proj.weight"][0, 0] = torch.nan
    save_file(tensors, sick / "model.safetensors", metadata={"format": "pt"})
    for stream in ("off", "on"):
        few = ["--layers", "2", "--calib-tokens", "512", "--seq-len", "256", *FP32]
        done = sned("plan", sick, "-m", "uidl", *few, "--stream", stream, "-o", home / "x", check=7)
        assert "layers.3" in done.stderr or "layer 3" in done.stderr
