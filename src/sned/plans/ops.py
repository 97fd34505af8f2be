"""The closed set of ops: every change a plan can make, in base coordinates.

An op is strict data that knows how to change a live view (`apply`) and how to pretend for a while (`trial`).
Methods yield ops; they cannot invent new ones, so that a plan stays readable for years. May import `models`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer

from sned.canon import format_span, parse_span
from sned.errors import PlanError
from sned.models import folding, surgery, trial
from sned.models.family import Sublayer

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from sned.models.view import View

Tensors = Mapping[str, torch.Tensor]
"""The tensors of a plan by reference."""


def _read_span(value: Any) -> Any:
    if isinstance(value, str):
        return parse_span(value)
    return tuple(sorted(set(value))) if isinstance(value, Sequence) else value


Span = Annotated[
    tuple[Annotated[int, Field(ge=0)], ...],
    BeforeValidator(_read_span),
    PlainSerializer(format_span, return_type=str),
    Field(min_length=1),
]
"""Ascending base indices, written as ``"0-63,70"``."""
Index = Annotated[int, Field(ge=0)]


class _Op(BaseModel, ABC):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    @property
    @abstractmethod
    def touched(self) -> tuple[int, ...]:
        """The base layers whose computation the op changes."""

    @abstractmethod
    def apply(self, view: View, tensors: Tensors) -> None:
        """Change the view for good.

        Raises:
            PlanError: what the op names is not there, or not any more.
            UnsupportedModelError: the family does not allow it.
        """

    @abstractmethod
    def trial(self, view: View, tensors: Tensors) -> AbstractContextManager[None]:
        """Change what a layer-by-layer run of the view computes, until the context ends."""

    @abstractmethod
    def describe(self) -> str:
        """Say in a few words what the op does."""


class DropLayers(_Op):
    """Remove whole decoder layers."""

    op: Literal["drop_layers"] = "drop_layers"
    layers: Span

    @property
    def touched(self) -> tuple[int, ...]:
        return self.layers

    def apply(self, view: View, tensors: Tensors) -> None:
        surgery.drop_layers(view, self.layers)

    def trial(self, view: View, tensors: Tensors) -> AbstractContextManager[None]:
        return trial.skip(view, self.layers)

    def describe(self) -> str:
        return f"remove layers {format_span(self.layers)}"


class DropSublayer(_Op):
    """Remove the attention or the MLP of one layer."""

    op: Literal["drop_sublayer"] = "drop_sublayer"
    layer: Index
    which: Sublayer

    @property
    def touched(self) -> tuple[int, ...]:
        return (self.layer,)

    def apply(self, view: View, tensors: Tensors) -> None:
        surgery.drop_sublayer(view, self.layer, self.which)

    def trial(self, view: View, tensors: Tensors) -> AbstractContextManager[None]:
        return trial.bypass(view, self.layer, self.which)

    def describe(self) -> str:
        return f"remove the {self.which} of layer {self.layer}"


class Keep(_Op):
    """Keep some units of an axis and cut the rest."""

    op: Literal["keep"] = "keep"
    axis: str
    units: Span

    @property
    def touched(self) -> tuple[int, ...]:
        return (int(self.axis.split(".")[1]),)

    def apply(self, view: View, tensors: Tensors) -> None:
        surgery.keep(view, view.axis(self.axis), self.units)

    def trial(self, view: View, tensors: Tensors) -> AbstractContextManager[None]:
        axis = view.axis(self.axis)
        mask = torch.zeros(axis.size)
        mask[list(self.units)] = 1.0
        return trial.gate(view, axis, mask)

    def describe(self) -> str:
        return f"keep {len(self.units)} units of {self.axis}"


class Fold(_Op):
    """Fold a linear map `[hidden, hidden]` into what a layer's MLP adds to the stream."""

    op: Literal["fold"] = "fold"
    layer: Index
    tensor: str

    @property
    def touched(self) -> tuple[int, ...]:
        return (self.layer,)

    def apply(self, view: View, tensors: Tensors) -> None:
        folding.fold(view, self.layer, _fetch(tensors, self.tensor))

    def trial(self, view: View, tensors: Tensors) -> AbstractContextManager[None]:
        return view.edited(self.layer, folding.folding(view, self.layer, _fetch(tensors, self.tensor)))

    def describe(self) -> str:
        return f"fold a linear map into the MLP of layer {self.layer}"


class Replace(_Op):
    """Put one linear map `[hidden, hidden]` of the residual stream in the place of consecutive layers."""

    op: Literal["replace"] = "replace"
    layers: Span
    spec: Literal["linear"] = "linear"
    tensor: str

    @property
    def touched(self) -> tuple[int, ...]:
        return self.layers

    def apply(self, view: View, tensors: Tensors) -> None:
        surgery.replace_with_linear(view, self.layers, _fetch(tensors, self.tensor))

    def trial(self, view: View, tensors: Tensors) -> AbstractContextManager[None]:
        return trial.stand_in(view, list(self.layers), _fetch(tensors, self.tensor))

    def describe(self) -> str:
        return f"replace layers {format_span(self.layers)} by one linear map"


class SetWeight(_Op):
    """Give a parameter of a layer new values, of the shape that it has when the op's turn comes."""

    op: Literal["set_weight"] = "set_weight"
    layer: Index
    param: str
    tensor: str

    @property
    def touched(self) -> tuple[int, ...]:
        return (self.layer,)

    def apply(self, view: View, tensors: Tensors) -> None:
        folding.set_values(view, self.layer, self.param, _fetch(tensors, self.tensor))

    def trial(self, view: View, tensors: Tensors) -> AbstractContextManager[None]:
        return view.edited(self.layer, folding.setting(view, self.layer, self.param, _fetch(tensors, self.tensor)))

    def describe(self) -> str:
        return f"set {self.param} of layer {self.layer}"


class Mask(_Op):
    """Set single weights of a parameter to zero; it keeps the shape that it has when the op's turn comes.

    The tensor holds one bit per weight, 1 where the weight goes (`models.bits`).
    """

    op: Literal["mask"] = "mask"
    layer: Index
    param: str
    tensor: str
    zeros: Index
    """How many bits are set, for readers without the tensor."""
    of: Index
    """Of how many weights."""

    @property
    def touched(self) -> tuple[int, ...]:
        return (self.layer,)

    def apply(self, view: View, tensors: Tensors) -> None:
        folding.mask_weights(view, self.layer, self.param, _fetch(tensors, self.tensor))

    def trial(self, view: View, tensors: Tensors) -> AbstractContextManager[None]:
        return view.edited(self.layer, folding.masking(view, self.layer, self.param, _fetch(tensors, self.tensor)))

    def describe(self) -> str:
        return f"set {self.zeros / max(1, self.of):.1%} of {self.param} of layer {self.layer} to zero"


Op = Annotated[DropLayers | DropSublayer | Keep | Fold | Replace | SetWeight | Mask, Field(discriminator="op")]


def _fetch(tensors: Tensors, reference: str) -> torch.Tensor:
    try:
        return tensors[reference]
    except KeyError:
        raise PlanError(
            f"the plan has no tensor {reference!r}", hint="plan.safetensors must lie beside plan.json"
        ) from None
