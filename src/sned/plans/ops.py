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
from sned.models import folding, merging, surgery, trial
from sned.models.family import Sublayer
from sned.models.merging import MergeMode

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

    @property
    def reads(self) -> tuple[int, ...]:
        """The base layers whose state matters for what the op does to others."""
        return ()

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


Spec = Literal["linear", "shift", "scale", "lowrank"]
_SPECS: dict[Spec, str] = {
    "linear": "one linear map",
    "shift": "one constant shift",
    "scale": "one factor per channel",
    "lowrank": "one low-rank update",
}


class Replace(_Op):
    """Put one simple map of the residual stream `x` in the place of consecutive layers.

    By `spec`, the tensor is: `linear`, `T` `[hidden, hidden]` of `x T`; `shift`, `u` `[hidden]` of `x + u`; `scale`,
    `d` `[hidden]` of `x * d`; `lowrank`, the rows of `A` transposed, then those of `B`, `[2 * rank, hidden]`, of
    `x + (x A) B`.
    """

    op: Literal["replace"] = "replace"
    layers: Span
    spec: Spec = "linear"
    tensor: str

    @property
    def touched(self) -> tuple[int, ...]:
        return self.layers

    def apply(self, view: View, tensors: Tensors) -> None:
        surgery.replace(view, self.layers, self.spec, _fetch(tensors, self.tensor))

    def trial(self, view: View, tensors: Tensors) -> AbstractContextManager[None]:
        return trial.stand_in(view, list(self.layers), self.spec, _fetch(tensors, self.tensor))

    @property
    def stand_in(self) -> str:
        """What stands in the place of the layers, in words."""
        return _SPECS[self.spec]

    def describe(self) -> str:
        return f"replace layers {format_span(self.layers)} by {self.stand_in}"


class Merge(_Op):
    """Merge the layers that directly follow a base layer into it, and remove them.

    The base layer keeps its norms; its matrices and their biases change by `mode` (see `models.merging`).
    """

    op: Literal["merge"] = "merge"
    into: Index
    layers: Span
    mode: MergeMode

    @property
    def touched(self) -> tuple[int, ...]:
        return (self.into, *self.layers)

    @property
    def reads(self) -> tuple[int, ...]:
        return tuple(range(self.into + 1, self.layers[-1] + 1))  # those in between must have been removed

    def apply(self, view: View, tensors: Tensors) -> None:
        merging.merge(view, self.into, self.layers, self.mode)

    def trial(self, view: View, tensors: Tensors) -> AbstractContextManager[None]:
        return merging.merged(view, self.into, self.layers, self.mode)

    def describe(self) -> str:
        return f"merge layers {format_span(self.layers)} into layer {self.into} ({self.mode})"


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


class AddBias(_Op):
    """Add a constant vector to what a sublayer's output projection returns; it gets a bias if it has none.

    The tensor has one entry for each feature that the projection writes when the op's turn comes.
    """

    op: Literal["add_bias"] = "add_bias"
    layer: Index
    which: Sublayer
    tensor: str

    @property
    def touched(self) -> tuple[int, ...]:
        return (self.layer,)

    def apply(self, view: View, tensors: Tensors) -> None:
        folding.add_bias(view, self.layer, self.which, _fetch(tensors, self.tensor))

    def trial(self, view: View, tensors: Tensors) -> AbstractContextManager[None]:
        return trial.shifted(view, self.layer, self.which, _fetch(tensors, self.tensor))

    def describe(self) -> str:
        return f"add a bias to the {self.which} of layer {self.layer}"


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


Op = Annotated[
    DropLayers | DropSublayer | Keep | Fold | Replace | Merge | SetWeight | AddBias | Mask, Field(discriminator="op")
]


def _fetch(tensors: Tensors, reference: str) -> torch.Tensor:
    try:
        return tensors[reference]
    except KeyError:
        raise PlanError(
            f"the plan has no tensor {reference!r}", hint="plan.safetensors must lie beside plan.json"
        ) from None
