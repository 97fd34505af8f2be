"""What a run has finished, on disk, so that a killed run goes on where it stopped.

Every result is kept under the digest of all that it depends on; asking again is free. `journal.jsonl` says in
order what was finished and when. May import `canon` and `errors`.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any, TypeVar

from sned.canon import digest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import torch

T = TypeVar("T")
SAVE_EVERY_SECONDS = 30.0
"""How much of an unfinished pass a kill may cost."""


class Journal:
    """Remembers finished work in a folder; without a folder it remembers nothing."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self._values: dict[str, Any] = {}
        if folder is not None:
            (folder / "done").mkdir(parents=True, exist_ok=True)
            self._values = _read_values(folder / "done" / "values.jsonl")

    @property
    def is_empty(self) -> bool:
        """Whether nothing was kept."""
        return self.folder is None or not any((self.folder / "done").iterdir())

    def recall(self, what: str, key: Any, compute: Callable[[], T]) -> T:
        """Return the JSON value kept for `key`, or compute and keep it."""
        if (kept := self.lookup(what, key)) is not None:
            return kept
        value = compute()
        self.keep(what, key, value)
        if self.folder is not None:
            self.note(what, _name(what, key))
        return value

    def lookup(self, what: str, key: Any) -> Any | None:
        """Return the JSON value kept for `key`, if any."""
        return self._values.get(_name(what, key)) if self._values else None

    def keep(self, what: str, key: Any, value: Any) -> None:
        """Keep a JSON value for `key`; thousands of small ones share a file, to which each is added at once."""
        if self.folder is None:
            return
        name = _name(what, key)
        self._values[name] = value
        with (self.folder / "done" / "values.jsonl").open("a") as file:
            file.write(json.dumps([name, value]) + "\n")

    def load_tensors(self, what: str, key: Any) -> dict[str, torch.Tensor] | None:
        """Return the tensors kept for `key`, if any."""
        if self.folder is None or not (file := self._file(what, key, ".safetensors")).exists():
            return None
        from safetensors.torch import load_file

        # copies, since sums and products may depend on where in memory they begin, and files begin anywhere
        return {name: tensor.clone() for name, tensor in load_file(file).items()}

    def shelve(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """Move a tensor into a file of its own and return it as it lies there: read when used, not held in memory.

        Without a folder it stays where it is. What lies in a file may begin anywhere: copy it before multiplying.
        """
        if self.folder is None or not tensor.numel():
            return tensor
        self.save_tensors("tensor", name, {"tensor": tensor}, partial=True)
        kept = self.fetch(name)
        return tensor if kept is None else kept

    def fetch(self, name: str) -> torch.Tensor | None:
        """Return a tensor that was shelved under a name, if any, without reading it yet."""
        if self.folder is None or not (file := self._file("tensor", name, ".safetensors")).exists():
            return None
        from safetensors.torch import load_file

        return load_file(file)["tensor"]

    def save_tensors(self, what: str, key: Any, tensors: dict[str, torch.Tensor], *, partial: bool = False) -> None:
        """Keep tensors for `key`; those of an unfinished pass are not noted in the journal."""
        if self.folder is None:
            return
        from safetensors.torch import save_file

        file = self._file(what, key, ".safetensors")
        contiguous = {name: t.contiguous() for name, t in tensors.items()}
        _replace(file, lambda part: save_file(contiguous, part))
        if not partial:
            self.note(what, file.stem)

    def forget(self, what: str, key: Any) -> None:
        """Drop the tensors kept for `key`."""
        if self.folder is not None:
            self._file(what, key, ".safetensors").unlink(missing_ok=True)

    def note(self, what: str, detail: Any = None) -> None:
        """Add a line to the journal."""
        if self.folder is not None:
            line = {"at": round(time.time(), 3), "done": what, "detail": detail}
            with (self.folder / "journal.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")

    def _file(self, what: str, key: Any, suffix: str) -> Path:
        assert self.folder is not None  # noqa: S101 - callers return early without a folder
        return self.folder / "done" / f"{_name(what, key)}{suffix}"


def _name(what: str, key: Any) -> str:
    return f"{what}-{digest(key)[:24]}"


def _read_values(file: Path) -> dict[str, Any]:
    """Read what was kept; a last line that a kill cut short is ended, so that it spoils no later one."""
    if not file.exists():
        return {}
    *lines, torn = file.read_text().split("\n")
    if torn:
        file.write_text("".join(f"{line}\n" for line in lines))
    return dict(json.loads(line) for line in lines)


def _replace(file: Path, write: Callable[[Path], Any]) -> None:
    """Write a file whole or not at all."""
    part = file.with_name(f"{file.name}.part")
    write(part)
    part.replace(file)


class Pacer:
    """Says when enough time has gone by to save an unfinished pass again."""

    def __init__(self, seconds: float | None = None) -> None:
        self._seconds = SAVE_EVERY_SECONDS if seconds is None else seconds
        self._last = time.monotonic()

    def due(self) -> bool:
        """Tell whether to save now; the wait then starts anew."""
        if time.monotonic() - self._last < self._seconds:
            return False
        self._last = time.monotonic()
        return True
