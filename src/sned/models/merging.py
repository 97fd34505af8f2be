"""Merging layers: the matrices of consecutive layers made into those of the first of them, for good or for a while.

What is merged of a layer is every matrix, stacked experts and their routers included, and the bias beside a matrix.
Norms stay those of the base layer, on queries and keys too, and so does all that its place decides, such as a sliding
window. Every function leaves the tensors that other views share alone. May import its neighbours in `models`.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

import torch

from sned.canon import format_span
from sned.errors import PlanError
from sned.models.surgery import drop_layers
from sned.models.trial import skip

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from sned.models.view import View
    from sned.models.weights import Edit, Weights

    Reader = Callable[[], Mapping[str, torch.Tensor]]

MergeMode = Literal["keep_last", "sum_diff", "mean", "keep_first"]
"""What the base layer `W` gets of the layers `W1` to `Wm` merged into it: `Wm` | `W + sum(Wk - W)` | the mean of all
`m + 1` | nothing."""


def merge(view: View, into: int, layers: Sequence[int], mode: MergeMode) -> None:
    """Merge the layers that follow a base layer into it, and remove them.

    Raises:
        PlanError: a layer is not there any more, or they cannot be merged.
    """
    change = merging(view, into, layers, mode)
    if mode != "keep_first":  # which changes nothing but the number of layers
        view.edit(into, change, structural=False)
    drop_layers(view, layers)


@contextmanager
def merged(view: View, into: int, layers: Sequence[int], mode: MergeMode) -> Iterator[None]:
    """Merge layers for the duration of the context.

    Raises:
        PlanError: a layer is not there any more, or they cannot be merged.
    """
    with view.edited(into, merging(view, into, layers, mode)), skip(view, layers):
        yield


def merging(view: View, into: int, layers: Sequence[int], mode: MergeMode) -> Edit:
    """Return the edit of the base layer that `merge` makes.

    Sums are formed in float32, or in the weights' own dtype where that is wider, and rounded once.

    Raises:
        PlanError: a layer is not there any more, or they cannot be merged.
    """
    if obstacle := merge_obstacle(view, into, layers):
        raise PlanError(f"layers {format_span(layers)} cannot be merged into layer {into}: {obstacle}")
    readers = [view.reader(i) for i in layers]
    match mode:
        case "keep_last":
            return _taking(readers[-1])
        case "sum_diff":
            return _summing(readers, 1.0 - len(layers), 1.0)
        case "mean":
            share = 1 / (len(layers) + 1)
            return _summing(readers, share, share)
        case "keep_first":
            return lambda _weights: None


def _taking(read: Reader) -> Edit:
    """Return the edit that takes the matrices of another layer as they are."""

    def change(weights: Weights) -> None:
        other = read()
        weights.update({name: other[name].to(weights[name].device) for name in _merged_names(weights)})

    return change


def _summing(readers: Sequence[Reader], own: float, theirs: float) -> Edit:
    """Return the edit that adds `own` times the layer's matrices and `theirs` times those of each other."""

    def change(weights: Weights) -> None:
        sums = {name: own * _wide(weights[name]) for name in _merged_names(weights)}
        for read in readers:
            other = read()
            for name, so_far in sums.items():
                sums[name] = so_far + theirs * _wide(other[name]).to(so_far.device)
        for name in list(sums):
            weights[name] = sums.pop(name).to(weights[name].dtype)

    return change


def merge_obstacle(view: View, into: int, layers: Sequence[int]) -> str | None:
    """Say why layers cannot be merged into a base layer, or None if they can.

    They must follow it directly, among the layers that run, be whole, and have matrices of the same shapes.

    Raises:
        PlanError: a layer is not there any more.
    """
    for i in (group := [into, *layers]):
        view.layer(i)
    running = view.active
    start = running.index(into) if into in running else 0
    if running[start : start + len(group)] != group:
        return f"they do not follow each other after layer {into}"
    for i in group:
        if view.is_replaced(i):
            return f"layer {i} was replaced by a simple map"
        if lost := next((which for which in ("attn", "mlp") if not view.has_branch(i, which)), None):
            return f"layer {i} has no {lost} any more"
        if view.routes(i):
            return f"layer {i} reads or writes only some features of the residual stream"
    own = _shapes(view, into)
    others = {i: _shapes(view, i) for i in layers}
    return next((_difference(own, theirs, into, i) for i, theirs in others.items() if theirs != own), None)


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _merged_names(weights: Mapping[str, torch.Tensor]) -> list[str]:
    """Return the names of what is merged: matrices but for norms, and biases beside them."""
    matrices = {name for name, tensor in weights.items() if tensor.dim() > 1 and "norm" not in name}
    return [name for name in weights if name in matrices or f"{name.removesuffix('bias')}weight" in matrices]


def _shapes(view: View, index: int) -> dict[str, list[int]]:
    weights = dict(view.layer(index).named_parameters())
    return {name: list(weights[name].shape) for name in _merged_names(weights)}


def _difference(own: Mapping[str, list[int]], other: Mapping[str, list[int]], into: int, index: int) -> str:
    """Name a parameter in which a layer differs from the base layer."""
    name = next(n for n in [*own, *other] if own.get(n) != other.get(n))
    if name in own and name in other:
        return f"{name} is {own[name]} in layer {into} and {other[name]} in layer {index}"
    return f"layer {into if name in own else index} alone has {name}"
