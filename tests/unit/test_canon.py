"""Canonical forms: one spelling per value, so that equal plans have equal digests everywhere."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sned.canon import canonical_json, digest, format_span, parse_span

SOURCE = Path(__file__).parents[2] / "src"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"b": 1, "a": [1.5, None, True]}, '{"a":[1.5,null,true],"b":1}'),
        ({"z": {"y": 0, "x": 0}}, '{"z":{"x":0,"y":0}}'),
        ((1, 2), "[1,2]"),
        ("größe", '"größe"'),
        (0.1, "0.1"),
    ],
)
def test_json_has_one_spelling(value: Any, text: str) -> None:
    assert canonical_json(value) == text
    assert canonical_json(json.loads(text)) == text


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"a": [-float("inf")]}])
def test_json_refuses_what_other_readers_cannot_read(value: Any) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        canonical_json(value)


def test_digest_ignores_key_order_but_not_content() -> None:
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})
    assert digest([1, 2]) != digest([2, 1])


def test_digest_of_bytes_is_their_plain_sha256() -> None:
    expected = hashlib.sha256(b"weights").hexdigest()
    assert {digest(kind(b"weights")) for kind in (bytes, bytearray, memoryview)} == {expected}


def test_digest_does_not_depend_on_the_process() -> None:
    code = "from sned.canon import digest; print(digest({'ops': ['x', 1], 'a': {'c', }.pop()}))"
    env = {**os.environ, "PYTHONPATH": str(SOURCE)}
    runs = [
        subprocess.check_output([sys.executable, "-c", code], env={**env, "PYTHONHASHSEED": seed}, text=True)
        for seed in ("1", "2")
    ]
    assert [run.strip() for run in runs] == [digest({"ops": ["x", 1], "a": "c"})] * 2


@pytest.mark.parametrize(
    ("indices", "text"),
    [
        ([], ""),
        ([5], "5"),
        ([3, 4], "3-4"),
        (range(64), "0-63"),
        ([70, 0, 1, 2, 2], "0-2,70"),
        ([0, 2, 4], "0,2,4"),
    ],
)
def test_spans_read_back_as_ascending_distinct_indices(indices: Any, text: str) -> None:
    assert format_span(indices) == text
    assert parse_span(text) == tuple(sorted(set(indices)))


def test_span_accepts_what_a_person_types() -> None:
    assert parse_span("70, 0-2,1") == (0, 1, 2, 70)


@pytest.mark.parametrize("text", ["a", "1-", "-1", "1-2-3", "1.5", "4-2", "1;2"])
def test_span_names_the_part_it_cannot_read(text: str) -> None:
    with pytest.raises(ValueError, match=text):
        parse_span(f"0,{text}")
