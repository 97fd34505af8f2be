"""What cannot be packed or unpacked is refused with a message that says why, and nothing comes of it."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import safetensors.torch
import torch
from kit.packing import HALF, back, folder_of, halved, there, tree

from sned.checkpoint import packed_file
from sned.errors import CheckpointError, VerificationError
from sned.jobs.pack import pack, unpack
from sned.progress import SILENT

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def half(tmp_path: Path) -> Path:
    return halved(tmp_path / "half")


@pytest.fixture
def packed(half: Path) -> Path:
    there(half)
    return half.with_name("packed")


def refusal(act: Callable[[], object], kind: type[Exception] = CheckpointError) -> str:
    with pytest.raises(kind) as caught:
        act()
    assert type(caught.value) is kind
    assert getattr(caught.value, "hint", None)
    return str(caught.value)


def test_what_is_no_checkpoint(tmp_path: Path, half: Path) -> None:
    assert "does not exist" in refusal(lambda: there(tmp_path / "nope"))
    (half / "model-00002-of-00002.safetensors").unlink()
    assert "model-00002-of-00002.safetensors" in refusal(lambda: there(half))
    (half / "config.json").unlink()
    assert f"{half} has no config.json" in refusal(lambda: there(half))


def test_what_is_packed_already(packed: Path) -> None:
    message = refusal(lambda: pack(packed, packed.with_name("twice"), overwrite=False, progress=SILENT))
    assert f"{packed} is packed already" in message
    assert f"sned unpack {packed}" in message


def test_a_dense_model_has_nothing_to_pack(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "dense", {"x": torch.ones(64, 64)})
    assert "nothing to pack" in refusal(lambda: there(folder))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dense"]


def test_what_is_not_packed(half: Path) -> None:
    (bare := half.with_name("bare")).mkdir()
    for folder, part in ((half, "can be used as it is"), (bare, "sned pack"), (half / "no", "does not exist")):
        message = refusal(lambda: unpack(folder, half.with_name("out"), overwrite=False, progress=SILENT))  # noqa: B023
        assert str(folder) in message
        assert part in message


def test_a_link_to_a_folder_is_not_lost_silently(half: Path) -> None:
    (half / "more").symlink_to(half.parent)
    assert f"{half / 'more'} is a link to a folder" in refusal(lambda: there(half))


def test_files_with_the_names_of_others_are_not_overwritten(half: Path, packed: Path) -> None:
    (packed / "model-00001-of-00002.safetensors").touch()
    assert f"{packed / 'model-00001-of-00002.safetensors'} has the name" in refusal(lambda: back(half))
    (half / "packed-00001-of-00002.safetensors").touch()
    assert f"{half / 'packed-00001-of-00002.safetensors'} has the name" in refusal(lambda: there(half))


@pytest.mark.parametrize("out", ["half", "half/sub", "."])
def test_a_place_that_would_destroy_what_is_read(half: Path, out: str) -> None:
    place = half.parent / out
    assert "Choose another --out" in refusal(lambda: pack(half, place, overwrite=True, progress=SILENT))


def test_a_full_disk_leaves_nothing(half: Path, packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_args: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = tree(half.parent)
    monkeypatch.setattr(packed_file, "_put", full)
    message = refusal(lambda: pack(half, half.with_name("new"), overwrite=False, progress=SILENT))
    for part in (f"could not write into {half.with_name('new')}: ", "No space left", "were to be written"):
        assert part in message
    monkeypatch.setattr("sned.checkpoint.packing.shutil.copy", full)
    assert "No space left" in refusal(lambda: back(half))
    assert tree(half.parent) == before


# What is damaged


def flip(path: Path, tensor: str) -> None:
    """Invert the first bit of a tensor in a file."""
    offset = packed_file.read_header(path)[tensor].offset
    content = bytearray(path.read_bytes())
    content[offset] ^= 0x80
    path.write_bytes(content)


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    contents = json.loads(path.read_text())
    change(contents)
    path.write_text(json.dumps(contents))


FIRST, JSON = "packed-00001-of-00002.safetensors", "packed.json"
DAMAGES: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "truncated": (lambda p: os.truncate(p / FIRST, 900), [FIRST, "truncated"]),
    "gone": (lambda p: (p / FIRST).unlink(), [FIRST, "there is no such file"]),
    "values": (lambda p: flip(p / FIRST, "a.values"), [FIRST, "damaged", "model-00001-of-00002", "SHA-256"]),
    "others": (lambda p: flip(p / FIRST, "a.norm"), [FIRST, "damaged", "model-00001-of-00002", "SHA-256"]),
    "mask": (lambda p: flip(p / FIRST, "a.mask"), [FIRST, "the mask of a keeps more"]),
    "exchanged": (lambda p: (p / FIRST).replace(p / FIRST.replace("1-", "2-")), [FIRST, "there is no such file"]),
    "another": (lambda p: safetensors.torch.save_file({"c": HALF}, p / FIRST), [FIRST, "it lacks a"]),
    "shorter": (
        lambda p: safetensors.torch.save_file({"a": HALF[1:], "a.norm": torch.ones(32)}, p / FIRST),
        [FIRST, "the tensor a has another size"],
    ),
    "mask size": (
        lambda p: safetensors.torch.save_file(
            {"a.mask": torch.ones(3).byte(), "a.values": HALF[0], "a.norm": torch.ones(32)}, p / FIRST
        ),
        [FIRST, "the mask or the values of a do not fit"],
    ),
    "empty": (lambda p: (p / JSON).write_text(""), [JSON, "not readable JSON"]),
    "a list": (lambda p: (p / JSON).write_text("[1]"), [JSON, "damaged"]),
    "no files": (lambda p: edit(p / JSON, lambda c: c.pop("files")), [JSON, "files: Field required"]),
    "newer": (lambda p: edit(p / JSON, lambda c: c.update(format=2)), [JSON, "format 2", "pip install -U sned"]),
    "outside": (
        lambda p: edit(p / JSON, lambda c: c["files"][0].update(original="../x")),
        [JSON, "outside its folder: '../x'"],
    ),
    "header": (
        lambda p: edit(p / JSON, lambda c: c["files"][0].update(header="{}")),
        [JSON, "not that of model-00001-of-00002.safetensors"],
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named_and_nothing_comes_of_it(half: Path, packed: Path, damage: str) -> None:
    do, parts = DAMAGES[damage]
    do(packed)
    message = refusal(lambda: back(half))
    for part in [str(packed), *parts]:
        assert part in message
    assert sorted(path.name for path in half.parent.iterdir()) == ["half", "packed"]


def test_a_mask_that_lost_bits(half: Path, packed: Path) -> None:
    path = packed / FIRST
    flip(path, "a.mask")
    content = bytearray(path.read_bytes())
    content[packed_file.read_header(path)["a.mask"].offset] = 0
    path.write_bytes(content)
    assert "the mask of a keeps fewer" in refusal(lambda: back(half))


def test_what_does_not_come_back_is_not_kept(half: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the disk had returned something else than was written to it."""
    put = packed_file._put
    monkeypatch.setattr(packed_file, "_put", lambda out, at, data: put(out, at, data ^ (data == 0x3F)))
    assert f"a.norm does not come back from {FIRST}" in refusal(lambda: there(half), VerificationError)
    monkeypatch.setattr(packed_file, "_put", lambda out, at, data: put(out, at, data | (data == 0x55).byte() * 0xAA))
    assert "the mask of a keeps more values" in refusal(lambda: there(half), VerificationError)


@pytest.mark.parametrize(("tensor", "what"), [("a.norm", "a.norm does not come back"), ("b.norm", "changed while")])
def test_a_model_that_changes_meanwhile(half: Path, monkeypatch: pytest.MonkeyPatch, tensor: str, what: str) -> None:
    """After a tensor was packed, or after its file was looked through and before it is packed."""
    put, done = packed_file._put, []

    def meddling(out: Any, at: int, data: torch.Tensor) -> int:
        if not done:
            flip(half / f"model-0000{1 + (tensor == 'b.norm')}-of-00002.safetensors", tensor)
            done.append(tensor)
        return put(out, at, data)

    monkeypatch.setattr(packed_file, "_put", meddling)
    assert what in refusal(lambda: there(half), VerificationError)
    assert [path.name for path in half.parent.iterdir()] == ["half"]
