"""The weight matrices of a layer in the terms of the field, whatever modules hold them.

A family may fuse queries, keys and values into one projection, or store matrices transposed; what looks at single
weights sees `[out, in]` matrices named q, k, v, o, gate, up and down all the same. May import its neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from sned.errors import NumericalError
from sned.models.experts import DOWN, EXPERTS, GATE_UP, stacked
from sned.models.geometry import is_conv1d, path

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

    from sned.models.family import Sublayer
    from sned.models.view import View


@dataclass(frozen=True, slots=True)
class Rows:
    """Which rows of a stored matrix are one logical matrix: `count` runs of `block`, one every `stride`."""

    offset: int
    block: int
    stride: int
    count: int

    def index(self, device: torch.device | str = "cpu") -> torch.Tensor:
        """Return the row numbers, in order."""
        starts = self.offset + self.stride * torch.arange(self.count, device=device)
        return (starts[:, None] + torch.arange(self.block, device=device)).flatten()


@dataclass(frozen=True, slots=True)
class Matrix:
    """One logical weight matrix `[rows, columns]`, that is `[out, in]`, of a decoder layer."""

    layer: int
    which: Sublayer
    role: str
    """q, k, v, o, gate, up or down."""
    module: str
    """The module that holds it, relative to the layer."""
    rows: int
    columns: int
    part: Rows | None = None
    """Where it lies in the stored matrix; None where it is all of it."""
    transposed: bool = False
    """Whether the module stores `[in, out]`."""
    expert: int | None = None
    """Which of the stacked experts it belongs to, if any."""

    @property
    def name(self) -> str:
        """Its name in base coordinates, such as ``layers.3.attn.q``, or ``layers.3.mlp.up.7`` of an expert."""
        expert = "" if self.expert is None else f".{self.expert}"
        return f"layers.{self.layer}.{self.which}.{self.role}{expert}"

    @property
    def param(self) -> str:
        """The parameter that holds it, relative to the layer."""
        if self.expert is None:
            return f"{self.module}.weight"
        return f"{self.module}.{DOWN if self.role == 'down' else GATE_UP}"

    @property
    def reads(self) -> str:
        """What it receives, by a name that matrices with the same inputs may share."""
        if self.expert is None:
            return self.module
        return f"{self.module}.{self.expert}.{'hidden' if self.role == 'down' else 'input'}"

    @property
    def size(self) -> int:
        """How many weights it has."""
        return self.rows * self.columns

    def read(self, stored: torch.Tensor) -> torch.Tensor:
        """Return the matrix `[rows, columns]` out of what its module stores, or out of a mask of that shape."""
        whole = self._own(stored)
        return whole if self.part is None else whole.index_select(0, self.part.index(whole.device))

    def of(self, block: nn.Module) -> torch.Tensor:
        """Return the matrix `[rows, columns]` that its layer, whose weights are in memory, has.

        Raises:
            NumericalError: it holds NaN or infinity.
        """
        weight = self.read(block.get_parameter(self.param).detach())
        if not torch.isfinite(weight.sum(dtype=torch.float32)) and not torch.isfinite(weight).all():
            raise NumericalError(f"{self.name} holds NaN or infinity", hint="see whether the checkpoint is damaged")
        return weight

    def write(self, stored: torch.Tensor, values: torch.Tensor) -> None:
        """Put a matrix `[rows, columns]` where `read` takes it from."""
        whole = self._own(stored)
        if self.part is None:
            whole.copy_(values)
        else:
            whole[self.part.index(whole.device)] = values.to(whole)

    def _own(self, stored: torch.Tensor) -> torch.Tensor:
        """Return the stored matrix `[out, in]`, that of its expert where they are stacked."""
        one = stored if self.expert is None else stored[self.expert]
        return one.T if self.transposed else one


def matrices(view: View, layer: int) -> list[Matrix]:
    """Return the matrices of a present layer that multiply the stream, attention first; routers are not among them."""
    found: list[Matrix] = []
    if view.has_branch(layer, "attn"):
        found += _attention(view, layer)
    if view.has_branch(layer, "mlp"):
        experts = stacked(view.branch(layer, "mlp"))
        found += _mlp(view, layer) if experts is None else _experts(view, layer, experts)
    return found


def matrix_of(view: View, layer: int, module: str) -> Matrix:
    """Return the matrix that is all that a module of a layer, named relative to it, holds."""
    return next(matrix for matrix in matrices(view, layer) if matrix.module == module)


def all_matrices(view: View) -> list[Matrix]:
    """Return the matrices of all present layers, from the first layer to the last."""
    return [matrix for layer in view.layers for matrix in matrices(view, layer)]


def _attention(view: View, layer: int) -> Iterator[Matrix]:
    family, geometry = view.family, view.geometry
    groups = len(view.alive[f"layers.{layer}.attn.group"])
    width = geometry.head_dim
    ratio = geometry.n_heads // geometry.n_kv_groups
    if family.qkv is None:
        for role, name in (("q", family.q), ("k", family.k), ("v", family.v)):
            yield _matrix(view, layer, "attn", role, path(family.attn, name))
    else:
        queries = ratio * width
        parts = {
            "concat": [
                Rows(0, groups * queries, 0, 1),
                Rows(groups * queries, groups * width, 0, 1),
                Rows(groups * (queries + width), groups * width, 0, 1),
            ],
            "head": [Rows(i * width, width, 3 * width, groups) for i in range(3)],
            "group": [
                Rows(0, queries, queries + 2 * width, groups),
                Rows(queries, width, queries + 2 * width, groups),
                Rows(queries + width, width, queries + 2 * width, groups),
            ],
        }[family.qkv_layout]
        for role, part in zip("qkv", parts, strict=True):
            yield _matrix(view, layer, "attn", role, path(family.attn, family.qkv), part)
    yield _matrix(view, layer, "attn", "o", path(family.attn, family.o))


def _mlp(view: View, layer: int) -> Iterator[Matrix]:
    family = view.family
    if family.gate_up:
        width = len(view.alive[f"layers.{layer}.mlp.hidden"])
        fused = path(family.mlp, family.gate_up)
        yield _matrix(view, layer, "mlp", "gate", fused, Rows(0, width, 0, 1))
        yield _matrix(view, layer, "mlp", "up", fused, Rows(width, width, 0, 1))
    else:
        if family.gate:
            yield _matrix(view, layer, "mlp", "gate", path(family.mlp, family.gate))
        yield _matrix(view, layer, "mlp", "up", path(family.mlp, family.up))
    yield _matrix(view, layer, "mlp", "down", path(family.mlp, family.down))


def _experts(view: View, layer: int, experts: nn.Module) -> Iterator[Matrix]:
    module = path(view.family.mlp, EXPERTS)
    number, hidden, width = experts.get_parameter(DOWN).shape
    for expert in range(number):
        for role, first in (("gate", 0), ("up", width)):
            yield Matrix(layer, "mlp", role, module, width, hidden, Rows(first, width, 0, 1), expert=expert)
        yield Matrix(layer, "mlp", "down", module, hidden, width, expert=expert)


def _matrix(view: View, layer: int, which: Sublayer, role: str, module: str, part: Rows | None = None) -> Matrix:
    held = view.layer(layer).get_submodule(module)
    shape = held.get_parameter("weight").shape
    transposed = is_conv1d(held)
    rows, columns = reversed(shape) if transposed else shape
    if part is not None:
        rows = part.block * part.count
    return Matrix(layer, which, role, module, rows, columns, part, transposed)


def reader_of(view: View, matrix: Matrix) -> tuple[int, str] | None:
    """Return the layer, and by its name the input of matrices there, that the rows of a matrix compute one by one.

    None for queries and keys, of which only products are read, for what experts read, which get some tokens each, and
    for what the output head reads. Between a matrix that writes to the stream and its reader stands a norm.
    """
    own = {(other.role, other.expert): other for other in matrices(view, matrix.layer)}
    if matrix.role in ("q", "k"):
        return None
    if matrix.role in ("gate", "up", "v"):
        return matrix.layer, own["o" if matrix.role == "v" else "down", matrix.expert].reads
    if matrix.role == "o" and not view.parallel and view.has_branch(matrix.layer, "mlp"):
        up = own.get(("up", None))
        return None if up is None else (matrix.layer, up.reads)
    following = next((i for i in view.layers if i > matrix.layer), None)
    found = matrices(view, following) if following is not None else []
    return (found[0].layer, found[0].reads) if found and found[0].expert is None else None


def by_row(view: View, matrix: Matrix, values: torch.Tensor) -> torch.Tensor:
    """Return for each row of a matrix the value `[columns]` of its reader's input, `[rows]`.

    A value head is read by all query heads of its group: it gets their mean.
    """
    if matrix.role != "v":
        return values
    width = view.geometry.head_dim
    return values.view(matrix.rows // width, -1, width).mean(1).flatten()
