"""Documents into windows of token ids, never padded; and the shares of a mix.

Imports errors, canon and torch; a tokenizer is whatever Hugging Face object the caller holds.
"""

from __future__ import annotations

from fractions import Fraction
from itertools import chain
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sned.canon import digest
from sned.data.sources import Source, blocks
from sned.errors import ConfigError, DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from transformers import PreTrainedTokenizerBase

# A blank line between documents. It is tokenised with the document before it, as it would be in running text.
_JOIN = "\n\n"
# The tokenizer works in parallel over one batch, which bounds both its memory and what is read too many.
_BATCH_DOCUMENTS = 64
_BATCH_CHARACTERS = 2**20
# Where tokenizers differ: spaces, case, digits, accents, scripts, code, symbols outside the vocabulary.
_PROBE = (
    "The  quick\tBrown fox's 1234567 jumps.\n\n\n  def f(x): return x != 0\r\n"
    "naïve Zürich 東京 Привет مرحبا 😀 <s> </s>"
)


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the sha256 of a tokenizer's vocabulary and of what it makes of a fixed text."""
    return digest([tokenizer.get_vocab(), encode(tokenizer, [_PROBE]), begins_with_bos(tokenizer)])


def begins_with_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Tell whether the tokenizer itself puts its BOS before a text, as its model was trained."""
    bos = tokenizer.bos_token_id
    return bos is not None and tokenizer("a")["input_ids"][:1] == [bos]


def encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Return the ids of texts: no special token is added, and none is read out of the text.

    A `<s>` in a web page is struck-out text, not the beginning of a document.
    """
    encoding = tokenizer(
        list(texts),
        add_special_tokens=False,
        split_special_tokens=True,
        padding=False,
        truncation=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,  # a document longer than the model's context is no mistake: windows are cut later
    )
    return encoding["input_ids"]


def pack(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, *, windows: int, length: int, name: str) -> Tensor:
    """Fill windows with documents joined by a blank line; int64 `[windows, length]`.

    What does not fill the last window is dropped, and documents are read only until the windows are full.
    Where the tokenizer begins texts with BOS, every window does, and holds `length - 1` tokens of text.

    Raises:
        DataError: the documents of the source called `name` are too short.
    """
    lead = [tokenizer.bos_token_id] if begins_with_bos(tokenizer) else []
    body = length - len(lead)
    ids: list[int] = []
    for batch in blocks(texts, count=_BATCH_DOCUMENTS, characters=_BATCH_CHARACTERS):
        ids.extend(chain.from_iterable(encode(tokenizer, [text + _JOIN for text in batch])))
        if len(ids) >= windows * body:
            break
    else:
        raise too_short(name, have=len(ids), windows=windows, body=body, length=length)
    text = torch.tensor(ids[: windows * body], dtype=torch.int64).view(windows, body)
    return torch.cat([torch.tensor(lead, dtype=torch.int64).expand(windows, -1), text], dim=1)


class TextTooShortError(DataError):
    """A source holds fewer windows of text than were asked of it."""

    def __init__(self, message: str, *, hint: str, source: str, windows: int) -> None:
        super().__init__(message, hint=hint)
        self.source = source
        self.windows = windows
        """How many it holds."""


def too_short(name: str, *, have: int, windows: int, body: int, length: int) -> TextTooShortError:
    """Return the error of a source that holds fewer tokens than its windows need, `body` of them in each."""
    if have >= body:
        hint = f"ask for at most {have // body * length} tokens of it, or add another source"
    else:
        hint = f"ask for windows of at most {have + length - body} tokens, or add another source"
    return TextTooShortError(
        f"{name} holds {have:,} tokens, and {windows:,} windows of {length:,} need {windows * body:,}.",
        hint=hint if have > 1 else "add another source",
        source=name,
        windows=have // body,
    )


def random_windows(*, windows: int, length: int, vocab_size: int, seed: int, role: str) -> Tensor:
    """Return ids drawn uniformly, other ones for each role; int64 `[windows, length]`."""
    key = digest([role, seed if role == "calibration" else 0])
    generator = torch.Generator().manual_seed(int(key[:15], 16))
    return torch.randint(vocab_size, (windows, length), generator=generator, dtype=torch.int64)


def apportion(windows: int, sources: Sequence[Source]) -> list[int]:
    """Share out windows by weight: each share is exact up to one window, by largest remainder.

    Raises:
        ConfigError: a source would get no window at all.
    """
    weights = [Fraction(source.weight) for source in sources]
    exact = [windows * weight / sum(weights) for weight in weights]
    shares = [int(share) for share in exact]
    by_remainder = sorted(range(len(sources)), key=lambda i: shares[i] - exact[i])
    for i in by_remainder[: windows - sum(shares)]:
        shares[i] += 1
    for source, share in zip(sources, shares, strict=True):
        if share == 0:
            raise ConfigError(
                f"{source.spec} gets none of the {windows} windows of the mix.",
                hint="ask for more tokens, shorter windows, or a larger weight",
            )
    return shares


def interleave(parts: Sequence[Tensor]) -> Tensor:
    """Merge the parts of a mix evenly, so that any first few windows hold the parts in their shares."""
    places = [((row + 0.5) / len(part), i) for i, part in enumerate(parts) for row in range(len(part))]
    return torch.cat(list(parts))[sorted(range(len(places)), key=places.__getitem__)]
