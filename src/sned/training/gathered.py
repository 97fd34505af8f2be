"""Weights of which each process moves its own, put together where they are used. May import `runtime.crew`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from sned.runtime.crew import Crew


@dataclass(frozen=True, slots=True)
class Place:
    """Whose a parameter is, and what is made of it where it is used."""

    owner: int
    shape: torch.Size
    dtype: torch.dtype
    device: torch.device


def gathered(crew: Crew, places: Mapping[str, Place], own: Mapping[str, nn.Parameter]) -> dict[str, torch.Tensor]:
    """Return parameters that processes hold apart, by name, differentiably: a gradient goes to whom the number is.

    The owner of a parameter sends its value, and on the way back receives the sum of all processes' gradients. All of
    them must therefore use all that is returned, forward and back, in the same order.

    Args:
        crew: The processes.
        places: Of all the parameters.
        own: Those of them that are this process's.
    """
    anchor = torch.zeros((), requires_grad=True)  # whoever owns none of them has gradients to give all the same
    values = _Gathered.apply(crew, places, anchor, *own.values())
    return dict(zip(places, cast("tuple[torch.Tensor, ...]", values), strict=True))


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, crew: Crew, places: Mapping[str, Place], _anchor: torch.Tensor, *own: torch.Tensor) -> Any:
        ctx.crew, ctx.places, mine, values = crew, places, iter(own), list[torch.Tensor]()
        for place in places.values():
            if place.owner == crew.rank:
                value = next(mine).detach().to(place.dtype, copy=True)
            else:
                value = torch.empty(place.shape, dtype=place.dtype, device=place.device)
            crew.send(value, place.owner)
            values.append(value)
        return tuple(values)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        sums: list[torch.Tensor] = []
        for place, grad in zip(ctx.places.values(), grads, strict=True):
            total = grad.to(torch.float32, copy=True)
            ctx.crew.add_up([total], place.owner)
            sums += [total] if place.owner == ctx.crew.rank else []
        return (None, None, None, *sums)
