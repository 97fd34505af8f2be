"""Reversible changes: what an op would do, for the duration of a context. The mirror of `surgery`.

Gates are differentiable. May import its neighbours in `models`.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from sned.models.folding import output_projection, require_bias_fits
from sned.models.forward import answering
from sned.models.modeling_sned import Features, NoMixer, NoMLP
from sned.models.modeling_sned import stand_in as mapped
from sned.models.surgery import require_consecutive, require_shape, require_sublayer

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sned.models.family import Sublayer
    from sned.models.geometry import Axis
    from sned.models.view import View


@contextmanager
def skip(view: View, layers: Iterable[int]) -> Iterator[None]:
    """Pass over whole layers in layer-by-layer runs.

    All of them, if need be, which no op may remove: the stream then passes straight from embeddings to head.
    """
    before = view.skipped
    for i in (gone := frozenset(layers)):
        view.layer(i)
    view.skipped = before | gone
    try:
        yield
    finally:
        view.skipped = before


@contextmanager
def bypass(view: View, layer: int, which: Sublayer) -> Iterator[None]:
    """Silence one sublayer: it adds zero to the residual stream, and is not computed."""
    require_sublayer(view, layer, which)
    block, family = view.layer(layer), view.family
    if which == "attn":
        stand_ins = {family.attn: NoMixer(0).forward}
    elif family.mlp is not None:
        stand_ins = {family.mlp: NoMLP().forward}
    else:
        stand_ins = {family.up: nn.Identity().forward, family.down: NoMLP().forward}
    with ExitStack() as stack:
        for name, forward in stand_ins.items():
            stack.enter_context(answering(block.get_submodule(name), forward))
        yield


@contextmanager
def gate(view: View, axis: Axis, mask: torch.Tensor) -> Iterator[None]:
    """Multiply the units of an axis by `mask` `[axis.size]`, in base units; differentiable in the mask."""
    require_sublayer(view, axis.layer, axis.which)
    factors = mask[list(view.alive[axis.name])].repeat_interleave(axis.tap_block)

    def scaled(values: torch.Tensor, features: Features | None) -> torch.Tensor:
        # a module that picks its features out of the stream itself meets the whole of it
        return values * (factors if features is None else features.put(factors)).to(values)

    def scale_input(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (scaled(args[0], getattr(module, "reads", None)), *args[1:])

    def scale_output(module: nn.Module, _args: tuple[Any, ...], out: torch.Tensor) -> torch.Tensor:
        return scaled(out, getattr(module, "writes", None))

    with ExitStack() as stack:
        for tap in axis.taps:
            module = view.layer(axis.layer).get_submodule(tap)
            if axis.tap_output:
                handle = module.register_forward_hook(scale_output)
            else:
                handle = module.register_forward_pre_hook(scale_input)
            stack.callback(handle.remove)
        yield


@contextmanager
def shifted(view: View, layer: int, which: Sublayer, vector: torch.Tensor) -> Iterator[None]:
    """Add a constant vector to what the output projection of a sublayer returns."""
    require_bias_fits(view, layer, which, vector)
    module = view.layer(layer).get_submodule(output_projection(view, which))

    def shift(module: nn.Module, _args: tuple[Any, ...], out: torch.Tensor) -> torch.Tensor:
        features = getattr(module, "writes", None)
        return out + (vector if features is None else features.put(vector)).to(out)

    handle = module.register_forward_hook(shift)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def stand_in(view: View, layers: list[int], spec: str, tensor: torch.Tensor) -> Iterator[None]:
    """Let one simple map of the residual stream answer for consecutive layers."""
    require_consecutive(view, layers)
    require_shape(view, spec, tensor)
    first, *rest = layers
    weight = tensor.to(view.device, view.dtype)

    def instead(hidden_states: torch.Tensor, *_args: Any, **_kwargs: Any) -> Any:
        out = mapped(spec, weight, hidden_states)
        return (out, None) if view.family.returns_tuple else out

    with skip(view, rest), answering(view.layer(first), instead):
        yield
