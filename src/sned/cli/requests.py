"""From what a person typed to the parts of a request, checked before anything slow begins.

May import `jobs.request`, and the grammars of sources and budgets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from sned.data.readers import existing_file
from sned.data.sources import parse_sources
from sned.errors import BudgetError, ConfigError
from sned.jobs.request import ProfilesRequest, TasksRequest, TextRequest
from sned.plans.budget import Budget, parse_share, parse_sparsity

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path


def budget(
    method: str,
    settings: Mapping[str, str],
    *,
    layers: int | None,
    blocks: int | None,
    remove: str | None,
    remove_of: Literal["all", "body"],
    sparsity: str | None,
) -> Budget:
    """Read the budget: layers, blocks, or a share; else what the method proposes with its options as set.

    Raises:
        BudgetError: nothing would be removed.
        ConfigError: several are given, or none where the method proposes none, or one that it does not take.
    """
    from sned.runtime.method import find_method
    from sned.runtime.planner import check_kind

    if remove is None and remove_of != "all":
        raise ConfigError("--remove-of says nothing without --remove", hint="leave it out, or use --remove 25%")
    share = None if remove is None else parse_share(remove, name="--remove")
    zeros = None if sparsity is None else parse_sparsity(sparsity)
    asked = Budget(layers=layers, blocks=blocks, remove=share, remove_of=remove_of, sparsity=zeros)
    for name, number in (("--layers", layers), ("--blocks", blocks)):
        if number is not None and number < 1:
            raise BudgetError(f"{name} {number} removes nothing", hint="give 1 or more")
    return check_kind(find_method(method), asked, settings)


def profiles(sparsity: str | None, allocate: Sequence[str]) -> ProfilesRequest | None:
    """Read which allocators to hold side by side, and at what share of zeros; None where no share is given.

    Raises:
        BudgetError: so many zeros leave nothing.
        ConfigError: there is no such allocator, an option is not as it should be, or no share goes with it.
    """
    if sparsity is None:
        if allocate:
            raise ConfigError("--allocate says nothing without --sparsity", hint="add --sparsity 50%, or leave it out")
        return None
    share = parse_sparsity(sparsity)
    Budget(sparsity=share)
    from sned.runtime.allocator import read_allocator

    for named in allocate:
        read_allocator(named)
    return ProfilesRequest(share, tuple(allocate))


def tasks(
    names: Sequence[str], items: int | None, out: Path | None, *, cached: bool, overwrite: bool
) -> TasksRequest | None:
    """Read which tasks are asked for; None where none is.

    Raises:
        ConfigError: a task is named twice or not at all, no item is left, or options lack a task.
    """
    named = [name.strip() for given in names for name in given.split(",")]
    for option, given in (("--task-items", items is not None), ("--items", out is not None), ("--cached", cached)):
        if given and not named:
            raise ConfigError(f"{option} says nothing without --tasks", hint="add --tasks choices, or leave it out")
    if overwrite and out is None:
        raise ConfigError("--overwrite says nothing without --items", hint="leave it out")
    if not named:
        return None
    for number, name in enumerate(named):
        if not name or name in named[:number]:
            raise ConfigError("--tasks names an empty task" if not name else f"--tasks names {name} twice")
    if items is not None and items < 1:
        raise ConfigError(f"--task-items {items} leaves nothing to judge by", hint="give 1 or more")
    return TasksRequest(tuple(named), items, out, cached, overwrite)


def text(sources: Sequence[str], tokens: int | None, seq_len: int, role: Literal["calib", "eval"]) -> TextRequest:
    """Check which tokens are asked for, without reading any.

    Raises:
        ConfigError: a source is none, or the sizes leave nothing to predict.
        DataError: a file is missing or empty.
    """
    for option, value in ((f"--{role}-tokens", tokens), ("--seq-len", seq_len)):
        if value is not None and value < 2:
            raise ConfigError(f"{option} {value} leaves no token to predict", hint="give at least 2")
    for source in parse_sources(sources, "calibration" if role == "calib" else "evaluation"):
        if source.scheme in ("file", "tokens"):
            existing_file(source.args[0])
    return TextRequest(tuple(sources), tokens, seq_len)
