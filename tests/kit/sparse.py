"""Ways to prune single weights, the zeros of a model, and what its matrices receive by its own forward pass."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from kit.planning import METHODS, plan_on
from kit.tiny import make_model, tokens
from sned.models.matrices import all_matrices
from sned.models.view import View
from sned.plans.ops import DropLayers
from sned.runtime.method import find_method

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import nn

    from sned.models.matrices import Matrix

OF_WEIGHTS = [name for name in METHODS if "sparsity" in find_method(name).budgets]
ALLOCATORS = ["uniform", "owl:multiple=2", "alphapruning", "neuroal", "neuroal:step=row"]
SHARE = {"row": 0.55, "matrix": 0.55, "2:4": 0.5}
"""What tests ask of a pattern; no whole number in most rows where that is possible."""
TEXT = tokens(3, 12, seed=3)


class Way(NamedTuple):
    """One composition."""

    method: str
    allocate: str = "uniform"
    refine: str | None = None
    update: bool = False
    pattern: str = "row"


def shortened(name: str) -> View:
    """Return a view of two layers that are no neighbours in the base."""
    view = View(make_model(name))
    DropLayers(layers=[1, 2, 4]).apply(view, {})
    return view


def pruned(name: str, way: Way, **given: Any) -> View:
    """Return a view of a model that was pruned in some way, after it lost three layers."""
    view = shortened(name)
    plan_on(view, **{"sparsity": SHARE[way.pattern], "tokens": TEXT, **way._asdict(), **given})
    return view


def weights_of(view: View) -> dict[Matrix, torch.Tensor]:
    """Return every prunable matrix of a view, `[out, in]`."""
    return {
        matrix: matrix.read(view.layer(matrix.layer).get_parameter(matrix.param).detach())
        for matrix in all_matrices(view)
    }


def zeros_of(view: View) -> dict[str, torch.Tensor]:
    """Return which weights of every matrix are zero, `[out, in]`, by name."""
    return {matrix.name: weight == 0 for matrix, weight in weights_of(view).items()}


def count_zeros(view: View) -> tuple[int, int]:
    """Return how many weights of the prunable matrices are zero, and how many there are."""
    found = weights_of(view).values()
    return sum(int((w == 0).sum()) for w in found), sum(w.numel() for w in found)


def set_weights(view: View, changed: Mapping[Matrix, torch.Tensor]) -> None:
    """Write matrices into a model that nobody else has."""
    for matrix, weight in changed.items():
        matrix.write(view.layer(matrix.layer).get_parameter(matrix.param).data, weight)


@torch.no_grad()
def received(view: View, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return what every matrix receives in a pass of the model itself, `[tokens, columns]` in float64, by name."""
    caught: dict[tuple[int, str], torch.Tensor] = {}

    def catch(key: tuple[int, str]) -> Callable[[nn.Module, Any], None]:
        return lambda _module, args: caught.update({key: args[0].double().flatten(0, -2)})

    matrices = all_matrices(view)
    with ExitStack() as stack:
        for layer, module in {(m.layer, m.module) for m in matrices}:
            linear = view.layer(layer).get_submodule(module)
            stack.callback(linear.register_forward_pre_hook(catch((layer, module))).remove)
        view.model(ids, use_cache=False)
    return {m.name: caught[m.layer, m.module] for m in matrices}
