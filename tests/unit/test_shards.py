"""Tensors go into safetensors folders and come back as they were, one by one."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from sned.canon import sample_indices
from sned.checkpoint.shards import ShardReader, ShardWriter
from sned.errors import CheckpointError

WEIGHTS = {
    "a.weight": torch.arange(60, dtype=torch.float32).reshape(6, 10),
    "b.weight": torch.linspace(-3, 3, 4096).to(torch.bfloat16).reshape(64, 64),
    "c.bias": torch.tensor([1.5, -2.5], dtype=torch.float16),
    "d.scalar": torch.tensor(7),
    "e.empty": torch.empty(0, 4),
    "f.mask": torch.tensor([True, False, True]),
}


def write(folder: Path, tensors: dict[str, torch.Tensor] = WEIGHTS, **options: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    with ShardWriter(folder, **options) as writer:
        for name, tensor in tensors.items():
            writer.add(name, tensor)
    return folder


@pytest.fixture
def single(tmp_path: Path) -> Path:
    return write(tmp_path / "single")


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return write(tmp_path / "sharded", max_shard_bytes=300)


@pytest.mark.parametrize("limit", [1, 300, 5_000_000_000])
def test_every_tensor_comes_back_as_it_was(tmp_path: Path, limit: int) -> None:
    with ShardReader(write(tmp_path / "out", max_shard_bytes=limit)) as reader:
        assert reader.names == tuple(sorted(WEIGHTS))
        assert reader.total_bytes == sum(t.numel() * t.element_size() for t in WEIGHTS.values())
        for name, tensor in WEIGHTS.items():
            assert torch.equal(reader.tensor(name), tensor)
            assert (reader.shape(name), reader.dtype(name)) == (tuple(tensor.shape), tensor.dtype)
            assert reader.nbytes(name) == tensor.numel() * tensor.element_size()


def test_what_is_written_loads_in_transformers_with_the_same_logits(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        dtype=torch.float32,
    )
    model = LlamaForCausalLM(config).eval()
    folder = write(tmp_path / "out", dict(model.state_dict()), max_shard_bytes=4000)
    config.save_pretrained(folder)
    assert (folder / "model.safetensors.index.json").is_file()
    loaded = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = torch.arange(32)[None]
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, model(ids).logits)


def test_one_shard_has_the_plain_name_and_several_have_an_index(single: Path, sharded: Path) -> None:
    assert sorted(p.name for p in single.iterdir()) == ["config.json", "model.safetensors"]
    names = sorted(p.name for p in sharded.glob("*.safetensors"))
    assert names[0] == f"model-00001-of-{len(names):05d}.safetensors"
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == ShardReader(single).total_bytes
    assert set(index["weight_map"].values()) == set(names)


def test_the_same_tensors_give_the_same_bytes(tmp_path: Path, sharded: Path) -> None:
    again = write(tmp_path / "again", max_shard_bytes=300)
    for path in sharded.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes()


def test_shards_obey_the_umask(single: Path) -> None:
    assert (single / "model.safetensors").stat().st_mode == (single / "config.json").stat().st_mode


def test_views_and_shared_tensors_are_written_whole(tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    views = {"t": base.T, "row": base[1], "tied": base, "tied2": base, "param": torch.nn.Parameter(base)}
    reader = ShardReader(write(tmp_path / "out", views))
    for name, view in views.items():
        assert torch.equal(reader.tensor(name), view)


def test_a_name_is_written_once_only(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path)
    writer.add("x", torch.ones(1))
    with pytest.raises(ValueError, match=r"'x'.*twice"):
        writer.add("x", torch.ones(1))


def test_an_exception_removes_the_shards_written_so_far(tmp_path: Path) -> None:
    def interrupted() -> None:
        with ShardWriter(tmp_path, max_shard_bytes=1) as writer:
            writer.add("x", torch.ones(1))
            writer.add("y", torch.ones(1))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_a_writer_refuses_a_folder_with_weights(single: Path) -> None:
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        ShardWriter(single)


def test_a_tensor_is_the_callers_to_change(single: Path) -> None:
    reader = ShardReader(single)
    reader.tensor("a.weight").zero_()
    assert torch.equal(reader.tensor("a.weight"), WEIGHTS["a.weight"])


def test_threads_share_a_reader(sharded: Path) -> None:
    reader = ShardReader(sharded)
    names = list(WEIGHTS) * 50
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(reader.tensor, names))
    assert all(torch.equal(tensor, WEIGHTS[name]) for name, tensor in zip(names, read, strict=True))


def test_a_closed_reader_opens_again(single: Path) -> None:
    reader = ShardReader(single)
    reader.tensor("a.weight")
    reader.close()
    assert torch.equal(reader.tensor("a.weight"), WEIGHTS["a.weight"])


def test_an_unknown_tensor_is_named(single: Path) -> None:
    with pytest.raises(CheckpointError, match=r"single holds no tensor named 'nope'"):
        ShardReader(single).tensor("nope")


@pytest.mark.parametrize("count", [1, 7, 64, 4095, 4096, 10_000])
@pytest.mark.parametrize("name", WEIGHTS)
def test_a_sample_is_those_elements_of_the_tensor(single: Path, name: str, count: int) -> None:
    reader = ShardReader(single)
    flat = reader.tensor(name).flatten()
    expected = flat[sample_indices(flat.numel(), count)].float()
    assert torch.equal(reader.sample(name, count), expected)


def test_sample_positions_are_even_distinct_and_start_at_zero() -> None:
    for numel, count in ((10, 3), (4096, 64), (7, 7), (5, 100), (10**10, 1000)):
        positions = torch.tensor(sample_indices(numel, count))
        gaps = positions.diff()
        assert positions[0] == 0
        assert positions[-1] < numel
        assert len(positions) == min(numel, count)
        assert gaps.min() >= 1
        assert gaps.max() - gaps.min() <= 1
    assert len(sample_indices(0, 5)) == 0
    with pytest.raises(ValueError, match="at least one"):
        sample_indices(10, 0)


def test_a_shard_that_shrinks_while_it_is_open(single: Path) -> None:
    reader = ShardReader(single)
    os.truncate(single / "model.safetensors", 1000)
    with pytest.raises(CheckpointError, match=r"model\.safetensors could not be read: the file ends \d+ bytes early"):
        reader.tensor("b.weight")
