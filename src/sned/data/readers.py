"""Documents out of files and out of the Hub, with errors that name the line or the column.

Everything streams, so that a corpus larger than memory costs what is taken from it. Imports errors; pyarrow
and datasets only when a source needs them.
"""

from __future__ import annotations

import gzip
import json
import os
import stat
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sned.errors import DataError, MissingExtraError, SnedError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

TEXT_COLUMN = "text"
SUFFIXES = (".txt", ".jsonl", ".jsonl.gz", ".parquet")
# A .txt file has no documents of its own: it is cut at blank lines into passages of about this many
# characters, long enough to keep the context of a window, short enough that another seed draws other text.
_PASSAGE = 4_096
_LONGEST_PASSAGE = 4 * _PASSAGE


def suffix_of(path: str) -> str:
    """Return the suffix by which a file is read, or an empty string."""
    return next((suffix for suffix in SUFFIXES if path.lower().endswith(suffix)), "")


def existing_file(path: str) -> Path:
    """Return the path of a file that is there and holds something.

    Raises:
        DataError: it is missing, a directory, or empty.
    """
    found = Path(os.path.expanduser(path))
    try:
        status = found.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        hint = "check the path" if found.is_absolute() else f"it was looked for in {Path.cwd()}"
        raise DataError(f"{found} does not exist.", hint=hint) from error
    except (OSError, ValueError) as error:
        raise DataError(f"{found} could not be read: {error}") from error
    if stat.S_ISDIR(status.st_mode):
        raise DataError(f"{found} is a directory, not a file.", hint="name one file in it")
    if status.st_size == 0:
        raise DataError(f"{found} is empty.")
    return found


def file_documents(path: str, column: str = "") -> Iterator[str]:
    """Yield the documents of a text, JSON-lines or parquet file; `column` is `text` unless given.

    Raises:
        DataError: the file is missing, empty or malformed, or has no such column.
        MissingExtraError: a parquet file, and pyarrow is not installed.
    """
    found = existing_file(path)
    suffix = suffix_of(path)
    if not suffix:
        raise DataError(
            f"{found} has the suffix {found.suffix!r}, which is not read.",
            hint=f"sned reads {', '.join(SUFFIXES)}",
        )
    try:
        if suffix == ".txt":
            yield from _passages(_lines(found))
        elif suffix == ".parquet":
            yield from _parquet(found, column or TEXT_COLUMN)
        else:
            yield from (text_of(row, column or TEXT_COLUMN, place) for place, row in _json_lines(found))
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{found} could not be read: {error}") from error


def json_rows(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield where each row of a JSON-lines file stands, and the row.

    Raises:
        DataError: the file is missing, empty or malformed, or a row is not an object.
    """
    found = existing_file(path)
    if not suffix_of(path).startswith(".jsonl"):
        raise DataError(f"{found} is not a JSON-lines file.", hint="a row each line, in a file NAME.jsonl or .jsonl.gz")
    try:
        for place, row in _json_lines(found):
            yield place, _object(row, place)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{found} could not be read: {error}") from error


def hub_documents(repo: str, config: str, split: str, column: str) -> Iterator[str]:
    """Yield the documents of a Hub dataset, streamed.

    Raises:
        DataError: the dataset, its split or its column is missing, or the Hub cannot be reached.
        MissingExtraError: datasets is not installed.
    """
    name = f"hf:{repo}" + (f":{config}" if config else "")
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise MissingExtraError("datasets", "data", purpose=f"reading {name}") from error
    try:
        rows: Iterable[Any] = load_dataset(repo, config or None, split=split, streaming=True)
        for number, row in enumerate(rows, 1):
            yield text_of(row, column, f"{name}, split {split}, row {number}")
    except SnedError:
        raise
    except Exception as error:  # datasets and its file systems raise exceptions of many libraries
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(
            f"{name}, split {split}, could not be read: {reason}",
            hint="check the name and the network, or take file:PATH or builtin",
        ) from error


def _lines(path: Path) -> Iterator[str]:
    offset = 0
    with gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                text = line.decode().rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{path} is not UTF-8: byte {offset + error.start}, line {number}.",
                    hint="convert it, for example with iconv -f latin1 -t utf-8",
                ) from error
            yield text.removeprefix("\ufeff") if number == 1 else text
            offset += len(line)


def _passages(lines: Iterable[str]) -> Iterator[str]:
    passage: list[str] = []
    characters = 0
    for line in lines:
        passage.append(line)
        characters += len(line) + 1
        if characters >= (_LONGEST_PASSAGE if line.strip() else _PASSAGE):
            yield "\n".join(passage).strip("\n")
            passage, characters = [], 0
    yield "\n".join(passage).strip("\n")


def _json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}, line {number}, is not JSON: {error}") from error
        yield f"{path}, line {number}", row


def _parquet(path: Path, column: str) -> Iterator[str]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtraError("pyarrow", "data", purpose=f"reading {path}") from error
    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if column not in names:
                raise no_column(str(path), column, names)
            number = 0
            for batch in file.iter_batches(batch_size=1_024, columns=[column]):
                for row in batch.to_pylist():
                    number += 1
                    yield text_of(row, column, f"{path}, row {number}")
    except pyarrow.ArrowException as error:
        raise DataError(f"{path} is not a whole parquet file: {error}") from error


def text_of(row: Any, column: str, place: str) -> str:
    """Return one text of one row; a null is a blank document, as everywhere on the Hub.

    Raises:
        DataError: the row is not an object, lacks the column, or holds something else there.
    """
    if column not in _object(row, place):
        raise no_column(place, column, row)
    value = row[column]
    if value is None:
        return ""
    if not isinstance(value, str):
        raise DataError(f"{place}: the column {column!r} holds a {type(value).__name__}, not text.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{place}: the column {column!r} holds half a surrogate pair, not text.") from error
    return value


def _object(row: Any, place: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise DataError(f"{place}: a {type(row).__name__}, not an object.", hint='write {"text": "..."}')
    return row


def no_column(
    place: str,
    column: str,
    names: Iterable[Any],
    hint: str = "name one: file:PATH#COLUMN, or hf:REPO:CONFIG:SPLIT:COLUMN",
) -> DataError:
    """Return the error for a column that is not there; it names those that are."""
    there = ", ".join(map(str, names)) or "none"
    return DataError(f"{place} has no column {column!r}; the columns are: {there}.", hint=hint)
