"""Tokens in files: saved, loaded, and taken as they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sned.data.packing import tokenizer_digest
from sned.data.tokens import Tokens
from sned.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path


def words(*vocabulary: str) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(("?", *vocabulary))}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="?")


@pytest.fixture
def plain() -> PreTrainedTokenizerFast:
    return words("a", "b", "c", ".")


@pytest.fixture
def corpus(tmp_path: Path) -> str:
    (tmp_path / "corpus.txt").write_text("a b c . " * 200)
    return f"file:{tmp_path}/corpus.txt"


def of(ids: object) -> Tokens:
    return Tokens(torch.as_tensor(ids), "here")


def test_saved_tokens_come_back(tmp_path: Path, corpus: str, plain: PreTrainedTokenizerFast) -> None:
    tokens = Tokens.from_source(corpus, plain, tokens=512, seq_len=64, seed=5)
    path, again = tmp_path / "t.safetensors", tmp_path / "again.safetensors"
    tokens.save(path)
    loaded = Tokens.load(path)
    assert torch.equal(loaded.ids, tokens.ids)
    assert (loaded.source, loaded.seed, loaded.tokenizer, loaded.digest) == (
        corpus, 5, tokenizer_digest(plain), tokens.digest,
    )  # fmt: skip
    loaded.save(again)
    assert again.read_bytes() == path.read_bytes()
    taken = Tokens.from_source(f"tokens:{path}", plain, tokens=2, seq_len=2)
    assert (taken.digest, taken.source) == (tokens.digest, f"tokens:{path}")
    assert sorted(tmp_path.glob(".*")) == [], "nothing half-written remains"


def test_tokens_of_another_tokenizer(tmp_path: Path, corpus: str, plain: PreTrainedTokenizerFast) -> None:
    Tokens.from_source(corpus, plain, tokens=512, seq_len=64).save(tmp_path / "t.safetensors")
    with pytest.raises(DataError, match="another tokenizer"):
        Tokens.from_source(f"tokens:{tmp_path}/t.safetensors", words("b", "a", "c", "."))


@pytest.mark.parametrize("dtype", ["uint16", "int32", "int64"])
def test_arrays_are_taken_as_they_are(tmp_path: Path, dtype: str) -> None:
    array = np.arange(12, dtype=dtype).reshape(3, 4)
    np.save(tmp_path / "a.npy", array)
    save_file({"input_ids": torch.from_numpy(array.astype("int64"))}, tmp_path / "a.safetensors")
    for name in ("a.npy", "a.safetensors"):
        tokens = Tokens.from_source(f"tokens:{tmp_path / name}", None, vocab_size=12)
        assert tokens.ids.tolist() == array.tolist()
        with pytest.raises(DataError, match=r"id 11 \(window 2, position 3\) is outside .* of 11"):
            Tokens.from_source(f"tokens:{tmp_path / name}", None, vocab_size=11)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 4)), "holds float64, not integer"),
        (np.zeros((2, 4), dtype=bool), "holds bool, not integer"),
        (np.zeros(8, dtype=int), r"shape \[8\]; token ids are \[windows, length\]"),
        (np.zeros((0, 4), dtype=int), r"shape \[0, 4\]"),
        (np.zeros((4, 1), dtype=int), r"shape \[4, 1\]"),
        (np.full((1, 2), -1), "id -1 .* outside a vocabulary"),
        (np.array([{}], dtype=object), "not a whole .npy file"),
    ],
)
def test_arrays_that_are_not_tokens(tmp_path: Path, array: np.ndarray, message: str) -> None:
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(DataError, match=message):
        Tokens.from_source(f"tokens:{tmp_path}/a.npy", None)


def test_files_that_are_not_tokens(tmp_path: Path, plain: PreTrainedTokenizerFast) -> None:
    (tmp_path / "a.txt").write_text("words")
    (tmp_path / "a.safetensors").write_bytes(b"words that are not tensors")
    save_file({"a": torch.zeros(2, 2), "b": torch.zeros(2, 2)}, tmp_path / "two.safetensors")
    save_file({"a": torch.zeros(2, 2)}, tmp_path / "float.safetensors")
    for name, message in (
        ("a.txt", r"suffix '\.txt'"),
        ("a.safetensors", "not a whole safetensors file"),
        ("two.safetensors", r"2 tensors \(a, b\), and none is called 'ids'"),
        ("float.safetensors", "holds float32, not integer"),
        ("none.npy", "does not exist"),
    ):
        with pytest.raises(DataError, match=message):
            Tokens.from_source(f"tokens:{tmp_path / name}", plain)


def test_corrupt_or_foreign_files_do_not_load(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    of([[1, 2], [3, 4]]).save(path)
    data = bytearray(path.read_bytes())
    data[-8] ^= 1
    path.write_bytes(data)
    for read in (Tokens.load, lambda p: Tokens.from_source(f"tokens:{p}", None)):
        with pytest.raises(DataError, match="is corrupt"):
            read(path)
    np.save(tmp_path / "a.npy", np.ones((2, 2), dtype=int))
    with pytest.raises(DataError, match="not written by sned"):
        Tokens.load(tmp_path / "a.npy")
    with pytest.raises(DataError, match="could not be written"):
        of([[1, 2]]).save(tmp_path / "no" / "such" / "t.safetensors")
