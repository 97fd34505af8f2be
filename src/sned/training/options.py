"""The options that everything which trains has in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from sned.errors import DataError

if TYPE_CHECKING:
    from sned.data.tokens import Tokens

Rate = Annotated[float, Field(gt=0), "peak learning rate of AdamW"]
Epochs = Annotated[int, Field(ge=1), "times that the text is seen in training"]
Batch = Annotated[int, Field(ge=1), "windows of text in one step of the optimiser"]
Warmup = Annotated[float, Field(ge=0, lt=1), "share of the steps in which the learning rate rises"]
HELD_OUT = 32
"""One window of so many is held out, to choose the best weights by."""


def held_out_part(tokens: Tokens) -> tuple[Tokens, Tokens]:
    """Split tokens into those to train on and those to judge by, the last ones.

    Raises:
        DataError: there is but one window.
    """
    if len(tokens) < 2:
        raise DataError(
            f"training needs two windows of text or more, and {tokens.source} gave one",
            hint="raise --calib-tokens, or lower --seq-len",
        )
    n = max(1, len(tokens) // HELD_OUT)
    train, held_out = tokens.split(len(tokens) - n, n)
    return train, held_out
