"""The weights that training moves: float32 masters of some parameters, and what the model runs with in their place.

The model's own tensors are never written. A forward pass runs with `effective()` substituted, so that what is trained
is what will be saved: a low-rank update is the matrix that it will be merged into, and zeros that are to stay are
zeros at every step. May import `models` and `runtime`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from sned.plans.ops import SetWeight
from sned.runtime.crew import ALONE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from sned.models.view import View
    from sned.runtime.context import Context
    from sned.runtime.crew import Crew

Names = dict[int, list[str]]
"""Parameters by layer, in base coordinates, named relative to the layer."""


class Masters:
    """Trainable parameters in float32, as full weights or as low-rank updates of matrices.

    Attributes:
        parameters: What the optimiser moves, by name.
    """

    def __init__(
        self,
        view: View,
        names: Names,
        *,
        rank: int | None = None,
        scale: float = 1.0,
        keep_zeros: bool = False,
        seed: int = 0,
        crew: Crew = ALONE,
    ) -> None:
        """Prepare to train.

        Args:
            view: A loaded view; the parameters are taken as they are now.
            names: Which parameters.
            rank: Of the update of each matrix; None trains the weights themselves.
            scale: Of the low-rank update, LoRA's `alpha / rank`.
            keep_zeros: Weights of matrices that are zero stay so.
            seed: Of the random factors of low-rank updates.
            crew: The processes that train; weights that another one moves are here in the model's own dtype.
        """
        self._view, self._rank, self._scale = view, rank, scale
        self._base = {(layer, name): self._tensor(layer, name) for layer in sorted(names) for name in names[layer]}
        matrices = {key: tensor for key, tensor in self._base.items() if tensor.dim() >= 2}
        self._kept = {key: tensor != 0 for key, tensor in matrices.items()} if keep_zeros else {}
        owner = crew.owners({f"{layer}.{name}": tensor.numel() for (layer, name), tensor in self._base.items()})
        self._mine = {key for key, process in owner.items() if process == crew.rank}
        generator = torch.Generator().manual_seed(seed)
        self.parameters: dict[str, nn.Parameter] = {}
        for (layer, name), tensor in self._base.items():
            for part, values in self._parts(f"{layer}.{name}", tensor, generator).items():
                self.parameters[f"{layer}.{name}{part}"] = nn.Parameter(values)
        self._scope = _Scope(view.model)

    def _tensor(self, layer: int, name: str) -> torch.Tensor:
        return self._view.layer(layer).get_parameter(name).detach()

    def _parts(self, key: str, tensor: torch.Tensor, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Return what is trained of one parameter, by suffix: itself, or two factors of which the second is zero."""
        if self._rank is None:
            return {"": (tensor.float() if key in self._mine else tensor).clone()}
        *stack, rows, columns = tensor.shape
        rank = min(self._rank, rows, columns)
        first = (2 * torch.rand(*stack, rank, columns, generator=generator) - 1) / columns**0.5
        second = torch.zeros(*stack, rows, rank)
        return {".A": first.to(tensor.device), ".B": second.to(tensor.device)}

    def values(self, layer: int, name: str) -> torch.Tensor:
        """Return a parameter as training has it now, in the model's dtype; differentiable in the masters."""
        base, prefix = self._base[layer, name], f"{layer}.{name}"
        if self._rank is None:
            weight: torch.Tensor = self.parameters[prefix]
        else:
            update = (self._scale * self.parameters[f"{prefix}.B"]) @ self.parameters[f"{prefix}.A"]
            weight = update.add_(base)  # in float32, which the update is
        if (kept := self._kept.get((layer, name))) is not None:
            weight = torch.where(kept, weight, 0.0)  # a product would leave negative zeros
        return weight.to(base.dtype)

    def scaled(self, layer: int, name: str, factor: float) -> torch.Tensor:
        """Return a parameter moved by a share of what training moved it, in the model's dtype."""
        base = self._base[layer, name]
        if factor == 1:
            return self.values(layer, name).detach()
        moved = base.float() + factor * (self.values(layer, name).detach().float() - base.float())
        return moved.to(base.dtype)

    @property
    def trained(self) -> list[tuple[int, str]]:
        """The parameters that training moves, by layer and name."""
        return list(self._base)

    def run(self, compute: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Return what `compute` returns when the model runs with the weights that training has now."""
        places = {layer: position for position, layer in enumerate(self._view.layers)}
        path = self._view.family.layers
        weights = {f"model.{path}.{places[i]}.{name}": self.values(i, name) for i, name in self._base}
        return torch.func.functional_call(self._scope, weights, (compute,))


class _Scope(nn.Module):
    """Runs a function in which a model's parameters can be substituted."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, compute: Callable[[], torch.Tensor]) -> torch.Tensor:
        return compute()


def all_parameters(view: View, layers: Iterable[int]) -> Names:
    """Return all floating-point parameters of some layers."""
    return {i: [name for name, p in view.layer(i).named_parameters() if p.is_floating_point()] for i in layers}


def all_matrices(view: View, layers: Iterable[int]) -> Names:
    """Return all parameters of some layers that are matrices, or stacks of them."""
    return {i: [name for name, p in view.layer(i).named_parameters() if p.dim() >= 2] for i in layers}


def set_values(ctx: Context, values: Mapping[tuple[int, str], torch.Tensor]) -> Iterator[SetWeight]:
    """Yield the ops that give parameters, by layer and name, new values."""
    for (layer, name), tensor in values.items():
        yield SetWeight(layer=layer, param=name, tensor=ctx.put(f"{layer}.{name}", tensor))
