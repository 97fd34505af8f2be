"""Healing: training what pruning left, through the whole model, and writing the change down as ops.

May import `runtime` and its neighbours.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from sned.errors import ConfigError
from sned.models.folding import output_projection
from sned.plans.ops import Fold, Replace
from sned.training.loop import train
from sned.training.masters import Masters, Names, all_matrices, all_parameters, set_values
from sned.training.memory import require_memory
from sned.training.schedule import Schedule
from sned.training.tasks import ModelLoss, ModelTask

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sned.models.view import View
    from sned.plans.ops import Op
    from sned.runtime.context import Context

Trained = Literal["lora", "full", "transform"]
RANK, ALPHA = 16, 32.0


@dataclass(frozen=True, slots=True)
class Healing:
    """What to train, and how.

    Attributes:
        train: Low-rank updates of the matrices (`lora`), all weights (`full`), or only the linear maps that stand for
            removed layers (`transform`).
        loss: What is made small.
        last: How many of the last layers are trained; None for all.
        rank: Of a low-rank update; None where there is none.
        alpha: A low-rank update counts `alpha / rank` times.
        first_share: How much of the change the first layer keeps; the share rises evenly with depth to 1 for the last.
        keep_zeros: Whether weights of matrices that are zero stay so.
        schedule: How long and how fast.
    """

    train: Trained = "lora"
    loss: ModelLoss = "kl"
    last: int | None = None
    rank: int | None = RANK
    alpha: float | None = ALPHA
    first_share: float = 1.0
    keep_zeros: bool = False
    schedule: Schedule = field(default_factory=Schedule)


def low_rank(train: Trained, rank: int | None, alpha: float | None) -> tuple[int | None, float | None]:
    """Return the rank and the alpha of low-rank updates, or None for both where something else is trained.

    Raises:
        ConfigError: something else is trained, and one was given.
    """
    if train == "lora":
        return rank or RANK, alpha or ALPHA
    if rank or alpha:
        raise ConfigError(f"train {train} has no {'rank' if rank else 'alpha'}: only low-rank updates have one")
    return None, None


def heal(ctx: Context, healing: Healing, free: int | None = None, *, recompute: bool = False) -> Iterator[Op]:
    """Yield new values for the weights that training moved; `ctx.scores["training"]` keeps how it went.

    The view is the pruned model, and `ctx.dense` the one to learn from. LoRA is arXiv:2106.09685; what is trained is
    the sum of a matrix and its update, in the model's dtype, so that merging loses nothing, and the update of a weight
    that is to stay zero is zero. Shrinking the change with depth is LiNeS (arXiv:2410.17146, one task, β = 1 - α).

    Args:
        ctx: The context.
        healing: What to train, and how.
        free: Bytes of memory that may be used; None to try it.
        recompute: Run layers again on the way back, and keep less until then; the same bits in more time.

    Raises:
        ConfigError: nothing is there to be trained, or memory is short; it says what would fit.
        DataError: there is too little text.
    """
    names = _trained(ctx, healing)
    rank = healing.rank if healing.train == "lora" else None
    scale = (healing.alpha or 0) / rank if rank else 1.0
    if free is not None:
        require_memory(ctx.view, names, rank, ctx.calibration.length, free, ctx.crew.size, recompute=recompute)
    masters = Masters(
        ctx.view,
        names,
        rank=rank,
        scale=scale,
        keep_zeros=healing.keep_zeros,
        seed=ctx.seed,
        crew=ctx.crew,
    )
    task = ModelTask(masters, ctx.view, healing.loss, ctx.dense, ctx.cost, recompute=recompute)
    key: list[Any] = [*ctx.state(None), asdict(healing)]
    found = train(ctx, task, healing.loss, healing.schedule, key)
    if not found.best:
        ctx.progress.warn("training found no better weights: the model is as it was")
        return
    yield from set_values(ctx, masters, _shares(ctx.view, healing.first_share))


def _trained(ctx: Context, healing: Healing) -> Names:
    """Return which parameters are trained.

    Raises:
        ConfigError: there are none, or there are not so many layers.
    """
    layers = list(ctx.view.layers)
    if healing.last is not None and healing.last > len(layers):
        raise ConfigError(f"the model has {len(layers)} layers, so not the last {healing.last} can be trained")
    chosen = layers if healing.last is None else layers[-healing.last :]
    if healing.train == "lora":
        return all_matrices(ctx.view, chosen)
    if healing.train == "full":
        return all_parameters(ctx.view, chosen)
    names: Names = {}
    for op in ctx.ops:
        if isinstance(op, Replace) and op.layers[0] in chosen:
            names |= all_parameters(ctx.view, [op.layers[0]])
        elif isinstance(op, Fold) and op.layer in chosen and ctx.view.has_branch(op.layer, "mlp"):
            names[op.layer] = [f"{output_projection(ctx.view, 'mlp')}.weight"]
    if not names:
        raise ConfigError(
            "no linear map stands for removed layers here, so there is nothing to train",
            hint="train lora or full, or prune with replaceme",
        )
    return names


def _shares(view: View, first: float) -> dict[int, float]:
    """Return by layer how much of its change is kept: `first`, rising evenly to 1."""
    steps = max(1, len(view.layers) - 1)
    return {layer: 1.0 if first == 1 else first + (1 - first) * i / steps for i, layer in enumerate(view.layers)}
