"""A checkpoint without its zeros is smaller, anybody can read it, and it comes back the same to the byte."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from kit.packing import HALF, back, folder_of, halved, save_zeroed, there, tree
from kit.tiny import LAYERS

from sned.checkpoint import packed_file
from sned.checkpoint.locate import cache_folder, locate
from sned.checkpoint.shards import ShardReader
from sned.errors import CheckpointError


@pytest.fixture
def half(tmp_path: Path) -> Path:
    return halved(tmp_path / "half")


@pytest.fixture
def packed(half: Path) -> Path:
    there(half)
    return half.with_name("packed")


def round_trip(folder: Path) -> dict[str, Any]:
    done = there(folder)
    assert tree(back(folder)) == tree(folder)
    return done


# There and back


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("name", ["llama", "qwen3"])  # untied and tied
@pytest.mark.parametrize("shards", ["5GB", "40KB"])
def test_every_file_of_a_model_comes_back(tmp_path: Path, name: str, dtype: torch.dtype, shards: str) -> None:
    folder = save_zeroed(tmp_path / "model", name, dtype, max_shard_size=shards)
    for side in ("README.md", "sned/sparsity.json", "sned/plan.safetensors", "original/deep/x.bin", ".gitattributes"):
        (folder / side).parent.mkdir(parents=True, exist_ok=True)
        (folder / side).write_bytes(side.encode())
    assert (len(list(folder.glob("model*.safetensors"))) > 1) == (shards == "40KB")
    tensors = round_trip(folder)["tensors"]
    assert tensors["packed"] == 7 * LAYERS
    theory = 1 / (8 * dtype.itemsize) + 1 - tensors["sparsity"]
    assert tensors["ratio"] == pytest.approx(tensors["theory"], rel=1e-6) == pytest.approx(theory)
    assert (folder.with_name("packed") / "sned" / "sparsity.json").read_bytes() == b"sned/sparsity.json"


def test_only_plus_zero_is_left_out(tmp_path: Path) -> None:
    odd = [0.0, -0.0, float("nan"), float("inf"), -float("inf"), 1e-45, -1e-45, 0.0]
    tensors = {str(kind): torch.tensor(odd).repeat(40).to(kind) for kind in (torch.float32, torch.float64)}
    tensors |= {
        "half": torch.tensor([0, 0x8000, 0x7E01, 1] * 60, dtype=torch.int32).to(torch.uint16).view(torch.float16),
        "eight": torch.tensor([0, 0, 0x80, 0x7F] * 60, dtype=torch.uint8).view(torch.float8_e4m3fn),
        "zero": torch.zeros(7, 11),
        "integers": torch.tensor([0, 0, 0, -3] * 9),
        "bools": torch.tensor([False, False, False, True, False] * 9),
        "scalar": torch.tensor(0.0),
        "empty": torch.empty(0, 4),
    }
    done = round_trip(folder_of(tmp_path / "odd", tensors))
    assert done["tensors"]["of"] == len(tensors)
    found = safetensors.torch.load_file(tmp_path / "packed" / "packed.safetensors")
    assert int((found["torch.float32.values"] == 0).sum()) == 40, "the negative ones are kept"
    assert found["zero.values"].numel() == 0
    assert "empty" in found


@pytest.mark.parametrize("dtype", [torch.int8, torch.bfloat16, torch.float32, torch.float64])
def test_a_tensor_is_packed_only_where_that_is_smaller(tmp_path: Path, dtype: torch.dtype) -> None:
    bits = 8 * dtype.itemsize
    even, more = torch.ones(bits * 8), torch.ones(bits * 8)
    even[:8], more[:9] = 0, 0
    done = round_trip(folder_of(tmp_path / "model", {"even": even.to(dtype), "more": more.to(dtype)}))
    names = set(safetensors.torch.load_file(tmp_path / "packed" / "packed.safetensors"))
    assert names == {"even", "more.mask", "more.values"}
    assert done["tensors"] | {"packed": 1, "of": 2, "zeros": 9, "values": 8 * bits, "bits": bits} == done["tensors"]
    assert done["tensors"]["bytes_after"] == done["tensors"]["bytes_before"] - dtype.itemsize


def test_names_that_are_taken_are_left_alone(tmp_path: Path) -> None:
    tensors = dict.fromkeys(("x", "x.mask", "y", "y.values", "z.mask.mask", "z"), HALF)
    round_trip(folder_of(tmp_path / "model", tensors))
    names = set(safetensors.torch.load_file(tmp_path / "packed" / "packed.safetensors"))
    assert {"x", "y", "z.mask", "z.values", "x.mask.mask", "z.mask.mask.mask"} <= names


def test_a_file_of_another_writer_comes_back_as_it_was(tmp_path: Path) -> None:
    """Its tensors lie in an order of their own, misaligned, under a header with blanks and notes."""
    folder = folder_of(tmp_path / "model", {"x": HALF})
    entry = {"dtype": "BF16", "shape": [32, 32], "data_offsets": [3, 2051]}
    header = {
        "ä": entry,
        "__metadata__": {"note": "\u2028\0"},
        "a": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]},
    }
    text = (json.dumps(header, ensure_ascii=False, indent=2) + " \n\t ").encode()
    content = len(text).to_bytes(8, "little") + text + b"abc" + HALF.view(torch.uint8).numpy().tobytes()
    (folder / "model.safetensors").write_bytes(content)
    round_trip(folder)


def test_the_same_checkpoint_gives_the_same_packed_folder(half: Path, packed: Path) -> None:
    before = tree(packed)
    there(half)
    assert tree(packed) == before


# What lies there


def test_anybody_can_read_it(half: Path, packed: Path) -> None:
    """With the safetensors library and numpy alone."""
    contents = json.loads((packed / "packed.json").read_text())
    assert contents["format"] == 1
    assert [file["packed"] for file in contents["files"]] == [
        "packed-00001-of-00002.safetensors",
        "packed-00002-of-00002.safetensors",
    ]
    for file, (name, matrix) in zip(contents["files"], [("a", HALF), ("b", HALF.float())], strict=True):
        found = safetensors.torch.load_file(packed / file["packed"])
        assert set(found) == {f"{name}.mask", f"{name}.values", f"{name}.norm"}
        shape = json.loads(file["header"])[name]["shape"]
        bits = np.unpackbits(found[f"{name}.mask"].numpy(), count=np.prod(shape)).astype(bool)
        dense = np.zeros(bits.shape, np.float32)
        dense[bits] = found[f"{name}.values"].float().numpy()
        assert np.array_equal(dense.reshape(shape), matrix.float().numpy())
        assert found[f"{name}.values"].dtype == matrix.dtype
        original = (half / file["original"]).read_bytes()
        assert hashlib.sha256(original).hexdigest() == file["sha256"]
    index = "model.safetensors.index.json"
    assert (packed / index).read_bytes() == (half / index).read_bytes()


def test_every_tensor_of_it_is_aligned(tmp_path: Path) -> None:
    tensors = {"a": torch.tensor([0.0, 1.0] * 13), "b": torch.tensor([0, 5] * 99, dtype=torch.int64), "c": HALF}
    there(folder_of(tmp_path / "model", tensors))
    path = tmp_path / "packed" / "packed.safetensors"
    for entry in packed_file.read_header(path).values():
        assert entry.offset % entry.dtype.itemsize == 0


def test_no_more_than_a_piece_is_in_memory(half: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, fill = [], packed_file.fill

    def counting(file: Any, into: memoryview) -> None:
        read.append(len(into))
        fill(file, into)

    monkeypatch.setattr(packed_file, "PIECE", 192)
    monkeypatch.setattr(packed_file, "fill", counting)
    there(half)
    assert max(read[: len(read) // 2]) == 192
    read.clear()
    assert tree(back(half)) == tree(half)
    assert 96 <= max(read) <= 192


# As a model


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SNED_CACHE", str(tmp_path / "cache"))
    return cache_folder() / "packed"


def test_a_packed_folder_is_unpacked_once(half: Path, packed: Path, cache: Path) -> None:
    found = locate(str(packed))
    assert found.parent == cache
    assert tree(found) == tree(half)
    written = (found / "config.json").stat().st_mtime_ns
    assert locate(str(packed)) == found
    assert (found / "config.json").stat().st_mtime_ns == written


def test_a_packed_folder_that_changed_is_unpacked_anew(half: Path, packed: Path, cache: Path) -> None:
    first = locate(str(packed))
    (packed / "config.json").write_text('{"model_type": "mistral"}')
    second = locate(str(packed))
    assert second != first
    assert "mistral" in (second / "config.json").read_text()
    os.truncate(packed / "packed-00002-of-00002.safetensors", 700)
    with pytest.raises(CheckpointError, match=r"packed-00002-of-00002\.safetensors is truncated"):
        locate(str(packed))
    assert [path for path in cache.iterdir() if path.is_dir() and path not in (first, second)] == []


def test_a_damaged_copy_in_the_cache_is_made_again(half: Path, packed: Path, cache: Path) -> None:
    found = locate(str(packed))
    os.truncate(found / "model-00001-of-00002.safetensors", 20)
    assert ShardReader(locate(str(packed))).names == ("a", "a.norm", "b", "b.norm")
