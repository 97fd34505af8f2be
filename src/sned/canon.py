"""Canonical forms: JSON with one spelling, digests, and index spans. Imports no other part of sned."""

from __future__ import annotations

import hashlib
import json
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

_SPAN = re.compile(r"(\d+)(?:-(\d+))?")


def canonical_json(value: Any) -> str:
    """Return the one JSON text of a value: sorted keys, no spaces, no NaN.

    Raises:
        ValueError: a float is NaN or infinite.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: Any) -> str:
    """Return the sha256 of a value: raw for bytes, of its canonical JSON otherwise."""
    data = value if isinstance(value, bytes | bytearray | memoryview) else canonical_json(value).encode()
    return hashlib.sha256(data).hexdigest()


def format_span(indices: Iterable[int]) -> str:
    """Return indices as ascending ranges, both ends included: ``"0-63,70"``."""
    runs: list[list[int]] = []
    for index in sorted(set(indices)):
        if runs and index == runs[-1][1] + 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def parse_span(text: str) -> tuple[int, ...]:
    """Read ``"0-63,70"`` back into ascending, distinct indices.

    Raises:
        ValueError: the text is not a span, or a range runs backwards.
    """
    indices: set[int] = set()
    for part in filter(None, text.split(",")):
        match = _SPAN.fullmatch(part.strip())
        if match is None:
            raise ValueError(f"{part!r} is not an index or a range such as 0-63")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise ValueError(f"the range {part!r} runs backwards")
        indices.update(range(first, last + 1))
    return tuple(sorted(indices))


def sample_indices(numel: int, count: int) -> list[int]:
    """Return up to `count` distinct positions, evenly spaced from 0, in a flattened tensor of `numel` elements.

    Raises:
        ValueError: `count` is not positive.
    """
    if count < 1:
        raise ValueError(f"a sample needs at least one element, not {count}")
    taken = min(count, numel)
    return [i * numel // taken for i in range(taken)]
