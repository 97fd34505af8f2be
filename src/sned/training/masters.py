"""The weights that training moves: float32 masters of some parameters, and what the model runs with in their place.

The model's own tensors are never written. Each layer runs with what training has substituted, so that what is trained
is what will be saved: a low-rank update is the matrix that it will be merged into, and zeros that are to stay are
zeros at every step. May import `models` and `runtime`.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch
from torch import nn

from sned.plans.ops import SetWeight
from sned.runtime.crew import ALONE
from sned.training.gathered import Place, gathered

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from contextlib import AbstractContextManager

    from sned.models.forward import LayerRunner
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
            view: The model; the parameters are taken as they are now.
            names: Which parameters.
            rank: Of the update of each matrix; None trains the weights themselves.
            scale: Of the low-rank update, LoRA's `alpha / rank`.
            keep_zeros: Weights of matrices that are zero stay so.
            seed: Of the random factors of low-rank updates.
            crew: The processes that train. Weights that another one moves are here in the model's own dtype; of a
                streamed model they are not here at all, but sent where a layer runs.
        """
        self._view, self._rank, self._scale, self._keep_zeros = view, rank, scale, keep_zeros
        self._crew, self._names = crew, {layer: list(names[layer]) for layer in sorted(names)}
        sizes = {
            f"{i}.{name}": view.layer(i).get_parameter(name).numel() for i, own in self._names.items() for name in own
        }
        self._owner = crew.owners(sizes)
        self._apart = view.streamed and crew.size > 1 and rank is None
        generator = torch.Generator().manual_seed(seed)
        self.parameters: dict[str, nn.Parameter] = {}
        for layer, own in self._names.items():
            with view.materialised(layer) if rank is None else nullcontext(view.layer(layer)) as block:
                for name in own:
                    parts = self._parts(f"{layer}.{name}", block.get_parameter(name).detach(), generator)
                    self.parameters |= {f"{layer}.{name}{part}": nn.Parameter(value) for part, value in parts.items()}

    def _parts(self, key: str, tensor: torch.Tensor, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Return what is trained of one parameter, by suffix: itself, or two factors of which the second is zero."""
        if self._rank is None:
            if self._owner[key] == self._crew.rank:
                return {"": tensor.to(torch.float32, copy=True)}
            return {"": tensor.to("meta") if self._apart else tensor.clone()}
        *stack, rows, columns = tensor.shape
        rank = min(self._rank, rows, columns)
        first = (2 * torch.rand(*stack, rank, columns, generator=generator) - 1) / columns**0.5
        second = torch.zeros(*stack, rows, rank)
        return {".A": first.to(self._view.device), ".B": second.to(self._view.device)}

    @property
    def layers(self) -> list[int]:
        """The layers of which something is trained."""
        return list(self._names)

    def run(self, runner: LayerRunner, layer: int, hidden: torch.Tensor) -> torch.Tensor:
        """Return what a layer makes of hidden states with the weights that training has now."""
        with self._present(layer) as block:
            weights = self._values(layer, block)
            if not weights:
                return runner.layer(layer, hidden)
            inside = {f"block.{name}": weight for name, weight in weights.items()}
            return torch.func.functional_call(_Scope(block), inside, (lambda: runner.layer(layer, hidden),))

    def weights(self, layer: int) -> dict[str, torch.Tensor]:
        """Return what is trained of a layer as it is now, in the model's dtype; differentiable in the masters."""
        with self._present(layer) as block:
            return self._values(layer, block)

    @torch.no_grad()
    def scaled(self, layer: int, factor: float) -> dict[str, torch.Tensor]:
        """Return what is trained of a layer, moved by a share of what training moved it, in the model's dtype."""
        moved = self.weights(layer)
        if factor == 1:
            return moved
        with self._view.materialised(layer) as block:
            for name, weight in moved.items():
                base = block.get_parameter(name)
                moved[name] = (base.float() + factor * (weight.float() - base.float())).to(base.dtype)
        return moved

    def _present(self, layer: int) -> AbstractContextManager[nn.Module]:
        """Return a context in which a layer has all of its own weights that its values or its run depend on."""
        every = {name for name, _ in self._view.layer(layer).named_parameters()}
        replaced = self._rank is None and not self._keep_zeros and every <= set(self._names.get(layer, ()))
        return nullcontext(self._view.layer(layer)) if replaced else self._view.materialised(layer)

    def _values(self, layer: int, block: nn.Module) -> dict[str, torch.Tensor]:
        own, values = self._names.get(layer, []), dict[str, torch.Tensor]()
        together = self._together(layer, block) if self._apart and own else {}
        for name in own:
            base, prefix = block.get_parameter(name).detach(), f"{layer}.{name}"
            if self._rank is None:
                weight = together[name] if together else self.parameters[prefix]
            else:
                update = (self._scale * self.parameters[f"{prefix}.B"]) @ self.parameters[f"{prefix}.A"]
                weight = update.add_(base)  # in float32, which the update is
            if self._keep_zeros and base.dim() >= 2:
                weight = torch.where(base != 0, weight, 0.0)  # a product would leave negative zeros
            values[name] = weight.to(base.dtype)
        return values

    def _together(self, layer: int, block: nn.Module) -> dict[str, torch.Tensor]:
        """Return weights that processes hold apart."""
        places, mine = dict[str, Place](), dict[str, nn.Parameter]()
        for name in self._names[layer]:
            like, owner = block.get_parameter(name), self._owner[f"{layer}.{name}"]
            places[name] = Place(owner, like.shape, like.dtype, self._view.device)
            if owner == self._crew.rank:
                mine[name] = self.parameters[f"{layer}.{name}"]
        return gathered(self._crew, places, mine)


class _Scope(nn.Module):
    """Runs a function in which a layer's parameters can be substituted."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, compute: Callable[[], torch.Tensor]) -> torch.Tensor:
        return compute()


def all_parameters(view: View, layers: Iterable[int]) -> Names:
    """Return all floating-point parameters of some layers."""
    return {i: [name for name, p in view.layer(i).named_parameters() if p.is_floating_point()] for i in layers}


def all_matrices(view: View, layers: Iterable[int]) -> Names:
    """Return all parameters of some layers that are matrices, or stacks of them."""
    return {i: [name for name, p in view.layer(i).named_parameters() if p.dim() >= 2] for i in layers}


def set_values(ctx: Context, masters: Masters, shares: Mapping[int, float] | None = None) -> Iterator[SetWeight]:
    """Yield the ops that give parameters the values they were trained to, or by layer a share of the way there."""
    for layer in masters.layers:
        for name, tensor in masters.scaled(layer, 1.0 if shares is None else shares[layer]).items():
            yield SetWeight(layer=layer, param=name, tensor=ctx.put(f"{layer}.{name}", tensor))
