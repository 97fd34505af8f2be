"""SOURCE strings, such as `builtin:c4*0.7` or `file:notes.jsonl#body`, and the documents they name.

The grammar is checked before any file is opened, so a mistyped option fails at once. Imports errors and the
readers beside it; no torch.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from difflib import get_close_matches
from hashlib import sha256
from typing import TYPE_CHECKING, Literal, get_args

from sned.data import builtin, readers
from sned.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

Role = Literal["calibration", "evaluation"]

SCHEMES = ("builtin", "file", "hf", "tokens", "random")
_FORMS = {"file": "file:PATH", "hf": "hf:REPO[:CONFIG[:SPLIT[:COLUMN]]]", "tokens": "tokens:PATH"}
# Shuffling holds one block in memory: enough documents to mix, and a bound on a corpus of books or an endless
# stream.
_BLOCK_DOCUMENTS = 10_000
_BLOCK_CHARACTERS = 2**26


@dataclass(frozen=True)
class Source:
    """One parsed SOURCE with its defaults filled in, and its weight in a mix.

    `args` are the parts after the scheme: `(name,)` of builtin, `(path, column)` of file, `(repo, config,
    split, column)` of hf, `(path,)` of tokens; an empty string stands for a part left open.
    """

    scheme: str
    args: tuple[str, ...] = ()
    weight: float = 1.0

    @property
    def spec(self) -> str:
        """The SOURCE string of this source, without its weight."""
        separator = "#" if self.scheme == "file" else ":"
        return f"{self.scheme}:{separator.join(self.args)}".rstrip(":#")


def parse_source(text: str, role: Role = "calibration") -> Source:
    """Read one SOURCE string; `builtin` becomes the text of the role that is installed.

    Raises:
        ConfigError: the string is not a SOURCE.
    """
    if role not in get_args(Role):
        raise ConfigError(f"the role {role!r} is not one of {', '.join(get_args(Role))}.")
    body, weight = _split_weight(text.strip())
    scheme, colon, rest = body.partition(":")
    if scheme not in SCHEMES:
        raise ConfigError(f"{text!r} is not a source of text.", hint=_suggest(body))
    if scheme == "builtin":
        return Source(scheme, (_builtin_name(rest) if colon else builtin.default(role),), weight)
    if scheme == "random":
        if colon:
            raise ConfigError(f"{text!r}: the source random takes no argument.", hint="write just random")
        return Source(scheme, (), weight)
    if not rest:
        raise ConfigError(f"{text!r} names nothing after {scheme!r}.", hint=f"write {_FORMS[scheme]}")
    if scheme == "file":
        return Source(scheme, _split_column(rest), weight)
    if scheme == "hf":
        return Source(scheme, _split_hub(text, rest, role), weight)
    return Source(scheme, (rest,), weight)


def parse_sources(source: str | Sequence[str], role: Role = "calibration") -> tuple[Source, ...]:
    """Read one SOURCE string or a mix of them.

    Raises:
        ConfigError: a string is not a SOURCE, the mix is empty, or it names a source twice.
    """
    sources = tuple(parse_source(text, role) for text in ([source] if isinstance(source, str) else source))
    if not sources:
        raise ConfigError("no source of text is given.", hint="write builtin, or file:PATH")
    seen: set[str] = set()
    for one in sources:
        if one.spec in seen:
            raise ConfigError(
                f"the source {one.spec} is given twice.", hint="give it once, with a weight: SOURCE*WEIGHT"
            )
        seen.add(one.spec)
    return sources


def describe(sources: Sequence[Source]) -> str:
    """Return the one text that names a source or a mix: `builtin:c4`, `builtin:c4*0.7 + file:a.txt*0.3`."""
    if len(sources) == 1:
        return sources[0].spec
    return " + ".join(f"{source.spec}*{source.weight:g}" for source in sources)


def documents(source: Source, role: Role = "calibration", seed: int = 0) -> Iterator[str]:
    """Yield the documents of a text source, never blank ones.

    Calibration takes them in an order drawn from the seed, within blocks of 10,000 documents; evaluation
    takes them as they stand.

    Raises:
        DataError: the text is missing or unreadable.
        MissingExtraError: the source needs a package that is not installed.
    """
    if source.scheme == "builtin":
        found = builtin.documents(source.args[0], role)
    elif source.scheme == "file":
        found = readers.file_documents(*source.args)
    elif source.scheme == "hf":
        found = readers.hub_documents(*source.args)
    else:
        raise ValueError(f"{source.spec} holds no documents")
    solid = (text for text in found if text.strip())
    return _shuffled(solid, seed) if role == "calibration" else solid


def blocks(texts: Iterable[str], *, count: int, characters: int) -> Iterator[list[str]]:
    """Yield the texts in lists that end once they hold `count` texts, or so many characters."""
    block: list[str] = []
    size = 0
    for text in texts:
        block.append(text)
        size += len(text)
        if len(block) >= count or size >= characters:
            yield block
            block, size = [], 0
    if block:
        yield block


def _shuffled(texts: Iterable[str], seed: int) -> Iterator[str]:
    def key(index: int) -> bytes:  # unlike random.shuffle, the same in every version of Python
        return sha256(f"{seed}:{index}".encode()).digest()

    for block in blocks(texts, count=_BLOCK_DOCUMENTS, characters=_BLOCK_CHARACTERS):
        yield from (block[index] for index in sorted(range(len(block)), key=key))


def _split_weight(text: str) -> tuple[str, float]:
    # Only a trailing number counts as a weight: a path may contain "*".
    body, star, tail = text.rpartition("*")
    if not star:
        return text, 1.0
    try:
        weight = float(tail)
    except ValueError:
        return text, 1.0
    if not (math.isfinite(weight) and weight > 0):
        raise ConfigError(f"the weight of {text!r} is not a positive number.", hint="write builtin*0.5")
    return body, weight


def _split_column(rest: str) -> tuple[str, str]:
    # A path may contain "#": it starts a column only after a suffix we read.
    path, hash_sign, column = rest.rpartition("#")
    if not hash_sign or readers.suffix_of(rest) or not readers.suffix_of(path):
        return rest, ""
    if not column:
        raise ConfigError(f"'file:{rest}' names no column after '#'.", hint=f"write file:{path}#COLUMN")
    if readers.suffix_of(path) == ".txt":
        raise ConfigError(f"'file:{rest}': a .txt file has no columns.", hint=f"write file:{path}")
    return path, column


def _split_hub(text: str, rest: str, role: Role) -> tuple[str, str, str, str]:
    parts = rest.split(":")
    if len(parts) > 4 or not parts[0]:
        raise ConfigError(f"{text!r} has too many parts or no repository.", hint=f"write {_FORMS['hf']}")
    repo, config, split, column = parts + [""] * (4 - len(parts))
    split = split or ("train" if role == "calibration" else "test")
    return repo, config, split, column or readers.TEXT_COLUMN


def _builtin_name(name: str) -> str:
    if name in builtin.NAMES:
        return name
    near = get_close_matches(name.lower(), builtin.NAMES, n=1)
    choices = ", ".join(f"builtin:{known}" for known in builtin.NAMES)
    hint = f"did you mean builtin:{near[0]}?" if near else f"write builtin, or one of {choices}"
    raise ConfigError(f"'builtin:{name}' is not a builtin text.", hint=hint)


def _suggest(body: str) -> str:
    scheme, colon, rest = body.partition(":")
    near = get_close_matches(scheme.lower(), (*SCHEMES, *builtin.NAMES), n=1)
    if colon and near and near[0] in SCHEMES:
        return f"did you mean {near[0]}:{rest}?"
    if readers.suffix_of(body) or os.path.isfile(os.path.expanduser(body)):
        return f"did you mean file:{body}?"
    if near:
        return f"did you mean {near[0] if near[0] in SCHEMES else f'builtin:{near[0]}'}?"
    return "write builtin, file:PATH, hf:REPO, tokens:PATH or random"
