"""From what a person typed to the parts of a request, checked before anything slow begins.

May import `jobs.request`, and the grammars of sources and budgets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from sned.data.readers import existing_file
from sned.data.sources import parse_sources
from sned.errors import BudgetError, ConfigError
from sned.jobs.request import TextRequest
from sned.plans.budget import Budget, parse_share

if TYPE_CHECKING:
    from collections.abc import Sequence


def budget(method: str, layers: int | None, remove: str | None, remove_of: Literal["all", "body"]) -> Budget:
    """Read the budget: a number of layers, or a share of the parameters; else what the method proposes.

    Raises:
        BudgetError: no layer would be removed.
        ConfigError: both are given, or neither where the method proposes none, or the share is none.
    """
    remedy = "use one of --layers N and --remove 25%"
    if layers is not None and remove is not None:
        raise ConfigError("both --layers and --remove are given", hint=remedy)
    if layers is None and remove is None:
        from sned.runtime.method import find_method

        if (layers := find_method(method).default_layers) is None:
            raise ConfigError("no budget is given", hint=remedy)
    if remove is not None:
        return Budget(remove=parse_share(remove, name="--remove"), remove_of=remove_of)
    if remove_of != "all":
        raise ConfigError("--remove-of says nothing about --layers", hint="leave it out, or use --remove 25%")
    if layers is not None and layers < 1:
        raise BudgetError(f"--layers {layers} removes nothing", hint="give 1 or more")
    return Budget(layers=layers)


def text(sources: Sequence[str], tokens: int, seq_len: int, role: Literal["calib", "eval"]) -> TextRequest:
    """Check which tokens are asked for, without reading any.

    Raises:
        ConfigError: a source is none, or the sizes leave nothing to predict.
        DataError: a file is missing or empty.
    """
    for option, value in ((f"--{role}-tokens", tokens), ("--seq-len", seq_len)):
        if value < 2:
            raise ConfigError(f"{option} {value} leaves no token to predict", hint="give at least 2")
    for source in parse_sources(sources, "calibration" if role == "calib" else "evaluation"):
        if source.scheme in ("file", "tokens"):
            existing_file(source.args[0])
    return TextRequest(tuple(sources), tokens, seq_len)
