"""How far two plans set the same weights to zero, without any model. May import its neighbours in `plans`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from sned.models.bits import pack
from sned.plans.ops import Mask, SetWeight

if TYPE_CHECKING:
    from sned.plans.plan import Plan


@dataclass(frozen=True, slots=True)
class Overlap:
    """The zeros that two plans make of one parameter.

    Attributes:
        param: Its name, such as ``layers.3.mlp.down_proj.weight``.
        first: Weights that the first plan sets to zero.
        second: Those that the second does.
        both: Those that both do.
        of: All weights of the parameter.
    """

    param: str
    first: int
    second: int
    both: int
    of: int

    @property
    def jaccard(self) -> float:
        """Those that both set to zero, as a share of those that either does; 1 where none does."""
        either = self.first + self.second - self.both
        return self.both / either if either else 1.0


def overlaps(first: Plan, second: Plan) -> list[Overlap]:
    """Return how the zeros of two plans overlap, for the parameters in which both make some, in order of layers."""
    mine, theirs = _zeros(first), _zeros(second)
    found: list[Overlap] = []
    for param in sorted(set(mine) & set(theirs), key=lambda name: (int(name.split(".")[1]), name)):
        (a, of), (b, of_other) = mine[param], theirs[param]
        if of == of_other:  # else a part of it was cut away in one of the plans
            found.append(Overlap(param, _ones(a), _ones(b), _ones(a & b), of))
    return found


def _zeros(plan: Plan) -> dict[str, tuple[torch.Tensor, int]]:
    """Return, by parameter, which weights a plan leaves at zero, packed, and how many weights there are."""
    found: dict[str, tuple[torch.Tensor, int]] = {}
    for op in plan.ops:
        if isinstance(op, Mask):
            name, bits, of = f"layers.{op.layer}.{op.param}", plan.tensors[op.tensor], op.of
            before = found.get(name)
            found[name] = (bits | before[0] if before is not None and before[1] == of else bits, of)
        elif isinstance(op, SetWeight):
            values = plan.tensors[op.tensor]
            found[f"layers.{op.layer}.{op.param}"] = (pack(values == 0), values.numel())
    return found


def _ones(bits: torch.Tensor) -> int:
    """Count the bits that are set."""
    return int(_SET[bits.long()].sum())


_SET = torch.tensor([number.bit_count() for number in range(256)])
