"""Logs of items: they come back as they were, and say where they are wrong or unlike."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from sned.errors import DataError
from sned.evaluation.item_log import read_log, require_paired, write_log
from sned.evaluation.items import ItemScore

if TYPE_CHECKING:
    from pathlib import Path

ITEMS = (ItemScore("quiz", "0-ab", (1.25, 0.1 + 0.2), 1, (3, 2)), ItemScore("quiz", 7, (3.0, 2.0, 1e-9), 0, (1, 1, 1)))
ROW: dict[str, Any] = {"task": "quiz", "item": 1, "nll": [1.0, 2], "gold": 0, "length": [1, 1]}


def test_a_log_comes_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "quiz.jsonl"
    write_log(path, ITEMS)
    assert read_log(path) == ITEMS
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [list(row) for row in rows] == [["task", "item", "nll", "gold", "length"]] * 2


def test_keys_of_others_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "quiz.jsonl"
    path.write_text(json.dumps(ROW | {"question": "why?"}))
    assert read_log(path) == (ItemScore("quiz", 1, (1.0, 2.0), 0, (1, 1)),)


@pytest.mark.parametrize(
    ("second", "words"),
    [
        ("{", "Expecting"),
        ("", "Expecting value"),
        ("[1]", "no JSON object"),
        ({"gold": None}, "'gold' is none of the choices 0 to 1"),
        ({"gold": 2}, "'gold' is none"),
        ({"gold": True}, "'gold' is none"),
        ({"nll": [1.0]}, "'nll' is no list of two or more"),
        ({"nll": [1.0, float("nan")]}, "finite"),
        ({"nll": "ab"}, "'nll'"),
        ({"length": [1]}, "'length'"),
        ({"length": [1, 0]}, "positive"),
        ({"task": 3}, "'task' is no text"),
        ({"task": "other"}, "the task is 'other'"),
        ({"item": None}, "'item' is neither"),
        ({"item": 1}, "the item 1 was there before"),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, second: Any, words: str) -> None:
    path = tmp_path / "quiz.jsonl"
    line = second if isinstance(second, str) else json.dumps(ROW | {"item": 2} | second)
    path.write_text(f"{json.dumps(ROW)}\n{line}\n")
    with pytest.raises(DataError, match=f"line 2, .*{words}") as caught:
        read_log(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("key", list(ROW))
def test_a_missing_key_is_named(tmp_path: Path, key: str) -> None:
    path = tmp_path / "quiz.jsonl"
    path.write_text(json.dumps({name: value for name, value in ROW.items() if name != key}))
    with pytest.raises(DataError, match=f"'{key}' is missing"):
        read_log(path)


@pytest.mark.parametrize(("content", "words"), [(None, "does not exist"), (b"", "is empty"), (b"\xff", "could not be")])
def test_no_log_at_all(tmp_path: Path, content: bytes | None, words: str) -> None:
    path = tmp_path / "quiz.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=words):
        read_log(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"task": "other"}, "the task of item 2 is 'quiz' in a and 'other' in b"),
        ({"item": 8}, "the name of item 2 is 7 in a and 8 in b"),
        ({"gold": 2}, "the right choice of item 2 is 0 in a and 2 in b"),
        ({"nll": (1.0, 2.0), "length": (1, 1)}, "the number of choices of item 2 is 3 in a and 2 in b"),
    ],
)
def test_the_first_difference_is_named(change: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        require_paired(ITEMS, (ITEMS[0], replace(ITEMS[1], **change)), ("a", "b"))


def test_logs_of_different_lengths() -> None:
    with pytest.raises(DataError, match="a holds 2 items, and b 1"):
        require_paired(ITEMS, ITEMS[:1], ("a", "b"))
    require_paired(ITEMS, tuple(replace(one, nll=one.nll[::-1]) for one in ITEMS))
