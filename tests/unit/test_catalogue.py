"""Every way in which a model folder can be broken is refused with a message that names the file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sned.checkpoint.shards import ShardReader, ShardWriter
from sned.errors import CheckpointError

WEIGHTS = {name: torch.arange(60, dtype=torch.float32) for name in ("a.weight", "b.weight", "c.weight")}
F32 = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}


def write(folder: Path, limit: int) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    with ShardWriter(folder, limit) as writer:
        for name, tensor in WEIGHTS.items():
            writer.add(name, tensor)
    return folder


@pytest.fixture
def single(tmp_path: Path) -> Path:
    return write(tmp_path / "single", 5_000)


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return write(tmp_path / "sharded", 300)


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        ShardReader(folder)
    assert caught.value.exit_code == 8
    return str(caught.value)


def test_a_missing_folder(tmp_path: Path) -> None:
    assert f"{tmp_path / 'nope'} does not exist" in refusal(tmp_path / "nope")


def test_a_file_instead_of_a_folder(single: Path) -> None:
    assert "is a file, not a model folder" in refusal(single / "config.json")


def test_no_config(single: Path) -> None:
    (single / "config.json").unlink()
    assert f"{single} has no config.json" in refusal(single)


def test_a_config_that_is_not_json(single: Path) -> None:
    (single / "config.json").write_text('{"model_type": ')
    assert f"{single / 'config.json'} is not readable JSON" in refusal(single)


def test_an_adapter_is_to_be_merged_first(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "merge_and_unload" in refusal(tmp_path)


def test_a_folder_with_only_a_gguf_points_at_it(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").touch()
    assert str(tmp_path / "m.gguf") in refusal(tmp_path)


def test_no_weights(single: Path) -> None:
    (single / "model.safetensors").rename(single / "consolidated.safetensors")
    message = refusal(single)
    assert f"{single} has no weights" in message
    assert "consolidated.safetensors" in message


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_pickles_are_refused_with_the_way_to_convert_them(single: Path, name: str) -> None:
    (single / "model.safetensors").unlink()
    (single / name).write_bytes(b"\x80\x04")
    message = refusal(single)
    assert name in message
    assert "use_safetensors=False" in message
    assert "save_pretrained" in message


@pytest.mark.parametrize("text", ["{", "[1]", "{}", '{"weight_map": {}}', '{"weight_map": {"x": 3}}', "\xff"])
def test_a_broken_index(sharded: Path, text: str) -> None:
    index = sharded / "model.safetensors.index.json"
    index.write_bytes(text.encode("latin-1"))
    assert str(index) in refusal(sharded)


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/x.safetensors", "a/../../x", "..\\x", "C:\\x", "\\\\h\\x"])
def test_an_index_that_leads_outside_its_folder(sharded: Path, name: str) -> None:
    index = sharded / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a.weight": name}}))
    message = refusal(sharded)
    assert "outside its folder" in message
    assert repr(name) in message


def test_an_index_with_a_missing_shard(sharded: Path) -> None:
    victim = sorted(sharded.glob("model-*.safetensors"))[1]
    victim.unlink()
    assert f"names {victim.name!r}, but there is no such file" in refusal(sharded)


def test_an_index_with_a_tensor_that_its_shard_lacks(sharded: Path) -> None:
    index = sharded / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["ghost.weight"] = content["weight_map"]["a.weight"]
    index.write_text(json.dumps(content))
    message = refusal(sharded)
    assert "ghost.weight" in message
    assert content["weight_map"]["a.weight"] in message


def test_links_into_a_blob_store_are_followed(single: Path, tmp_path: Path) -> None:
    blob = tmp_path / "blobs" / "0123abcd"
    blob.parent.mkdir()
    (single / "model.safetensors").rename(blob)
    (single / "model.safetensors").symlink_to("../blobs/0123abcd")
    assert torch.equal(ShardReader(single).tensor("a.weight"), WEIGHTS["a.weight"])


@pytest.mark.parametrize("keep", [0, 5, 8, 100, -1])
def test_a_truncated_shard(single: Path, keep: int) -> None:
    path = single / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:keep])
    message = refusal(single)
    assert str(path) in message
    if keep == -1:
        assert f"describes {len(data)} bytes" in message
        assert f"the file has {len(data) - 1}" in message


def test_a_shard_with_bytes_to_spare(single: Path) -> None:
    path = single / "model.safetensors"
    path.write_bytes(path.read_bytes() + b"\0")
    assert "belong to no tensor" in refusal(single)


def header(path: Path, value: object) -> None:
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(16))


@pytest.mark.parametrize(
    "value",
    [
        b"not json",
        b"\xff\xfe",
        [1, 2],
        {"x": 1},
        {"x": {}},
        {"x": {**F32, "data_offsets": [0]}},
        {"x": {**F32, "data_offsets": [0, 8]}},
        {"x": {**F32, "data_offsets": [-16, 0]}},
        {"x": {**F32, "data_offsets": [0, 16.0]}},
        {"x": {**F32, "shape": [2.0, 2.0]}},
        {"x": {**F32, "dtype": "F13"}},
        {"x": F32, "y": F32},
        {"x": {**F32, "shape": [3], "data_offsets": [4, 16]}},
    ],
)
def test_a_corrupt_header(single: Path, value: object) -> None:
    header(single / "model.safetensors", value)
    assert str(single / "model.safetensors") in refusal(single)


def test_a_header_of_absurd_length(single: Path) -> None:
    (single / "model.safetensors").write_bytes(b"\xff" * 64)
    assert "does not fit" in refusal(single)
