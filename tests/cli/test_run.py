"""`run`: a whole job from one file, whatever interrupts it, and what of it is done again after a change."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from kit.shell import ENVIRONMENT
from kit.tiny import save_model_folder

from sned.checkpoint.verify import Verification
from sned.plans.store import load_plan
from sned.report.schema import load as load_report
from sned.runtime import journal as journals
from sned.training.schedule import Schedule

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from .conftest import Outcome

STAGES: list[dict[str, Any]] = [
    {"prune": {"method": "uidl", "layers": 2, "baselines": ["random"]}},
    {"heal": {"rank": 2, "batch": 8}},
    {"eval": {"task_items": 8}},
    {"report": {}},
]
RECIPE = {
    "calibration": {"sources": ["random"], "tokens": 512, "seq_len": 16},
    "evaluation": {"sources": ["random"], "tokens": 64, "seq_len": 16},
    "stages": STAGES,
}
BARE = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype="auto").eval()
ids = AutoTokenizer.from_pretrained(sys.argv[1])("some text", return_tensors="pt")
print(len(model.model.layers), bool(torch.isfinite(model(**ids).logits).all()), "sned" in sys.modules)
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with a model and a recipe."""
    save_model_folder(tmp_path / "model", "llama")
    (tmp_path / "recipe.yaml").write_text(json.dumps({"model": "model", "out": "out", **RECIPE}))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def done(place: Path, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Leave out what takes long and is tested elsewhere, and count what is done: stages, steps of training."""
    count: Counter[str] = Counter()

    def counted(name: str, run: Any) -> Any:
        def call(*args: Any, **given: Any) -> Any:
            count[name] += 1
            return run(*args, **given)

        return call

    from sned.jobs import run as module

    for name in ("prune_stage", "heal_stage", "set_tasks", "complete_report"):
        monkeypatch.setattr(module, name, counted(name, getattr(module, name)))
    monkeypatch.setattr(Schedule, "windows", counted("steps", Schedule.windows))
    monkeypatch.setattr("sned.jobs.prune.verify", lambda *_, **__: Verification(0.0, 0.0, "float32", stock_class=True))
    monkeypatch.setattr("sned.jobs.prune.continue_greedily", lambda *_: "and so on")
    monkeypatch.setattr("sned.jobs.prune.measure_speed", lambda *_: None)
    monkeypatch.setattr("sned.jobs.stages.measure_speed", lambda *_: None)
    monkeypatch.setattr(journals, "SAVE_EVERY_SECONDS", 0.0)
    return count


def kill(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_the_whole_job(sned: Callable[..., Outcome], place: Path) -> None:
    got = sned("run", "recipe.yaml", "--json")
    assert got.code == 0, got.err
    out = place / "out"
    found = json.loads((out / "sned" / "report.json").read_text())
    assert got.document == found
    assert sorted(path.name for path in place.iterdir()) == ["model", "out", "recipe.yaml"], "nothing is left beside it"

    assert [stage.method for stage in load_plan(out).stages] == ["uidl", "heal"]
    assert [row["stage"] for row in found["training"]] == ["heal"]
    assert found["tasks"]["protocol"]["choices"]["items"] == 8
    assert found["tasks"]["dense"] is not None
    assert {row["method"] for row in found["baselines"]} == {"before training", "random"}
    assert found["quality"]["pruned"]["nll"] > 0
    assert found["speed"]["decode_ratio"] > 0
    assert all(row["pruned"] for row in found["samples"])
    assert found["command"] == "sned run recipe.yaml --json"
    assert found["cost"]["forward_layer_tokens"] > 0
    assert None not in [found["cost"]["seconds"][phase] for phase in ("plan", "train", "save", "evaluate")]

    logs = out / "sned" / "items"
    again = sned("stability", logs / "base", logs / "model", "--json").document["tasks"]["choices"]
    assert again["flips"] == found["tasks"]["stability"]["choices"]["flips"]

    page, card = (out / "sned" / "report.html").read_text(), (out / "README.md").read_text()
    assert "choices, accuracy" in page
    assert "choices, accuracy" in card
    assert "# out\n" in card
    assert "the full report and the recipe are in" in card
    logged = [json.loads(line)["message"] for line in (out / "sned" / "log.jsonl").read_text().splitlines()]
    assert {"measure distances", "train", "choices"} <= set(logged)

    bare = [sys.executable, "-P", "-c", BARE, str(out)]
    loaded = subprocess.run(bare, capture_output=True, text=True, check=False, env=ENVIRONMENT)
    assert loaded.stdout.split() == ["3", "True", "False"], loaded.stderr[-2000:]


_PACE = {"prefill_tokens_per_s": 1.0, "decode_tokens_per_s": 1.0}
MEASURED = {"dense": _PACE, "pruned": _PACE, "prefill_ratio": 1.0, "decode_ratio": 1.0}
KILLS = {
    "planning": "sned.jobs.plan.make_plan",
    "judging": "sned.jobs.prune.write_samples",
    "saving": "sned.jobs.prune.write_output",
    "healed": "sned.jobs.heal.write_output",
    "tasks": "sned.jobs.tasks.judge_choices",
    "report": "sned.jobs.stages.measure_speed",
    "the end": "sned.jobs.conclude.put_in_place",
}


def test_killed_at_any_stage_it_goes_on_and_ends_the_same(
    sned: Callable[..., Outcome], place: Path, monkeypatch: pytest.MonkeyPatch, done: Counter[str]
) -> None:
    def stop_after(steps: int) -> Any:
        step = Schedule.windows

        def windows(*args: Any) -> Any:
            if done["steps"] >= steps:
                raise KeyboardInterrupt
            return step(*args)

        return windows

    assert sned("run", "recipe.yaml", "-o", "straight").code == 0
    once = done["steps"]
    assert once > 2
    for name in ("planning", "judging", "saving", "training", "healed", "tasks", "report", "the end"):
        with monkeypatch.context() as patch:
            if name == "training":
                patch.setattr(Schedule, "windows", stop_after(done["steps"] + 2))
            else:
                patch.setattr(KILLS[name], kill)
            got = sned("run", "recipe.yaml")
        assert (got.code, got.out) == (130, ""), name
        assert "--no-resume" in got.err
        assert not (place / "out").exists()
        assert (place / ".out.run").exists() is (name != "planning"), "nothing was done yet"
    got = sned("run", "recipe.yaml")
    assert got.code == 0, got.err
    assert got.err.count("was done before") == 4
    assert done == {"prune_stage": 5, "heal_stage": 4, "set_tasks": 3, "complete_report": 3, "steps": 2 * once}
    assert not (place / ".out.run").exists()

    assert weights(place / "out") == weights(place / "straight")
    assert load_plan(place / "out").digest == load_plan(place / "straight").digest
    broken, straight = (load_report(place / name / "sned" / "report.json") for name in ("out", "straight"))
    for block in ("quality", "tasks", "training", "baselines", "samples", "model"):
        assert getattr(broken, block) == getattr(straight, block), block


@pytest.mark.parametrize(
    ("given", "again"),
    [
        (["--set", "eval.task_items=6"], {"set_tasks"}),
        (["--set", "heal.rank=3"], {"heal_stage", "set_tasks", "complete_report"}),
        (["--set", "seed=1"], {"prune_stage", "heal_stage", "set_tasks", "complete_report"}),
        (["--no-resume"], {"prune_stage", "heal_stage", "set_tasks", "complete_report"}),
    ],
)
def test_after_a_change_only_what_follows_is_done_again(
    sned: Callable[..., Outcome],
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    done: Counter[str],
    given: list[str],
    again: set[str],
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(KILLS["the end"], kill)
        assert sned("run", "recipe.yaml").code == 130
    done.clear()
    got = sned("run", "recipe.yaml", *given)
    assert got.code == 0, got.err
    assert done.keys() - {"steps"} == again


def test_a_changed_file_of_text_is_read_again(sned: Callable[..., Outcome], place: Path, done: Counter[str]) -> None:
    text = place / "text.txt"
    text.write_text("some text to train on. " * 40)
    given = ["recipe.yaml", "--set", f"heal.calibration.sources=['file:{text}']"]
    assert sned("run", *given, "--set", "eval.tasks=[none_such]").code in (2, 9), "before the work"
    assert not done
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(KILLS["tasks"], kill)
        assert sned("run", *given).code == 130
        text.write_text("other text to train on. " * 40)
        assert sned("run", *given).code == 130
    assert (done["prune_stage"], done["heal_stage"]) == (1, 2)


def test_the_recipe_in_the_result_repeats_the_job(
    sned: Callable[..., Outcome], place: Path, done: Counter[str]
) -> None:
    changed = ["--set", "heal.rank=1", "--set", "prune.layers=1"]
    assert sned("run", "recipe.yaml", *changed, "-o", "first").code == 0
    written = place / "first" / "sned" / "recipe.yaml"
    got = sned("run", written, "-o", "second")
    assert got.code == 0, got.err
    assert weights(place / "first") == weights(place / "second")
    before, after = (
        yaml.safe_load((place / name / "sned" / "recipe.yaml").read_text()) for name in ("first", "second")
    )
    assert after == {**before, "out": "second"}
    assert (before["stages"][1]["heal"]["rank"], before["stages"][0]["prune"]["layers"]) == (1, 1)
    assert sned("run", written).code == 8, "it names a place that is taken by now"
    assert sned("run", written, "--overwrite").code == 0


def test_so_does_the_recipe_that_prune_writes(sned: Callable[..., Outcome], place: Path, done: Counter[str]) -> None:
    text = ["--calib", "random", "--calib-tokens", "256", "--eval", "random", "--eval-tokens", "64", "--seq-len", "16"]
    typed = ["-m", "replaceme", "--layers", "2", "--probe", "0", "--ridge", "0.5", "--seed", "3", "--baseline", "uidl"]
    assert sned("prune", "model", *typed, *text, "-o", "typed").code == 0
    got = sned("run", "typed/sned/recipe.yaml", "-o", "repeated")
    assert got.code == 0, got.err
    assert weights(place / "typed") == weights(place / "repeated")
    assert load_plan(place / "typed").digest == load_plan(place / "repeated").digest


def test_a_recipe_may_end_with_pruning(sned: Callable[..., Outcome], place: Path, done: Counter[str]) -> None:
    (place / "recipe.yaml").write_text(
        json.dumps({"model": "model", **RECIPE, "stages": [STAGES[0], {"report": None}]})
    )
    got = sned("run", "recipe.yaml", "-o", "out", "--quiet")
    assert (got.code, got.err) == (0, "")
    report = load_report(place / "out" / "sned" / "report.json")
    assert report.method == "uidl"
    assert [row.pruned for row in report.samples] == ["and so on"] * 3
    assert [row.method for row in report.baselines] == ["random"]


def test_without_speed_only_a_report_stage_measures_it(
    sned: Callable[..., Outcome], place: Path, monkeypatch: pytest.MonkeyPatch, done: Counter[str]
) -> None:
    monkeypatch.setattr("sned.jobs.prune.measure_speed", lambda *_: pytest.fail("speed was measured"))
    monkeypatch.setattr("sned.jobs.stages.measure_speed", lambda *_: MEASURED)
    text = ["--calib", "random", "--calib-tokens", "64", "--eval", "random", "--eval-tokens", "64", "--seq-len", "16"]
    typed = ["prune", "model", "-m", "uidl", "--layers", "1", "--no-speed", *text, "-o", "typed"]
    assert "measure speed" not in sned(*typed, "--dry-run").out
    assert sned(*typed).code == 0
    assert load_report(place / "typed" / "sned" / "report.json").speed is None
    written = yaml.safe_load((place / "typed" / "sned" / "recipe.yaml").read_text())
    assert written["stages"][0]["prune"]["speed"] is False
    stages = [{"prune": {**STAGES[0]["prune"], "speed": False}}, {"report": {}}]
    (place / "recipe.yaml").write_text(json.dumps({"model": "model", **RECIPE, "stages": stages}))
    assert sned("run", "recipe.yaml", "-o", "out").code == 0
    found = load_report(place / "out" / "sned" / "report.json")
    assert found.speed is not None
    assert [row.pruned for row in found.samples] == ["and so on"] * 3, "once written, they are not written again"


def test_a_dry_run_shows_the_recipe_with_its_defaults(sned: Callable[..., Outcome], place: Path) -> None:
    shown = sned("run", "recipe.yaml", "--set", "heal.rank=5", "--dry-run")
    told = sned("run", "recipe.yaml", "--set", "heal.rank=5", "--dry-run", "--json").document
    assert yaml.safe_load(shown.out) == told
    assert told["stages"][1]["heal"] == {**told["stages"][1]["heal"], "rank": 5, "loss": "kl", "lr": 1e-3}
    assert not (place / "out").exists()


@pytest.mark.parametrize(
    ("given", "code", "message"),
    [
        (["nowhere.yaml"], 2, "there is no recipe nowhere.yaml"),
        (["recipe.yaml", "--set", "out=null"], 2, "does not say where the result goes"),
        (["recipe.yaml", "--set", "heal.rnk=1"], 2, "recipe.yaml: stages.2.heal.rnk: there is no such key"),
        (["recipe.yaml", "--set", "prune.method=uidle"], 2, "did you mean uidl?"),
        (["recipe.yaml", "--set", "prune.spam=1:3"], 2, "did you mean span"),
        (["recipe.yaml", "--set", "stages.4={prune: {method: uidl, layers: 1}}"], 2, "one prune stage only"),
        (["recipe.yaml", "--set", "eval.cached=true", "--set", "stream=on"], 2, "a streamed model keeps no cache"),
        (["recipe.yaml", "--set", "calibration.sources=['file:gone.txt']"], 6, "gone.txt does not exist"),
        (["recipe.yaml", "-o", "model", "--overwrite"], 8, "is the model itself"),
        (["recipe.yaml", "-o", "recipe.yaml"], 8, "recipe.yaml is a file"),
        (["recipe.yaml", "-o", "model"], 8, "--overwrite"),
    ],
)
def test_bad_input_is_refused_before_a_model_is_loaded(
    sned: Callable[..., Outcome],
    monkeypatch: pytest.MonkeyPatch,
    place: Path,
    given: list[str],
    code: int,
    message: str,
) -> None:
    monkeypatch.setattr("sned.jobs.session.load", lambda *_, **__: pytest.fail("a model was loaded"))
    got = sned("run", *given)
    assert (got.code, got.out) == (code, "")
    assert message in got.err
    assert sorted(path.name for path in place.iterdir()) == ["model", "recipe.yaml"]
