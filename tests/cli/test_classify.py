"""Classifiers from the command line: planted depths are found, the result is stock, and bad files are named."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING

import pytest
import torch
from kit.planted import idle_layers
from kit.tiny import make_model, make_tokenizer
from transformers import AutoModelForSequenceClassification, AutoTokenizer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from .conftest import Outcome

VOWELS, OTHERS = "aeiou", "bcdfg"


def write(file: Path, rows: list[dict[str, object]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def texts(n: int, told_by: int, seed: int = 0) -> list[dict[str, object]]:
    """Texts whose character at a place is a vowel or not, which is their class."""
    chance, rows = random.Random(seed), []
    for i in range(n):
        characters = [chance.choice("xyz") for _ in range(6)]
        characters[told_by] = chance.choice(VOWELS if i % 2 else OTHERS)
        rows.append({"text": "".join(characters), "label": "vowel" if i % 2 else "other"})
    return rows


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A llama whose first two layers pass the stream on."""
    idle_layers(make_model("llama"), [0, 1]).save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_the_last_token_alone_needs_no_depth(sned: Callable[..., Outcome], model: Path, tmp_path: Path) -> None:
    data, test = write(tmp_path / "data.jsonl", texts(200, -1)), write(tmp_path / "test.jsonl", texts(60, -1, seed=1))
    done = sned("classify", model, "--data", data, "--test", test, "-o", tmp_path / "out", "--json")
    assert done.code == 0, done.err
    found = done.document
    assert found["chosen"]["layers"] == 1
    assert found["chosen"]["test"]["accuracy"] == 1.0
    assert found == json.loads((tmp_path / "out" / "sned" / "classifier.json").read_text())
    stock, tokenizer = (
        kind.from_pretrained(tmp_path / "out") for kind in (AutoModelForSequenceClassification, AutoTokenizer)
    )
    rows = texts(60, -1, seed=1)
    batch = tokenizer([row["text"] for row in rows], return_tensors="pt", padding=True)
    with torch.no_grad():
        said = stock(batch.input_ids, attention_mask=batch.attention_mask).logits.argmax(dim=1)
    assert [stock.config.id2label[int(i)] for i in said] == [row["label"] for row in rows]
    assert stock.config.num_hidden_layers == 1
    page = (tmp_path / "out" / "sned" / "report.html").read_text()
    assert "Accuracy by depth" in page


def test_what_attention_must_bring_is_found_where_it_is_brought(
    sned: Callable[..., Outcome], model: Path, tmp_path: Path
) -> None:
    """Layers 0 and 1 bring nothing to the last token, so that after them nothing can be told."""
    data = write(tmp_path / "data.jsonl", texts(400, -2))
    done = sned("classify", model, "--data", data, "--probe", "train", "-o", tmp_path / "out", "--json")
    assert done.code == 0, done.err
    shares = [row["accuracy"] for row in done.document["depths"]]
    assert max(shares[:2]) < 0.7 < shares[2]
    assert done.document["chosen"]["layers"] >= 3


def test_a_repeated_command_reads_no_text_twice(
    sned: Callable[..., Outcome], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write(tmp_path / "data.jsonl", texts(200, -1))
    order = ("classify", model, "--data", data, "-o", tmp_path / "out", "--json")

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("sned.jobs.classify.save_classifier", stop)
        assert sned(*order).code == 130
    assert not (tmp_path / "out").exists()
    again = sned(*order)
    assert again.code == 0, again.err
    assert again.document["cost"]["forward_layer_tokens"] == 0
    fresh = sned(*order[:-2], tmp_path / "fresh", "--json")
    assert fresh.document["depths"] == again.document["depths"]
    one, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("out", "fresh"))
    assert one == other


@pytest.mark.parametrize(
    ("rows", "arguments", "code", "words"),
    [
        ([{"text": "a", "label": "x"}] * 4, [], 6, ["nothing to tell apart", "'x'"]),
        ([{"text": "a", "label": "x"}, {"text": "b", "label": "y"}, {"text": "c", "label": "x"}], [], 6, ["'y'"]),
        ([{"text": "a", "label": "x"}, {"text": " ", "label": "y"}], [], 6, ["line 2", "blank"]),
        ([{"text": "a", "label": 0.5}], [], 6, ["line 1", "float"]),
        ([{"text": "a", "label": None}], [], 6, ["line 1", "nothing"]),
        ([{"text": "a", "topic": "x"}], [], 6, ["label", "text, topic", "--label"]),
        ([{"body": "a", "label": "x"}], [], 6, ["'text'", "--text"]),
        (texts(20, -1), ["--layers", "9"], 2, ["5 layers"]),
        (texts(20, -1), ["--layers", "0"], 2, ["layers"]),
    ],
)
def test_bad_input_is_named(
    sned: Callable[..., Outcome],
    model: Path,
    tmp_path: Path,
    rows: list[dict[str, object]],
    arguments: list[str],
    code: int,
    words: list[str],
) -> None:
    data = write(tmp_path / "data.jsonl", rows)
    done = sned("classify", model, "--data", data, *arguments, "-o", tmp_path / "out")
    assert done.code == code, done.err
    assert all(word in done.err for word in words), done.err
    assert not (tmp_path / "out").exists()


def test_sets_that_do_not_go_together_are_named(sned: Callable[..., Outcome], model: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "data.jsonl", texts(40, -1))
    strange = write(tmp_path / "strange.jsonl", [{"text": "a", "label": "digit"}])
    done = sned("classify", model, "--data", data, "--test", strange, "-o", tmp_path / "out")
    assert done.code == 6
    assert "'digit'" in done.err
    assert "other, vowel" in done.err
    seen = sned("classify", model, "--data", data, "--held-out", data, "--seq-len", 3, "-o", tmp_path / "out")
    assert seen.code == 0, seen.err
    assert "40 of 40 held-out texts are training texts, too" in seen.err
    assert "cut at 3 tokens" in seen.err
    other = write(
        tmp_path / "other.jsonl", [{"text": f"{row['text']}w", "label": row["label"]} for row in texts(20, -1)]
    )
    both = sned("classify", model, "--data", data, "--held-out", other, "--test", other, "-o", tmp_path / "second")
    assert "20 of 20 test texts are held-out texts, too" in both.err
    assert "are training texts" not in both.err
