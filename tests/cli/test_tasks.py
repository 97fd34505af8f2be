"""`eval --tasks` and `stability`: figures for people and programs, logs that compare, and bad input in one message."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from kit.tiny import make_model, make_tokenizer, save_model_folder

from sned.evaluation.item_log import read_log, write_log
from sned.evaluation.items import accuracy

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from .conftest import Outcome

ITEMS = 24
TEXT = ["--eval", "random", "--eval-tokens", "64", "--seq-len", "16"]
CHOICES = [*TEXT, "--tasks", "choices", "--task-items", ITEMS]
LOG = "choices.jsonl"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save_model_folder(tmp_path / "base", "llama")


@pytest.fixture
def pruned(tmp_path: Path) -> Path:
    """A model that differs from the base in its head, enough to change some answers."""
    model, folder = make_model("llama"), tmp_path / "pruned"
    head = model.get_output_embeddings().weight
    head.data += 0.1 * torch.randn(head.shape, generator=torch.Generator().manual_seed(3))
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def logs(sned: Callable[..., Outcome], base: Path, pruned: Path, tmp_path: Path) -> Path:
    """Logs of both models."""
    assert sned("eval", pruned, "--against", base, *CHOICES, "--items", tmp_path / "items").code == 0
    return tmp_path / "items"


def test_a_model_alone(sned: Callable[..., Outcome], base: Path, tmp_path: Path) -> None:
    got = sned("eval", base, *CHOICES, "--items", tmp_path / "items", "--json")
    assert got.code == 0, got.err
    tasks = got.document["tasks"]
    items = read_log(tmp_path / "items" / "model" / LOG)
    assert len(items) == ITEMS
    assert tasks["pruned"] == {"results": {"choices": accuracy(items)}}
    assert (tasks["dense"], tasks["stability"]) == (None, {})
    assert tasks["protocol"]["choices"]["items"] == ITEMS
    assert got.document["quality"]["pruned"]["nll"] > 0
    assert [folder.name for folder in (tmp_path / "items").iterdir()] == ["model"]


def test_two_models_side_by_side(sned: Callable[..., Outcome], base: Path, pruned: Path, logs: Path) -> None:
    found = sned("eval", pruned, "--against", base, *CHOICES, "--json").document["tasks"]
    for block, label in (("dense", "base"), ("pruned", "model")):
        assert found[block]["results"]["choices"] == accuracy(read_log(logs / label / LOG))
    stable = found["stability"]["choices"]
    assert 0 < stable["agreement"] < 1
    assert sum(stable["flips"].values()) == ITEMS
    assert (stable["ddof"], stable["score"], stable["agree"]) == (1, "nll", "correctness")
    shown = sned("eval", pruned, "--against", base, *CHOICES)
    assert "choices, accuracy" in shown.out
    assert "choices, stability" in shown.out
    assert f"{100 * found['pruned']['results']['choices']['acc,none']:.1f}% ±" in shown.out
    assert "which of 4 continuations of 16 tokens follows a context of 64, out of random" in shown.out


def test_a_model_beside_itself_keeps_every_verdict(sned: Callable[..., Outcome], base: Path) -> None:
    found = sned("eval", base, "--against", base, *CHOICES, "--json").document["tasks"]
    assert found["dense"] == found["pruned"]
    assert found["stability"]["choices"]["stability"] == found["stability"]["choices"]["agreement"] == 1


def test_loaded_streamed_and_from_a_cache_alike(sned: Callable[..., Outcome], base: Path, tmp_path: Path) -> None:
    how = {"plain": [], "streamed": ["--stream", "on"], "cached": ["--cached"]}
    found = {}
    for name, options in how.items():
        assert sned("eval", base, *CHOICES, *options, "--items", tmp_path / name).code == 0
        found[name] = read_log(tmp_path / name / "model" / LOG)
    assert found["plain"] == found["streamed"]
    for one, other in zip(found["plain"], found["cached"], strict=True):
        assert one.nll == pytest.approx(other.nll, abs=1e-4)
        assert (one.item, one.gold, one.answer) == (other.item, other.gold, other.answer)


def test_stability_of_logs_is_that_of_the_run(
    sned: Callable[..., Outcome], base: Path, pruned: Path, logs: Path
) -> None:
    expected = sned("eval", pruned, "--against", base, *CHOICES, "--json").document["tasks"]["stability"]["choices"]
    for files in ((logs / "base", logs / "model"), (logs / "base" / LOG, logs / "model" / LOG)):
        found = sned("stability", *files, "--json").document
        assert found["tasks"] == {"choices": {"items": ITEMS, **expected}}
        assert found["mean"]["stability"] == expected["stability"]
    shown = sned("stability", logs / "base", logs / "model")
    assert f"{expected['stability']:.4f}" in shown.out
    assert "mean" not in shown.out


def test_how_stability_is_computed_can_be_chosen(sned: Callable[..., Outcome], logs: Path) -> None:
    files = (logs / "base", logs / "model")
    plain = sned("stability", *files, "--json").document["tasks"]["choices"]
    for given, changed in (
        (["--ddof", "0"], {"ddof": 0}),
        (["--score", "ppl"], {"score": "ppl"}),
        (["--agreement", "same-answer"], {"agree": "same-answer"}),
    ):
        other = sned("stability", *files, *given, "--json").document["tasks"]["choices"]
        assert other | changed == other
        assert other["stability"] != plain["stability"]
        assert (other["flips"], other["legacy"]) == (plain["flips"], plain["legacy"])


def test_several_tasks_have_a_mean(sned: Callable[..., Outcome], logs: Path) -> None:
    for label in ("base", "model"):
        items = read_log(logs / label / LOG)
        write_log(logs / label / "half.jsonl", [replace(item, task="half") for item in items[: ITEMS // 2]])
    found = sned("stability", logs / "base", logs / "model", "--json").document
    rows = [found["tasks"][name] for name in ("choices", "half")]
    assert found["mean"]["stability"] == pytest.approx(sum(row["stability"] for row in rows) / 2)
    assert "mean" in sned("stability", logs / "base", logs / "model").out


def test_logs_of_other_items_are_refused(sned: Callable[..., Outcome], base: Path, logs: Path, tmp_path: Path) -> None:
    assert sned("eval", base, *CHOICES, "--seed", 1, "--items", tmp_path / "other").code == 0
    got = sned("stability", logs / "base", tmp_path / "other" / "model")
    assert (got.code, got.out) == (6, "")
    assert "the name of item 1 is" in got.err
    assert str(tmp_path / "other") in got.err


def test_folders_that_do_not_match(sned: Callable[..., Outcome], logs: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for first, second, words in (
        (logs / "base", tmp_path / "empty", f"holds {LOG}, and"),
        (tmp_path / "empty", tmp_path / "empty", "holds no logs"),
        (logs / "base", logs / "model" / LOG, "is a folder, and"),
        (logs / "base" / LOG, tmp_path / "gone.jsonl", "does not exist"),
        (logs / "base", tmp_path / "gone", "gone does not exist"),
    ):
        got = sned("stability", first, second)
        assert (got.code, got.out) == (6, "")
        assert words in got.err


def test_a_malformed_log_names_the_line(sned: Callable[..., Outcome], logs: Path) -> None:
    with (logs / "model" / LOG).open("a") as file:
        file.write("{}\n")
    got = sned("stability", logs / "base", logs / "model")
    assert got.code == 6
    assert f"{LOG}, line {ITEMS + 1}, is no item" in got.err


def test_logs_are_not_overwritten_unasked(sned: Callable[..., Outcome], base: Path, logs: Path) -> None:
    assert sned("eval", base, *CHOICES, "--items", logs).code == 8
    assert (logs / "base" / LOG).exists()
    assert sned("eval", base, *CHOICES, "--items", logs, "--overwrite").code == 0
    assert not (logs / "base").exists()


def test_too_little_text_says_how_many_items_there_are(
    sned: Callable[..., Outcome], base: Path, tmp_path: Path
) -> None:
    (tmp_path / "short.txt").write_text("just a little text. " * 20)  # 400 tokens, and two that end the text
    text = ["--eval", f"file:{tmp_path / 'short.txt'}", "--eval-tokens", "64", "--seq-len", "16", "--tasks", "choices"]
    got = sned("eval", base, *text)
    assert (got.code, got.out) == (6, "")
    assert "holds 5 items of 80 tokens, and 200 are needed" in got.err
    assert "--task-items 5" in got.err
    tokens = tmp_path / "tokens.npy"
    np.save(tokens, torch.randint(3, 128, (2, 170)).numpy())
    got = sned("eval", base, "--eval", f"tokens:{tokens}", "--tasks", "choices", "--task-items", 5)
    assert got.code == 6
    assert "holds 4 items" in got.err
    assert sned("eval", base, "--eval", f"tokens:{tokens}", "--tasks", "choices", "--task-items", 4).code == 0


@pytest.mark.parametrize(
    ("given", "code", "words"),
    [
        (["--tasks", "choices", "--task-items", "0"], 2, "--task-items 0 leaves nothing"),
        (["--tasks", "choices,choices"], 2, "choices twice"),
        (["--tasks", "choices", "--tasks", "choices"], 2, "choices twice"),
        (["--tasks", "choices,"], 2, "an empty task"),
        (["--tasks", "nowhere.yaml"], 6, "nowhere.yaml does not exist"),
        (["--tasks", "choices,piqa", "--stream", "on"], 2, "'piqa' goes through lm-eval"),
        (["--tasks", "choices", "--cached", "--stream", "on"], 2, "a streamed model keeps no cache"),
        (["--task-items", "3"], 2, "--task-items says nothing without --tasks"),
        (["--items", "logs"], 2, "--items says nothing without --tasks"),
        (["--cached"], 2, "--cached says nothing without --tasks"),
        (["--tasks", "choices", "--overwrite"], 2, "--overwrite says nothing without --items"),
    ],
)
def test_bad_input_is_refused_before_a_model_is_loaded(
    sned: Callable[..., Outcome],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    given: list[str],
    code: int,
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sned.jobs.session.load", lambda *_, **__: pytest.fail("a model was loaded"))
    got = sned("eval", "demo", *given)
    assert (got.code, got.out) == (code, "")
    assert words in got.err
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_turns_out_streamed_takes_no_task_of_lm_eval(
    sned: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, base: Path
) -> None:
    monkeypatch.setattr("sned.checkpoint.model._wants_stream", lambda *_: True)
    monkeypatch.setattr("sned.jobs.tasks.open_tasks", lambda *_: None)
    got = sned("eval", base, *TEXT, "--tasks", "piqa")
    assert got.code == 2
    assert "--stream off" in got.err


def test_a_missing_package_names_the_remedy(sned: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sned.evaluation.harness.find_spec", lambda _: None)
    monkeypatch.setattr("sned.jobs.session.load", lambda *_, **__: pytest.fail("a model was loaded"))
    got = sned("eval", "demo", "--tasks", "piqa")
    assert got.code == 9
    assert "pip install 'sned[tasks]'" in got.err


def test_a_task_of_lm_eval_from_a_file(sned: Callable[..., Outcome], base: Path, pruned: Path, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    docs: list[dict[str, Any]] = [{"q": f"{n}?", "options": ["yes", "no, it is not"], "gold": n % 2} for n in range(6)]
    (tmp_path / "docs.jsonl").write_text("\n".join(map(json.dumps, docs)))
    (tmp_path / "quiz.yaml").write_text(
        f"""
task: quiz
dataset_path: json
dataset_kwargs: {{data_files: {tmp_path}/docs.jsonl, cache_dir: {tmp_path}/cache}}
output_type: multiple_choice
test_split: train
doc_to_text: "{{{{q}}}}"
doc_to_choice: options
doc_to_target: gold
metric_list: [{{metric: acc}}]
"""
    )
    given = [*TEXT, "--tasks", f"choices,{tmp_path / 'quiz.yaml'}", "--task-items", 5, "--items", tmp_path / "items"]
    found = sned("eval", pruned, "--against", base, *given, "--json").document["tasks"]
    assert found["pruned"]["results"].keys() == {"choices", "quiz"}
    assert found["stability"].keys() == {"choices", "quiz"}
    assert found["protocol"]["quiz"]["items"] == 5
    again = sned("stability", tmp_path / "items" / "base", tmp_path / "items" / "model", "--json").document["tasks"]
    assert again == {name: {"items": 5, **row} for name, row in found["stability"].items()}
