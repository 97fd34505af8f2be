"""Setting single weights to zero, layer after layer, each on what the pruned layers before it compute.

The loop of every method that prunes weights: an allocator says how many, a sparsifier which. May import its
neighbours in `runtime`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from sned.canon import format_span
from sned.errors import SnedError
from sned.models.bits import pack, unpack
from sned.models.matrices import all_matrices
from sned.plans.ops import Mask, SetWeight
from sned.runtime.allocator import Task, read_allocator
from sned.runtime.inputs import gather
from sned.runtime.lockstep import Stream
from sned.runtime.quotas import quotas, require_room

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from sned.models.matrices import Matrix
    from sned.models.view import View
    from sned.models.weights import Edit, Weights
    from sned.plans.budget import Goal
    from sned.plans.ops import Op
    from sned.runtime.context import Context
    from sned.runtime.inputs import Inputs
    from sned.runtime.sparsifier import Outcome, Sparsifier
    from sned.score.quota import Quota


def sparsify(ctx: Context, goal: Goal, sparsifier: Sparsifier, *, pattern: str, allocate: str) -> Iterator[Op]:
    """Yield the ops that set the share of weights to zero that the goal asks for.

    Raises:
        BudgetError: bounds or pattern cannot meet the sparsity.
        ConfigError: pattern, allocator and matrices do not go together.
        NumericalError: a weight or an activation is not finite; the layer is named.
    """
    task = Task(all_matrices(ctx.view), goal.sparsity, pattern, sparsifier)
    yield from carry_out(ctx, task, allot(ctx, task, allocate))


def allot(ctx: Context, task: Task, allocate: str) -> dict[str, Quota]:
    """Return how many weights of each matrix go, by name: what an allocator proposes, made to meet the budget.

    Args:
        ctx: What the allocator sees; it leaves there what it went by.
        task: What is asked.
        allocate: The allocator, and options after a colon.

    Raises:
        BudgetError: bounds or pattern cannot meet the sparsity.
        ConfigError: pattern, allocator and matrices do not go together.
    """
    allocator, options = read_allocator(allocate)
    if allocator.name != "uniform":
        require_room(task.sparsity, task.pattern)
    return quotas(task.matrices, allocator.run(ctx, task, **options), task.sparsity, task.pattern)


def carry_out(ctx: Context, task: Task, wanted: Mapping[str, Quota]) -> Iterator[Op]:
    """Yield the ops that prune every matrix to its quota, from the first layer to the last."""
    tokens = ctx.calibration if task.sparsifier.needs != "nothing" else None
    ids = torch.zeros(1, 1, dtype=torch.int64) if tokens is None else tokens.ids
    stream = Stream(ctx.view, ids, ctx.cost)
    rows = ctx.scores.setdefault("sparsity", [])
    with ctx.progress.task("prune weights", len(task.layers) * ids.numel()) as advance:
        for layer in task.layers:
            matrices = task.of(layer)
            key = [*ctx.state(tokens), task.sparsifier.name, [wanted[m.name].label for m in matrices]]
            kept = ctx.journal.lookup("sparse", key)
            if kept is None or not ctx.recover(kept["tensors"].values()):
                inputs = gather(stream, layer, matrices, task.sparsifier.needs, advance)
                changed, facts = _prune(ctx.view, layer, matrices, inputs, wanted, task.sparsifier)
                tensors = {param: ctx.put(f"{layer}.{param}", tensor) for param, tensor in changed.items()}
                kept = {"tensors": tensors, "facts": facts}
                ctx.journal.keep("sparse", key, kept)
                if tokens is None:
                    advance(ids.numel())  # no layer was run that would have told
            else:
                advance(ids.numel())
            rows += _rows(ctx, matrices, kept["facts"])
            yield from _ops(ctx, layer, kept["tensors"])


def prune_layer(
    view: View,
    layer: int,
    matrices: Sequence[Matrix],
    inputs: Mapping[str, Inputs],
    wanted: Mapping[str, Quota],
    sparsifier: Sparsifier,
) -> Iterator[tuple[Matrix, torch.Tensor, Outcome]]:
    """Yield each matrix of a layer, as it is in float32, and what becomes of it.

    Raises:
        NumericalError: a weight or a score is not finite; layer and matrix are named.
    """
    with view.materialised(layer) as block:
        for matrix in matrices:
            weight = matrix.of(block).float()
            try:
                outcome = sparsifier.prune(weight, inputs.get(matrix.reads), wanted[matrix.name])
            except SnedError as error:
                raise type(error)(f"{matrix.name}: {error.args[0]}", hint=error.hint) from error
            yield matrix, weight, outcome


def editing(pruned: Sequence[tuple[Matrix, torch.Tensor, Outcome]]) -> Edit:
    """Return the edit that lets matrices of one layer be, for a while, what became of them; zeros may be negative."""

    def change(weights: Weights) -> None:
        for param in dict.fromkeys(matrix.param for matrix, _, _ in pruned):
            new = weights[param].clone()
            for matrix, weight, outcome in pruned:
                if matrix.param == param:
                    values = weight if outcome.weight is None else outcome.weight
                    matrix.write(new, (values * ~outcome.gone).to(new))
            weights[param] = new

    return change


def _prune(
    view: View,
    layer: int,
    matrices: Sequence[Matrix],
    inputs: Mapping[str, Inputs],
    wanted: Mapping[str, Quota],
    sparsifier: Sparsifier,
) -> tuple[dict[str, torch.Tensor], list[list[float]]]:
    """Prune a layer's matrices; return packed bits (uint8) or new values by parameter, and facts by matrix."""
    kept: dict[str, torch.Tensor] = {}
    masks: dict[str, torch.Tensor] = {}
    facts: list[list[float]] = []
    params = dict(view.layer(layer).named_parameters())
    for matrix, weight, outcome in prune_layer(view, layer, matrices, inputs, wanted, sparsifier):
        like = params[matrix.param]
        damping = -1.0 if outcome.damping is None else outcome.damping
        read = inputs.get(matrix.reads)
        starved = read is not None and not read.tokens
        zeros, before = int(outcome.gone.count_nonzero()), matrix.size - int(weight.count_nonzero())
        facts.append([zeros, before, damping, starved])
        gone = masks.setdefault(matrix.param, torch.zeros(like.shape, dtype=torch.bool))
        matrix.write(gone, outcome.gone.cpu())
        if outcome.weight is not None:
            values = kept.setdefault(matrix.param, torch.zeros(like.shape, dtype=view.dtype))
            matrix.write(values, outcome.weight.to("cpu", view.dtype) + 0.0)
    packed = {param: pack(gone) for param, gone in masks.items() if param not in kept}
    return kept | packed, facts


def _rows(ctx: Context, matrices: Sequence[Matrix], facts: list[list[float]]) -> Iterator[dict[str, Any]]:
    """Yield what the plan says of each matrix, and warn where a Hessian could not be used."""
    starved: set[int] = set()
    for matrix, (zeros, before, damping, waited) in zip(matrices, facts, strict=True):
        if damping < 0:
            ctx.progress.warn(f"{matrix.name}: its Hessian could not be factored, so only its diagonal was used")
        if waited and matrix.expert is not None:
            starved.add(matrix.expert)
        row = {"matrix": matrix.name, "zeros": int(zeros), "of": matrix.size}
        yield row | {"zero_before": int(before), "damping": damping}
    if starved:
        experts = f"experts {format_span(starved)} of layer {matrices[0].layer}"
        ctx.progress.warn(f"no calibration token came to {experts}: their weights went by magnitude")


def _ops(ctx: Context, layer: int, references: Mapping[str, str]) -> Iterator[Op]:
    """Yield an op for each parameter, in the order of the layer."""
    shapes = {name: param.shape for name, param in ctx.view.layer(layer).named_parameters()}
    for param in [name for name in shapes if name in references]:
        tensor = ctx.tensors[references[param]]
        if tensor.dtype == torch.uint8:
            zeros = int(unpack(tensor, shapes[param]).count_nonzero())
            yield Mask(layer=layer, param=param, tensor=references[param], zeros=zeros, of=shapes[param].numel())
        else:
            yield SetWeight(layer=layer, param=param, tensor=references[param])
