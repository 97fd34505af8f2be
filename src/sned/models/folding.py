"""Changing what a layer's weights hold, and nothing of its shape: a linear map folded in, new values, or zeros.

Every function leaves the tensors that other views share alone. May import its neighbours in `models`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from sned.errors import PlanError, UnsupportedModelError
from sned.models.bits import unpack
from sned.models.geometry import is_conv1d, writer
from sned.models.matrices import matrix_of
from sned.models.surgery import require_sublayer

if TYPE_CHECKING:
    from sned.models.family import Sublayer
    from sned.models.view import View
    from sned.models.weights import Edit, Weights


def fold(view: View, layer: int, matrix: torch.Tensor) -> None:
    """Multiply what a layer's MLP adds to the stream by `matrix` `[hidden, hidden]` from the right.

    The output projection absorbs it in float64: `W <- Tᵀ W`, `b <- b T`.

    Raises:
        UnsupportedModelError: a norm or a mixture of experts makes that impossible.
    """
    view.edit(layer, folding(view, layer, matrix), structural=False)


def folding(view: View, layer: int, matrix: torch.Tensor) -> Edit:
    """Return the edit that `fold` makes.

    Raises:
        UnsupportedModelError: a norm or a mixture of experts makes that impossible.
    """
    if obstacle := view.fold_obstacle(layer):
        raise UnsupportedModelError(
            f"no linear map can be folded into layer {layer}: {obstacle}.",
            hint="use a stand-alone linear layer (--set standalone=true)",
        )
    down = output_projection(view, "mlp")
    transposed = is_conv1d(view.layer(layer).get_submodule(down))

    def change(weights: Weights) -> None:
        weight = weights[f"{down}.weight"]
        map64 = matrix.to(weight.device, torch.float64)
        wide = weight.double()
        weights[f"{down}.weight"] = (wide @ map64 if transposed else map64.T @ wide).to(weight.dtype)
        if f"{down}.bias" in weights:
            bias = weights[f"{down}.bias"]
            weights[f"{down}.bias"] = (bias.double() @ map64).to(bias.dtype)

    return change


def set_values(view: View, layer: int, param: str, values: torch.Tensor) -> None:
    """Give a parameter of a layer, named relative to it, new values of the shape that it has now.

    Raises:
        PlanError: there is no such parameter, or it has another shape.
    """
    view.edit(layer, setting(view, layer, param, values), structural=False)


def setting(view: View, layer: int, param: str, values: torch.Tensor) -> Edit:
    """Return the edit that `set_values` makes.

    Raises:
        PlanError: there is no such parameter, or it has another shape.
    """
    if (shape := tuple(_parameter(view, layer, param).shape)) != tuple(values.shape):
        raise PlanError(f"{param} of layer {layer} has the shape {list(shape)}, not {list(values.shape)}")

    def change(weights: Weights) -> None:
        old = weights[param]
        # a copy, since a matrix product may depend on where in memory its factors begin, and files begin anywhere
        weights[param] = values.to(old.device, old.dtype, copy=True)

    return change


def add_bias(view: View, layer: int, which: Sublayer, vector: torch.Tensor) -> None:
    """Add a constant vector to what the output projection of a sublayer returns, in float64.

    Raises:
        PlanError: the sublayer is gone, or the vector has another size.
        UnsupportedModelError: the MLP is a mixture of experts.
    """
    require_bias_fits(view, layer, which, vector)
    name = output_projection(view, which)

    def change(weights: Weights) -> None:
        weight, moved = weights[f"{name}.weight"], vector.double()
        if f"{name}.bias" in weights:
            moved = weights[f"{name}.bias"].double() + moved.to(weight.device)
        weights[f"{name}.bias"] = moved.to(weight.device, weight.dtype)

    view.edit(layer, change, structural=True)


def require_bias_fits(view: View, layer: int, which: Sublayer, vector: torch.Tensor) -> None:
    """Make sure that a vector can be added to what a sublayer's output projection returns.

    Raises:
        PlanError: the sublayer is gone, or the vector has another size.
        UnsupportedModelError: the MLP is a mixture of experts.
    """
    require_sublayer(view, layer, which)
    width = matrix_of(view, layer, output_projection(view, which)).rows
    if list(vector.shape) != [width]:
        raise PlanError(f"the {which} of layer {layer} writes {width} features, not {list(vector.shape)}")


def mask_weights(view: View, layer: int, param: str, gone: torch.Tensor) -> None:
    """Set weights of a layer to zero, for good and exactly.

    Args:
        view: The view to change.
        layer: The layer, in base coordinates.
        param: The parameter, named relative to the layer.
        gone: True where a weight goes, one bit each: what `bits.pack` makes of a mask of the parameter's shape.

    Raises:
        PlanError: there is no such parameter, or it has another size.
    """
    view.edit(layer, masking(view, layer, param, gone), structural=False)


def masking(view: View, layer: int, param: str, gone: torch.Tensor) -> Edit:
    """Return the edit that `mask_weights` makes.

    Raises:
        PlanError: there is no such parameter, or it has another size.
    """
    old = _parameter(view, layer, param)
    if len(gone) != -(-old.numel() // 8):
        raise PlanError(f"{param} of layer {layer} has {old.numel()} weights, and the mask is for another number")

    def change(weights: Weights) -> None:
        weight = weights[param]
        weights[param] = weight.masked_fill(unpack(gone, weight.shape).to(weight.device), 0.0)

    return change


def output_projection(view: View, which: Sublayer) -> str:
    """Return the name, within a layer, of the linear module whose output a sublayer adds to the stream."""
    return writer(view.family, which)


def refit_obstacle(view: View, which: Sublayer) -> str | None:
    """Say why the output projections of a kind of sublayer cannot be refitted to the stream, or None if they can."""
    post = view.family.attn_post if which == "attn" else view.family.mlp_post
    if post:
        return f"the norm {post} stands between its output projection and the residual stream"
    if which == "mlp" and view.family.experts:
        return "it is a mixture of experts"
    if any(f"{which}.write" in view.routes(layer) for layer in view.layers):
        return "some write only to some features of the residual stream"
    return None


def _parameter(view: View, layer: int, param: str) -> torch.Tensor:
    present = dict(view.layer(layer).named_parameters())
    if param not in present:
        raise PlanError(f"layer {layer} has no parameter {param!r}, or not any more")
    return present[param]
