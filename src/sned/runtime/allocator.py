"""What an allocator is: how many weights of each matrix go, decided apart from which ones (ADR 0010).

Named after a colon, its options follow it in the same word: ``owl:multiple=3,spread=0.1``. May import its neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator

from sned.errors import ConfigError
from sned.registry import entries
from sned.runtime.signature import Configurable, find

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sned.models.matrices import Matrix
    from sned.runtime.quotas import Shares
    from sned.runtime.sparsifier import Sparsifier


@dataclass(frozen=True)
class Task:
    """What an allocator is asked: shares for these matrices, for zeros that a certain sparsifier will choose.

    Attributes:
        matrices: All that are pruned, from the first layer to the last.
        sparsity: Share of zeros in all of them together.
        pattern: ``row``, ``matrix`` or ``n:m``.
        sparsifier: What will choose the weights.
    """

    matrices: Sequence[Matrix]
    sparsity: float
    pattern: str
    sparsifier: Sparsifier

    @property
    def layers(self) -> list[int]:
        """The layers that have matrices, in order."""
        return list(dict.fromkeys(matrix.layer for matrix in self.matrices))

    def of(self, layer: int) -> list[Matrix]:
        """Return the matrices of a layer."""
        return [matrix for matrix in self.matrices if matrix.layer == layer]


@dataclass(frozen=True)
class Allocator(Configurable):
    """A named function from a context and a task to shares, with what users want to know about it."""

    kind = "allocator"
    group = "sned.allocators"


def allocator(
    *, paper: str, title: str = "", needs_tokens: bool = True
) -> Callable[[Callable[..., Shares]], Allocator]:
    """Turn a function of a context and a task into an allocator.

    Args:
        paper: Where it was published, such as ``arXiv:2310.05175``; empty if nowhere.
        title: The paper's title.
        needs_tokens: Whether it looks at calibration text.
    """

    def wrap(run: Callable[..., Shares]) -> Allocator:
        return Allocator(run.__name__, run, title, paper, needs_tokens)

    return wrap


def read_allocator(text: str) -> tuple[Allocator, dict[str, Any]]:
    """Return the allocator that a text names, and its options.

    Raises:
        ConfigError: there is none of that name, or an option is not as it should be.
    """
    name, _, settings = text.partition(":")
    found = find(Allocator, name)
    given: dict[str, str] = {}
    for setting in filter(None, settings.split(",")):
        key, equals, value = setting.partition("=")
        key = key.strip().replace("-", "_")
        if not equals or key in given:
            raise ConfigError(
                f"allocate={text!r}: {setting!r} is not key=value, or given twice", hint="such as owl:multiple=3"
            )
        given[key] = value.strip()
    return found, found.parse(given)


def spell(options: Mapping[str, Any]) -> str:
    """Return options as `read_allocator` takes them after the colon: ``multiple=3,spread=0.1``."""
    return ",".join(f"{name}={_spelled(value)}" for name, value in options.items())


def _spelled(value: Any) -> str:
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def all_allocators() -> list[Allocator]:
    """Return every installed allocator, by name."""
    return [find(Allocator, name) for name in entries(Allocator.group)]


def _checked(text: str) -> str:
    read_allocator(text)
    return text


AllocateOption = Annotated[
    str,
    AfterValidator(_checked),
    "who decides how many weights of each matrix go: uniform, owl, alphapruning, neuroal; options as owl:multiple=3",
]
