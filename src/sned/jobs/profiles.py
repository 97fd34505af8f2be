"""What share of zeros every layer would get from each allocator, side by side. May import everything below `jobs`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sned.methods.wanda import sparsifier
from sned.models.matrices import all_matrices
from sned.runtime.allocator import Task, all_allocators, read_allocator, spell
from sned.runtime.context import Context
from sned.runtime.sparsify import allot

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sned.data.tokens import Tokens
    from sned.jobs.request import ProfilesRequest
    from sned.jobs.session import Session
    from sned.models.view import View
    from sned.score.quota import Quota

METHOD, PATTERN = "wanda", "row"
"""The zeros are those that this method would make; an allocator may look at how they are chosen."""


def profiles(view: View, tokens: Tokens, request: ProfilesRequest, seed: int, session: Session) -> dict[str, Any]:
    """Return what each allocator would make of a model: exactly the shares that pruning with it comes to; JSON.

    ``allocators`` has for each, under the words that it was asked for with, its `options`, a share for every present
    `layers`, null for one without matrices, and the `evidence` that it left, if any.

    Raises:
        BudgetError: no layer may lose so much.
        ConfigError: an allocator or an option is unknown.
        NumericalError: a weight or an activation is not finite; the place is named.
    """
    task = Task(all_matrices(view), request.sparsity, PATTERN, sparsifier())
    named = request.allocators or [allocator.name for allocator in all_allocators()]
    found: dict[str, Any] = {}
    for text in dict.fromkeys(name.removesuffix(":") for name in named):
        # each sees what it would see alone: the model as it is, chance from its start, and nothing of the others
        dense = view.fork()
        context = Context(dense, dense.fork(), tokens, seed, progress=session.progress, cost=session.cost)
        with session.phase("allocate"):
            wanted = allot(context, task, text)
        found[text] = {
            "options": spell(read_allocator(text)[1]),
            "layers": [_share(task, layer, wanted) for layer in view.layers],
            "evidence": context.scores.get("allocation"),
        }
    return {"sparsity": request.sparsity, "method": METHOD, "pattern": PATTERN, "allocators": found}


def _share(task: Task, layer: int, wanted: Mapping[str, Quota]) -> float | None:
    matrices = task.of(layer)
    size = sum(matrix.size for matrix in matrices)
    return sum(wanted[matrix.name].total for matrix in matrices) / size if size else None
