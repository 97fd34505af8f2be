"""The plan: stages of ops for one base model, with the tensors they need. Everything else is a function of it.

May import `models`, and its neighbours in `plan`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from pydantic import BaseModel, ConfigDict, Field

from sned.canon import digest
from sned.errors import PlanError, SnedError
from sned.models.count import Counts, count
from sned.plans.ops import Keep, Op

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sned.models.view import View

FORMAT = 1
"""Version of the plan file; raised when an old reader would misread a new plan."""

_STRICT = ConfigDict(frozen=True, strict=True, extra="forbid", arbitrary_types_allowed=True)


class Base(BaseModel):
    """The model that a plan was made for: what identifies it, and the sizes a reader wants to see."""

    model_config = _STRICT

    source: str
    model_type: str
    geometry: str
    weights: str
    n_layers: int
    hidden: int
    n_params: int

    @classmethod
    def of(cls, view: View, source: str) -> Base:
        """Describe the base model of a view."""
        mark, geometry = view.fingerprint, view.geometry
        return cls(
            source=source,
            model_type=mark.model_type,
            geometry=mark.geometry,
            weights=mark.weights,
            n_layers=geometry.n_layers,
            hidden=geometry.hidden,
            n_params=geometry.n_params,
        )

    def differences(self, other: Base) -> list[str]:
        """Say in what two base models differ, wherever they came from."""
        names = {
            "model_type": "model type",
            "n_layers": "layers",
            "hidden": "hidden size",
            "n_params": "parameters",
            "geometry": "geometry",
            "weights": "weights",
        }
        out: list[str] = []
        for name, label in names.items():
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                short = name in ("geometry", "weights")
                out.append(f"{label}: {mine[:12]} / {theirs[:12]}" if short else f"{label}: {mine} / {theirs}")
        return out


class Stage(BaseModel):
    """What one method decided: its ops, how it was asked, and the scores that explain the choice."""

    model_config = _STRICT

    method: str
    options: dict[str, Any]
    ops: tuple[Op, ...]
    scores: dict[str, Any] = Field(default_factory=dict)


class Size(BaseModel):
    """Counts of a model, as a plan records them for readers without weights."""

    model_config = _STRICT

    params: int
    body_params: int
    flops_per_token: int
    kv_bytes_per_token: int

    @classmethod
    def of(cls, counts: Counts) -> Size:
        """Copy counts."""
        return cls(
            params=counts.params,
            body_params=counts.body_params,
            flops_per_token=counts.flops_per_token,
            kv_bytes_per_token=counts.kv_bytes_per_token,
        )


class Plan(BaseModel):
    """Stages of ops in base coordinates. `tensors` lie beside it, by content-addressed reference."""

    model_config = _STRICT

    base: Base
    stages: tuple[Stage, ...]
    dense: Size
    pruned: Size
    provenance: dict[str, Any] = Field(default_factory=dict)
    tensors: dict[str, torch.Tensor] = Field(default_factory=dict, exclude=True, repr=False)

    @property
    def ops(self) -> tuple[Op, ...]:
        """All ops, in order."""
        return tuple(op for stage in self.stages for op in stage.ops)

    @property
    def digest(self) -> str:
        """Identify what the plan does and how it was asked: base, methods, options, ops and tensors."""
        return digest(
            {
                "base": [self.base.model_type, self.base.geometry, self.base.weights],
                "stages": [s.model_dump(mode="json", exclude={"scores"}) for s in self.stages],
                "tensors": {name: tensor_digest(t) for name, t in self.tensors.items()},
            }
        )

    def summary(self) -> str:
        """Say in one line what the plan does."""
        return "; ".join(op.describe() for op in self.ops) or "nothing"

    def check(self, view: View) -> None:
        """Make sure that a view shows the model the plan was made for.

        Raises:
            PlanError: it does not; the message lists every difference.
        """
        if differences := self.base.differences(Base.of(view, "")):
            lines = "".join(f"\n    {line}" for line in differences)
            raise PlanError(
                f"this plan was made for another model than {view.model.config.model_type!r} here "
                f"(plan / model):{lines}",
                hint=f"the plan was made from {self.base.source}",
            )

    def apply(self, view: View) -> None:
        """Change a view of the dense base model into the pruned one.

        Raises:
            PlanError: the plan is for another model, or an op does not fit what earlier ones left.
        """
        self.check(view)
        for number, op in enumerate(self.ops):
            try:
                op.apply(view, self.tensors)
            except SnedError as error:
                raise type(error)(f"op {number} ({op.describe()}): {error.args[0]}", hint=error.hint) from error
        if (left := count(view).params) != self.pruned.params:
            raise PlanError(f"the plan promises {self.pruned.params} parameters, but leaves {left}")

    def then(self, other: Plan) -> Plan:
        """Return the plan that does this and then the other; base coordinates make that concatenation.

        Raises:
            PlanError: the two were made for different models.
        """
        if differences := self.base.differences(other.base):
            raise PlanError("the plans are for different models: " + ", ".join(differences))
        return self.model_copy(
            update={
                "stages": self.stages + other.stages,
                "pruned": other.pruned,
                "tensors": {**self.tensors, **other.tensors},
            }
        )


def tensor_digest(tensor: torch.Tensor) -> str:
    """Identify a tensor by dtype, shape and bytes."""
    raw = tensor.detach().cpu().contiguous()
    header = f"{raw.dtype}{tuple(raw.shape)}".encode()
    return digest(header + raw.view(torch.uint8).numpy().tobytes())


def used_tensors(ops: Iterable[Op], tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors that ops refer to, in the order of use."""
    names = (getattr(op, "tensor", None) for op in ops)
    return {name: tensors[name] for name in names if name is not None}


def merged(ops: Sequence[Op]) -> list[Op]:
    """Return ops that do the same, without a `Keep` that another one on the same axis follows.

    A search narrows an axis step by step, and only the last width matters, unless something in between changed the
    layer at the width that it had then.
    """
    out: list[Op] = []
    for op in ops:
        if isinstance(op, Keep):
            earlier = next((o for o in reversed(out) if set(o.touched) & set(op.touched)), None)
            if isinstance(earlier, Keep) and earlier.axis == op.axis and set(op.units) <= set(earlier.units):
                out.remove(earlier)
        out.append(op)
    return out
