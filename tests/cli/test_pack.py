"""Packing a pruned model from the command line, using it as it lies there, and unpacking it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
import torch
from kit.compare import assert_same_logits, logits
from kit.packing import halved, save_zeroed, tree
from kit.tiny import save_model_folder

import sned as package
from sned.checkpoint.packing import is_packed

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from .conftest import Outcome

TEXT = ["--eval", "random", "--eval-tokens", "64", "--seq-len", "16"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SNED_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint half of zeros, in the working directory."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return halved(tmp_path / "work" / "half")


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_a_pruned_model_there_and_back(sned: Callable[..., Outcome], tmp_path: Path, dtype: str) -> None:
    model, out, packed = save_model_folder(tmp_path / "model", "llama"), tmp_path / "out", tmp_path / "packed"
    pruned = sned("prune", model, "-m", "magnitude", "--sparsity", "50%", "--dtype", dtype, *TEXT, "-o", out, "--quiet")
    assert pruned.code == 0, pruned.err

    done = sned("pack", out, "-o", packed, "--json")
    assert done.code == 0, done.err
    tensors = done.document["tensors"]
    assert tensors["sparsity"] == pytest.approx(0.5, abs=1e-3)
    assert tensors["bits"] == (16 if dtype == "bf16" else 32)
    assert tensors["theory"] == pytest.approx(1 / tensors["bits"] + 0.5, abs=1e-3)
    assert tensors["ratio"] == pytest.approx(tensors["theory"], abs=1e-3)
    assert done.document["weights"]["bytes_before"] == (out / "model.safetensors").stat().st_size
    assert (packed / "sned" / "sparsity.json").is_file()
    assert (packed / "README.md").read_bytes() == (out / "README.md").read_bytes()

    with torch.no_grad():
        dense, loaded = package.load(str(out)), package.load(str(packed))
        assert_same_logits(logits(loaded.view.model), logits(dense.view.model), exact=True)
    measured = sned("eval", packed, "--against", out, *TEXT, "--json")
    assert measured.code == 0, measured.err
    assert measured.document["quality"]["kl"] == 0
    assert sned("show", packed, "--json").document["digest"] == sned("show", out, "--json").document["digest"]

    assert sned("unpack", packed, "-o", tmp_path / "again", "--quiet").code == 0
    assert tree(tmp_path / "again") == tree(out)


def test_it_says_what_was_saved_and_what_does_not_load_it(sned: Callable[..., Outcome], half: Path) -> None:
    got = sned("pack", "half", "-o", "packed")
    assert got.code == 0
    said = " ".join(got.out.split())
    for part in ("all weights", "2 packed tensors of 4", "in theory", "50.0%", "Packed packed", "byte for byte"):
        assert part in said
    assert "Plain transformers does not load it" in said
    assert "sned unpack packed -o OUT" in said
    for task in ("count zeros", "pack", "verify"):
        assert f"{task} ..." in got.err
    assert is_packed(half.with_name("packed"))

    got = sned("unpack", "packed", "-o", "again")
    assert got.code == 0
    assert "Unpacked  again" in got.out
    assert "model-00002-of-00002.safetensors" in got.out
    assert "unpack ..." in got.err
    document = sned("unpack", "packed", "-o", "again", "--overwrite", "--json").document
    assert [file["file"] for file in document["files"]] == sorted(path.name for path in half.glob("*.safetensors"))


def test_plain_transformers_does_not_load_it(sned: Callable[..., Outcome], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    assert sned("pack", save_zeroed(tmp_path / "out", "llama"), "-o", tmp_path / "packed").code == 0
    with pytest.raises(OSError, match=r"model\.safetensors"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "packed")


def test_the_model_that_is_read_is_not_replaced(sned: Callable[..., Outcome], tmp_path: Path) -> None:
    packed = tmp_path / "packed"
    assert sned("pack", save_zeroed(tmp_path / "out", "llama"), "-o", packed).code == 0
    before = tree(packed)
    got = sned("prune", packed, "-m", "magnitude", "--sparsity", "60%", *TEXT, "-o", packed, "--overwrite")
    assert got.code == 8
    assert f"{packed} is the model itself" in got.err
    assert tree(packed) == before


def test_mistakes_end_in_one_message(sned: Callable[..., Outcome], half: Path) -> None:
    assert sned("pack", "half", "-o", "packed").code == 0
    mistakes = {
        ("pack", "packed", "-o", "twice"): "packed is packed already",
        ("pack", "nope", "-o", "out"): "nope does not exist",
        ("pack", "half", "-o", "packed"): "already holds a result of sned",
        ("pack", "half", "-o", "half", "--overwrite"): "are the same folder",
        ("unpack", "half", "-o", "out"): "half has no packed.json",
        ("unpack", "packed", "-o", "half"): "not written by sned",
    }
    for typed, message in mistakes.items():
        got = sned(*typed)
        assert (got.code, got.out) == (8, "")
        assert message in got.err
        assert "hint: " in got.err
    os.truncate("packed/packed-00001-of-00002.safetensors", 500)
    for typed in (("unpack", "packed", "-o", "out"), ("inspect", "packed")):
        got = sned(*typed)
        assert got.code == 8
        assert "packed-00001-of-00002.safetensors is truncated" in got.err


def test_a_packed_file_that_is_wrong_has_its_own_exit_code(
    sned: Callable[..., Outcome], half: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sned.checkpoint.packed_file.pack", lambda bits: torch.zeros(-(-len(bits) // 8)).byte())
    got = sned("pack", "half", "-o", "packed")
    assert got.code == 10
    assert "does not come back" in got.err
    assert not half.with_name("packed").exists()
