"""Budgets: how much a user wants removed, in the units a method understands. Needs a geometry, no weights."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from sned.errors import BudgetError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sned.models.geometry import Geometry

BudgetKind = Literal["layers", "blocks", "remove", "sparsity"]
BUDGET_FLAGS: dict[BudgetKind, str] = {
    "layers": "--layers N",
    "blocks": "--blocks N",
    "remove": "--remove 25%",
    "sparsity": "--sparsity 50%",
}
BUDGET_KINDS: tuple[BudgetKind, ...] = tuple(BUDGET_FLAGS)
_SHARE = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*(%?)")


@dataclass(frozen=True, slots=True)
class Budget:
    """How much to remove; at most one of the kinds is set, and none means what a method proposes.

    A block is an attention or an MLP. `remove` is a share between 0 and 1 of all parameters, or of those of the
    decoder layers (`remove_of`). `sparsity` is the share of the weights of all matrices in the decoder layers that
    are to be zero.
    """

    layers: int | None = None
    remove: float | None = None
    remove_of: Literal["all", "body"] = "all"
    blocks: int | None = None
    sparsity: float | None = None

    def __post_init__(self) -> None:
        """Refuse two budgets at once, and a share of zeros that leaves nothing.

        Raises:
            BudgetError: the sparsity does not lie in [0, 1).
            ConfigError: more than one is set.
        """
        if self.sparsity is not None and not 0 <= self.sparsity < 1:
            raise BudgetError(
                f"--sparsity {self.sparsity:g} is out of reach: a share of zeros is at least 0 and less than 1",
                hint="0.5 sets every second weight to zero",
            )
        given = [f"--{kind}" for kind in BUDGET_KINDS if getattr(self, kind) is not None]
        if len(given) > 1:
            raise ConfigError(f"{' and '.join(given)} are given together", hint="give one of them")

    @property
    def kind(self) -> BudgetKind | None:
        """Which of them is set, if any."""
        return next((k for k in BUDGET_KINDS if getattr(self, k) is not None), None)

    def as_options(self) -> dict[str, Any]:
        """Return what is set, as a plan records it."""
        if self.kind is None:
            return {}
        share = {"remove_of": self.remove_of} if self.kind == "remove" else {}
        return {self.kind: getattr(self, self.kind)} | share


@dataclass(frozen=True, slots=True)
class Goal:
    """What a method has to reach: a number of blocks, of whole layers, of parameters removed, or of zeros."""

    blocks: int | None = None
    params: int | None = None
    sparsity: float = 0.0
    """Share of zeros in the weights of the decoder layers' matrices."""
    layers: int | None = None

    def reached(self, blocks: int, params: int) -> bool:
        """Tell whether so many blocks and parameters removed are enough."""
        return blocks >= self.blocks if self.blocks is not None else params >= (self.params or 0)


def parse_share(text: str, *, name: str) -> float:
    """Read a share of the parameters, written as ``25%`` or ``0.25``; none and all are no budget.

    Raises:
        ConfigError: it is not a share; 25 without its percent sign is named as the likely slip.
    """
    value = _read_share(text, name, "the parameters")
    if not 0 < value < 1:
        raise ConfigError(f"{name} {text!r} must lie between 0% and 100%, both excluded")
    return value


def parse_sparsity(text: str) -> float:
    """Read a share of zeros, written as ``50%`` or ``0.5``; `Budget` says which are possible.

    Raises:
        ConfigError: it is not a share; 50 without its percent sign is named as the likely slip.
    """
    return _read_share(text, "--sparsity", "the weights")


def _read_share(text: str, name: str, of: str) -> float:
    match = _SHARE.fullmatch(text.strip())
    if match is None:
        raise ConfigError(f"{name} {text!r} is not a share", hint="write 25% or 0.25")
    value = float(match[1]) / (100 if match[2] else 1)
    if value > 1 and not match[2]:
        raise ConfigError(f"{name} {text} means {value:.0%} of {of}", hint=f"write {text}% or {value / 100:g}")
    return value


def layers_to_remove(budget: Budget, geometry: Geometry, removable: Sequence[int]) -> int:
    """Return how many whole layers meet a budget: the number asked for, or the fewest that reach the share.

    Raises:
        BudgetError: not that many layers may be removed; the closest reachable budget is named.
    """
    sizes = sorted(geometry.layer_params(i) for i in removable)
    total = geometry.n_params if budget.remove_of == "all" else geometry.body_params
    most = sum(sizes) / total
    whole = "the parameters" if budget.remove_of == "all" else "the decoder parameters"
    reach = f"at most {len(sizes)} of {geometry.n_layers} layers may go here ({most:.1%} of {whole})"
    if not sizes:
        raise BudgetError(f"there is nothing to remove: {reach}", hint="see the options that protect layers")
    if budget.layers is not None:
        if budget.layers < 1:
            raise BudgetError(f"--layers {budget.layers} removes nothing", hint=f"give 1 to {len(sizes)}")
        if budget.layers > len(sizes):
            raise BudgetError(f"--layers {budget.layers} is too many: {reach}", hint=f"give 1 to {len(sizes)}")
        return budget.layers
    if budget.remove is None:
        raise ConfigError("no budget given", hint="use --layers N or --remove 25%")
    if budget.remove > most:
        raise BudgetError(f"--remove {budget.remove:.1%} cannot be reached by whole layers: {reach}")
    removed = n = 0
    while removed < budget.remove * total:
        removed += sizes[n]
        n += 1
    return n


def goal_of(budget: Budget, geometry: Geometry) -> Goal:
    """Return the goal that a budget sets; a share is reached by the fewest whole parameters that make it up.

    Raises:
        BudgetError: it asks for nothing, or for more than the decoder layers hold.
    """
    if budget.sparsity is not None:
        return Goal(sparsity=budget.sparsity)
    if budget.layers is not None:
        return Goal(layers=budget.layers)
    if budget.blocks is not None:
        most = 2 * geometry.n_layers - 1
        if not 1 <= budget.blocks <= most:
            raise BudgetError(f"--blocks {budget.blocks} is out of reach", hint=f"give 1 to {most}")
        return Goal(blocks=budget.blocks)
    share = budget.remove or 0.0
    body = geometry.body_params
    total = geometry.n_params if budget.remove_of == "all" else body
    if share * total >= body:
        raise BudgetError(
            f"--remove {share:.1%} is more than all decoder layers together",
            hint=f"they hold {body / total:.1%} of the parameters",
        )
    return Goal(params=math.ceil(share * total))
