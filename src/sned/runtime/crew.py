"""Processes that train one model together, each on its part of every step's text.

A launcher such as `torchrun` starts them and says so in the environment. May import torch and `errors`.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import distributed

from sned.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Crew:
    """Which of how many processes this one is. All of them do the same things in the same order."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process is the one that reads and writes files and talks to the user."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> list[tuple[T, bool]]:
        """Return those of some items that this process takes care of, as many as any other, and whether each counts.

        One that does not is a repetition, so that all processes have as much to do together.
        """
        return [
            (items[place] if (counts := place < len(items)) else items[0], counts)
            for place in range(self.rank, -(-len(items) // self.size) * self.size, self.size)
        ]

    def owners(self, sizes: Mapping[str, int]) -> dict[str, int]:
        """Return which process takes care of each of some things, so that all have about as much: the largest first."""
        taken, found = [0] * self.size, dict[str, int]()
        for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
            found[name] = taken.index(min(taken))
            taken[found[name]] += sizes[name]
        return found

    def add_up(self, tensors: Sequence[torch.Tensor], owner: int | None = None) -> None:
        """Put in the place of each tensor its sum over all processes, the same bits everywhere; or only at its owner.

        Elsewhere, what it then holds means nothing.
        """
        if self.size == 1:
            return
        for tensor in tensors:
            if owner is None:
                distributed.all_reduce(tensor)
            else:
                distributed.reduce(tensor, owner)

    def norm(self, own: torch.Tensor) -> torch.Tensor:
        """Return the norm of what all processes have together, given that of what this one has."""
        if self.size == 1:
            return own
        square = own.double().square().cpu()  # where all have it, even one that has nothing
        distributed.all_reduce(square)
        return square.sqrt().to(own)

    def send(self, tensor: torch.Tensor, source: int = 0) -> None:
        """Put in the place of a tensor what one process has there."""
        if self.size > 1:
            distributed.broadcast(tensor, source)

    def heed(self, value: T, source: int = 0) -> T:
        """Return what one process gives here; what the others give does not count."""
        if self.size == 1:
            return value
        told = [value]
        distributed.broadcast_object_list(told, source)
        return told[0]


ALONE = Crew()


def size() -> int:
    """Return how many processes a launcher has started; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def joined() -> Iterator[Crew]:
    """Join the processes that a launcher has started, on a device for each; alone without one.

    Raises:
        ConfigError: the environment speaks of several processes, and does not say how to reach them.
    """
    if size() == 1:
        yield ALONE
        return
    if missing := [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
        raise ConfigError(
            f"WORLD_SIZE tells of {size()} processes, but not how to reach them: {', '.join(missing)} missing",
            hint="start them with torchrun, or unset WORLD_SIZE to run one",
        )
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    # Imported later, its default arguments hold the group beyond its end, and the group's threads then meet an
    # interpreter that is shutting down: now and then the process aborts (torch 2.13).
    import_module("torch.distributed.nn.functional")
    distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield Crew(distributed.get_rank(), distributed.get_world_size())
    finally:
        distributed.destroy_process_group()
