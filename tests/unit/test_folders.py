"""A result folder is whole or absent, whatever happens, and takes no place that it must not take."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from safetensors import SafetensorError

from sned.checkpoint.shards import ShardWriter, atomic_folder, check_output, free_bytes
from sned.errors import CheckpointError

Body = Callable[[Path], object]


def make(out: Path, body: Body, *, overwrite: bool = False) -> None:
    with atomic_folder(out, overwrite=overwrite) as folder:
        body(folder)


def never(_folder: Path) -> None:
    pytest.fail("the block must not start")


def one_file(folder: Path) -> None:
    (folder / "new").write_text("new")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# Disks that are full


def disk_full(*_args: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def disk_full_in_library(*_args: object) -> None:
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize("failure", [disk_full, disk_full_in_library])
@pytest.mark.parametrize("shards_before", [0, 2])
def test_a_full_disk_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Callable[[], None], shards_before: int
) -> None:
    real, out, written = safetensors.torch.save_file, tmp_path / "runs" / "out", []

    def save(tensors: dict[str, torch.Tensor], path: Path, **options: dict[str, str]) -> None:
        if len(written) == shards_before:
            path.write_bytes(b"half")
            failure()
        written.append(path.name)
        real(tensors, path, **options)

    def write(folder: Path) -> None:
        with ShardWriter(folder, max_shard_bytes=300) as writer:
            for number in range(5):
                writer.add(f"{number}.weight", torch.ones(60))

    monkeypatch.setattr("safetensors.torch.save_file", save)
    with pytest.raises(CheckpointError) as caught:
        make(out, write)
    assert caught.value.exit_code == 8
    for part in (f"could not write into {out}: ", "No space left on device", "240 B were to be written", "are free"):
        assert part in str(caught.value)
    assert names(tmp_path) == []


def test_a_full_disk_under_any_other_write_is_told_too(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=rf"could not write into {tmp_path}/out.*No space left"):
        make(tmp_path / "out", disk_full)
    assert names(tmp_path) == []


def test_a_place_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=rf"{tmp_path}/file is a file, and no folder can be in it"):
        make(tmp_path / "file" / "out", never)


def test_free_space_is_that_of_the_disk_a_new_folder_would_lie_on(tmp_path: Path) -> None:
    assert 0 < free_bytes(tmp_path / "not" / "yet" / "there") <= shutil.disk_usage(tmp_path).total


# Whole or absent


@pytest.mark.parametrize("problem", [KeyboardInterrupt(), ValueError("x"), FileNotFoundError("x")])
def test_an_exception_leaves_nothing_and_stays_itself(tmp_path: Path, problem: BaseException) -> None:
    def fail(folder: Path) -> None:
        (folder / "sned").mkdir()
        (folder / "sned" / "plan.json").touch()
        raise problem

    with pytest.raises(type(problem)):
        make(tmp_path / "a" / "b", fail)
    assert names(tmp_path) == []


def test_a_result_appears_whole(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"

    def body(folder: Path) -> None:
        one_file(folder)
        assert not out.exists()
        assert folder.parent == out.parent

    make(out, body)
    assert (names(out.parent), names(out)) == (["out"], ["new"])


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    make(tmp_path / "out", one_file)
    assert names(tmp_path / "out") == ["new"]


@pytest.fixture(params=["sned/report.json", "sned/plan.json", "plan.json", "thesis.tex"])
def taken(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    path = tmp_path / "out" / request.param
    path.parent.mkdir(parents=True)
    path.write_text("old")
    return path


def test_a_taken_folder_needs_overwrite(tmp_path: Path, taken: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        make(tmp_path / "out", never)
    assert caught.value.exit_code == 8
    assert str(tmp_path / "out") in str(caught.value)
    assert "--overwrite" in str(caught.value)
    assert ("not written by sned" in str(caught.value)) == (taken.name == "thesis.tex")
    assert taken.read_text() == "old"


def test_overwriting_replaces_only_once_the_new_is_whole(tmp_path: Path, taken: Path) -> None:
    def body(folder: Path) -> None:
        one_file(folder)
        assert taken.read_text() == "old"

    with pytest.raises(OSError, match="File exists"):
        make(tmp_path / "out", lambda folder: folder.mkdir(), overwrite=True)
    assert taken.read_text() == "old"
    make(tmp_path / "out", body, overwrite=True)
    assert (names(tmp_path), names(tmp_path / "out")) == (["out"], ["new"])


def test_the_old_comes_back_if_the_exchange_fails(tmp_path: Path, taken: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if ".partial-" in self.name:
            raise KeyboardInterrupt
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "out", one_file, overwrite=True)
    assert taken.read_text() == "old"
    assert names(tmp_path) == ["out"]


def test_a_folder_taken_meanwhile_is_not_lost(tmp_path: Path) -> None:
    def body(_folder: Path) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "theirs").touch()

    with pytest.raises(CheckpointError, match="not written by sned"):
        make(tmp_path / "out", body)
    assert (names(tmp_path), names(tmp_path / "out")) == (["out"], ["theirs"])


# Places that no result may take


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_is_never_replaced(tmp_path: Path, overwrite: bool) -> None:
    out = tmp_path / "out"
    out.write_text("old")
    with pytest.raises(CheckpointError, match=rf"{out} is a file"):
        make(out, never, overwrite=overwrite)
    assert out.read_text() == "old"


def test_the_root_home_and_working_directories_are_never_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, work = tmp_path / "users" / "me", tmp_path / "projects" / "here"
    home.mkdir(parents=True)
    work.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(work)
    for out in (Path("/"), Path("."), Path(".."), work, work.parent, home, home.parent, Path("~"), tmp_path):
        with pytest.raises(CheckpointError, match="must not replace"):
            check_output(out, overwrite=True)
    check_output(work / "out", overwrite=False)
    check_output(home / "out", overwrite=False)


def test_a_link_to_a_result_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "plan.json").touch()
    (tmp_path / "link").symlink_to("real")
    make(tmp_path / "link", one_file, overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert names(tmp_path / "real") == ["new"]
