"""Texts with a class each, from JSON lines. Imports errors and the readers."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sned.canon import digest
from sned.data.readers import json_rows, no_column, text_of
from sned.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class Labelled:
    """Texts and the names of their classes, one each."""

    texts: tuple[str, ...]
    labels: tuple[str, ...]
    source: str

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.texts)

    @property
    def classes(self) -> list[str]:
        """The names of the classes, sorted."""
        return sorted(set(self.labels))

    @property
    def digest(self) -> str:
        """A digest of texts and labels, wherever they came from."""
        return digest([self.texts, self.labels])

    def take(self, places: Sequence[int]) -> Labelled:
        """Return those at some places."""
        return Labelled(tuple(self.texts[i] for i in places), tuple(self.labels[i] for i in places), self.source)


def read_labelled(path: str, text: str, label: str) -> Labelled:
    """Read the rows of a JSON-lines file, plain or gzipped.

    A label may be a string, a whole number, or true or false.

    Args:
        path: The file.
        text: The column with the texts, none of them blank.
        label: The column with the labels.

    Raises:
        DataError: the file is missing or malformed, or a row lacks a column or holds something else in it.
    """
    texts: list[str] = []
    labels: list[str] = []
    for place, row in json_rows(path):
        for column, option in ((text, "--text"), (label, "--label")):
            if column not in row:
                raise no_column(place, column, row, f"name it: {option} COLUMN")
        found = text_of(row, text, place)
        if not found.strip():
            raise DataError(f"{place}: the text is blank.", hint="leave the row out")
        texts.append(found)
        labels.append(_label(row, label, place))
    return Labelled(tuple(texts), tuple(labels), path)


def _label(row: dict[str, object], column: str, place: str) -> str:
    value = row[column]
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | int) and str(value).strip():
        return str(value)
    shown = "nothing" if value is None or isinstance(value, str) else f"a {type(value).__name__}"
    raise DataError(f"{place}: the label is {shown}.", hint="a label is text, a whole number, or true or false")


def require_classes(data: Labelled) -> list[str]:
    """Return the classes to learn, sorted.

    Raises:
        DataError: there are fewer than two, or one has a single text.
    """
    counts = Counter(data.labels)
    if len(counts) < 2:
        shown = f"all {len(data)} texts are {next(iter(counts))!r}" if counts else "it holds no text"
        raise DataError(f"{data.source} has nothing to tell apart: {shown}.", hint="give texts of two classes or more")
    if rare := [name for name in sorted(counts) if counts[name] < 2]:
        raise DataError(
            f"{data.source} has one text only of the class {rare[0]!r}.", hint="give more of it, or leave it out"
        )
    return sorted(counts)


def require_known(data: Labelled, classes: Sequence[str], source: str) -> None:
    """Refuse texts of classes that others do not have.

    Raises:
        DataError: there is such a class, or no text at all.
    """
    if not len(data):
        raise DataError(f"{data.source} holds no text.")
    if strange := sorted(set(data.labels) - set(classes)):
        raise DataError(
            f"{data.source} has the class {strange[0]!r}, which {source} has not: it has {', '.join(classes)}.",
            hint="give all files the same set of labels",
        )


def split(data: Labelled, share: float, seed: int) -> tuple[Labelled, Labelled]:
    """Draw a share of each class out, and return what stays and what was drawn, each in the order of the file.

    Args:
        data: At least two texts of each class.
        share: Of each class, 0 to 1; at least one text is drawn, and at least one stays.
        seed: Of the draw.
    """
    chance, drawn = random.Random(seed), set[int]()  # noqa: S311 - nothing secret depends on it
    for name in data.classes:
        places = [i for i, label in enumerate(data.labels) if label == name]
        count = min(max(1, round(share * len(places))), len(places) - 1)
        drawn.update(chance.sample(places, count))
    stay = [i for i in range(len(data)) if i not in drawn]
    return data.take(stay), data.take(sorted(drawn))
