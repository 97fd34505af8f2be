"""`Tokens`: the windows of token ids that a run calibrates or evaluates on, with where they came from.

A plan or a number means something only beside the tokens behind it, so they carry a digest and can be saved
and taken again. Imports errors, canon and the rest of `data`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

from sned.data import arrays, packing
from sned.data.sources import Role, Source, describe, documents, parse_sources
from sned.errors import ConfigError, DataError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from torch import Tensor
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, eq=False)
class Tokens:
    """Windows of one length, without padding; `ids` is int64 `[windows, length]` and must not be written to.

    `source` is the resolved SOURCE or mix, `seed` the one that ordered its documents, and `tokenizer` the
    digest of the tokenizer, empty where ids were taken as they are.
    """

    ids: Tensor
    source: str
    seed: int = 0
    tokenizer: str = ""

    def __post_init__(self) -> None:
        """Check the ids once, so that everything after may rely on them."""
        object.__setattr__(self, "ids", arrays.check_ids(self.ids, self.source))

    @property
    def length(self) -> int:
        """Tokens in one window."""
        return self.ids.shape[1]

    @property
    def n_tokens(self) -> int:
        """Tokens in all windows."""
        return self.ids.numel()

    @cached_property
    def digest(self) -> str:
        """The sha256 of the shape and the ids: equal where the tokens are, wherever they came from."""
        return arrays.ids_digest(self.ids)

    def __len__(self) -> int:
        """Return the number of windows."""
        return self.ids.shape[0]

    def take(self, n_windows: int) -> Tokens:
        """Return the first windows.

        Raises:
            DataError: there are fewer.
        """
        return self.split(n_windows)[0]

    def split(self, *parts: int) -> tuple[Tokens, ...]:
        """Return consecutive, disjoint parts of so many windows each; what is left over is in none.

        Raises:
            ConfigError: a part is empty.
            DataError: there are fewer windows than the parts need.
        """
        if min(parts, default=0) < 1:
            raise ConfigError(f"cannot take {list(parts)} windows; each part needs at least one.")
        if sum(parts) > len(self):
            raise DataError(
                f"{self.source} holds {len(self):,} windows of {self.length:,} tokens ({self.n_tokens:,}), "
                f"and {sum(parts):,} windows ({sum(parts) * self.length:,}) are needed.",
                hint="ask for more tokens of the source, or add another",
            )
        return tuple(replace(self, ids=self.ids[a:b]) for a, b in pairwise(accumulate(parts, initial=0)))

    def pick(self, places: Sequence[int]) -> Tokens:
        """Return some windows, in the order of their places."""
        return replace(self, ids=self.ids[list(places)])

    def batches(self, size_in_windows: int) -> Iterator[Tensor]:
        """Yield the ids in order, int64 `[at most size_in_windows, length]`.

        Raises:
            ConfigError: the size is not positive.
        """
        if size_in_windows < 1:
            raise ConfigError(f"a batch of {size_in_windows} windows is empty.", hint="take at least one")
        return iter(self.ids.split(size_in_windows))

    def save(self, path: str | Path) -> None:
        """Write the tokens as safetensors, to be read by `load` or named as `tokens:PATH`.

        Raises:
            DataError: the file could not be written.
        """
        notes = {"seed": self.seed, "source": self.source, "tokenizer": self.tokenizer}
        arrays.write_ids(path, self.ids, notes)

    @classmethod
    def load(cls, path: str | Path) -> Tokens:
        """Read tokens that `save` wrote.

        Raises:
            DataError: the file is missing, was not written by `save`, or has changed since.
        """
        ids, notes = arrays.read_ids(path)
        if notes.keys() != {"seed", "source", "tokenizer"}:
            raise DataError(f"{path} was not written by sned.", hint=f"take it as the source tokens:{path}")
        return cls(ids, **notes)

    @classmethod
    def from_source(
        cls,
        source: str | Sequence[str],
        tokenizer: PreTrainedTokenizerBase | None,
        *,
        tokens: int = 65_536,
        seq_len: int = 1024,
        seed: int = 0,
        role: Role = "calibration",
        vocab_size: int | None = None,
    ) -> Tokens:
        """Pack a SOURCE, or a mix of `SOURCE*WEIGHT`, into `tokens // seq_len` windows of `seq_len` tokens.

        Fewer tokens than one window ask for a single, shorter window. Calibration draws the order of the
        documents from the seed; evaluation takes them as they stand. `tokens:PATH` alone is taken whole, as
        it is.

        Raises:
            ConfigError: the source, the sizes or the role are malformed, or a tokenizer is needed.
            DataError: the text is missing, unreadable or too short, or an id is outside the vocabulary.
            MissingExtraError: the source needs a package that is not installed.
        """
        sources = parse_sources(source, role)
        if min(tokens, seq_len) < 2:
            raise ConfigError(f"{tokens} tokens in windows of {seq_len} predict nothing.", hint="take at least 2")
        identity = "" if tokenizer is None else packing.tokenizer_digest(tokenizer)
        if len(sources) == 1 and sources[0].scheme == "tokens":
            ids, identity = _taken(sources[0], identity)
        else:
            make = _Maker(tokenizer, identity, min(tokens, seq_len), seed, role, vocab_size)
            shares = packing.apportion(max(1, tokens // seq_len), sources)
            parts = [make.windows(one, share) for one, share in zip(sources, shares, strict=True)]
            ids = packing.interleave(parts)
        name = describe(sources)
        return cls(arrays.check_ids(ids, name, vocab_size), name, seed, identity)


@dataclass(frozen=True)
class _Maker:
    """Makes the windows of each source of a mix in the same way."""

    tokenizer: PreTrainedTokenizerBase | None
    identity: str
    length: int
    seed: int
    role: Role
    vocab_size: int | None

    def windows(self, source: Source, count: int) -> Tensor:
        """Return int64 `[count, length]` of one source."""
        if source.scheme == "random":
            return self._random(count)
        if source.scheme == "tokens":
            ids, _ = _taken(source, self.identity)
            if ids.shape[1] != self.length:
                raise DataError(
                    f"{source.spec} holds windows of {ids.shape[1]} tokens, and the mix has {self.length}.",
                    hint=f"mix it with a window of {ids.shape[1]}",
                )
            if len(ids) < count:
                raise packing.too_short(
                    source.spec, have=ids.numel(), windows=count, body=self.length, length=self.length
                )
            return ids[:count]
        if self.tokenizer is None:
            raise ConfigError(f"{source.spec} is text, and there is no tokenizer.", hint="tokens:PATH needs none")
        texts = documents(source, self.role, self.seed)
        return packing.pack(texts, self.tokenizer, windows=count, length=self.length, name=source.spec)

    def _random(self, count: int) -> Tensor:
        size = self.vocab_size or (len(self.tokenizer) if self.tokenizer is not None else 0)
        if not size:
            raise ConfigError("the source random needs vocab_size or a tokenizer.")
        return packing.random_windows(
            windows=count, length=self.length, vocab_size=size, seed=self.seed, role=self.role
        )


def _taken(source: Source, tokenizer: str) -> tuple[Tensor, str]:
    """Return the ids of a tokens source, int64 `[n, length]`, and the tokenizer's digest noted with them."""
    ids, notes = arrays.read_ids(source.args[0])
    noted = notes.get("tokenizer", "")
    if tokenizer and noted and noted != tokenizer:
        raise DataError(
            f"{source.spec} was made with another tokenizer than this model's.",
            hint="use tokens that were saved by a run on a model with the same tokenizer, or the text itself",
        )
    return ids, noted
