"""What training would take of memory, found out before it begins. May import `runtime` and its neighbours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from sned.errors import ConfigError
from sned.models.forward import LayerRunner
from sned.runtime.sweep import BATCH_TOKENS, windows_together

if TYPE_CHECKING:
    from sned.models.view import View
    from sned.training.masters import Names

_PER_NUMBER = 20
"""Bytes in float32: the number, its gradient, two moments of AdamW, and its best value."""
_ELSEWHERE = 8
"""Bytes of a number that another process moves: itself and its gradient."""
_LOGITS = 256 * 10 * 4
"""Bytes per word: the tokens whose logits exist at a time, times about ten tensors in float32, as was measured."""


@dataclass(frozen=True, slots=True)
class Needs:
    """Bytes beside the model itself.

    Attributes:
        layers: By layer, from the first whose output training changes to the last: what is kept for the way back, and
            of those that are trained, what their numbers take.
        rest: What follows the layers.
    """

    layers: dict[int, int]
    rest: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.rest + sum(self.layers.values())

    def most_layers(self, free: int) -> int:
        """Return how many of the last layers can be trained with so many bytes."""
        left, count = free - self.rest, 0
        for need in reversed(self.layers.values()):
            left -= need
            if left < 0:
                break
            count += 1
        return count


def needs(
    view: View, names: Names, rank: int | None, length: int, processes: int = 1, *, recompute: bool = False
) -> Needs:
    """Return what training takes of each process.

    Args:
        view: The model.
        names: The parameters that are trained.
        rank: Of low-rank updates; None trains the parameters themselves.
        length: Tokens in a window.
        processes: How many divide the numbers among themselves.
        recompute: Whether layers keep only what enters them, and run again; those of a streamed model do.
    """
    windows = windows_together(length)
    kept = _kept_for_the_way_back(view, windows, length)
    made = {i: _made(view, i, names.get(i, []), rank) for i in view.layers}
    numbers = {i: _of_numbers(view, i, names.get(i, []), rank, processes) for i in view.layers if i >= min(names)}
    rest = _LOGITS * view.geometry.vocab
    if not (recompute or view.streamed):
        return Needs({i: kept + made[i] + own for i, own in numbers.items()}, rest)
    layers = {i: _entering(view, windows, length) + own for i, own in numbers.items()}
    return Needs(layers, rest + kept + max(made.values()))  # of one layer at a time


def require_memory(
    view: View,
    names: Names,
    rank: int | None,
    length: int,
    free: int,
    processes: int = 1,
    *,
    recompute: bool = False,
) -> None:
    """Refuse a training that does not fit into so many free bytes, and say what would.

    Raises:
        ConfigError: it does not.
    """
    need = needs(view, names, rank, length, processes, recompute=recompute)
    if need.total <= free:
        return
    least = needs(view, names, rank, length, processes, recompute=True)
    count = need.most_layers(free)
    ways = [f"--recompute takes {least.total / 1e9:.1f} GB"] if least.total < need.total else []
    ways += [f"--last {count} fits"] if count else []
    ways += ["--train lora takes less"] if rank is None else []
    ways += [f"--seq-len {BATCH_TOKENS} takes less"] if length > BATCH_TOKENS else []
    raise ConfigError(
        f"training {len(names)} of {len(view.layers)} layers needs about {need.total / 1e9:.1f} GB beside the models, "
        f"and {free / 1e9:.1f} GB are free",
        hint="; ".join(ways) or "free some memory, or prune a smaller model",
    )


def memory_for_gates(view: View, trained: int, length: int) -> int:
    """Return the bytes that it takes to go back through the whole model to gates.

    Args:
        view: A loaded view.
        trained: How many numbers are trained to set the gates.
        length: Tokens in a window.
    """
    windows = windows_together(length)
    kept, n = _kept_for_the_way_back(view, windows, length), len(view.layers)
    layers = kept + n * _entering(view, windows, length) if view.streamed else n * kept
    return layers + _PER_NUMBER * trained + _LOGITS * view.geometry.vocab


def _entering(view: View, windows: int, length: int) -> int:
    """Return the bytes of what enters a layer, all that one keeps that runs again."""
    return windows * length * view.geometry.hidden * view.dtype.itemsize


def require_memory_for_gates(view: View, trained: int, length: int, free: int | None) -> None:
    """Refuse to go back through the whole model to gates if that does not fit into so many free bytes, if known.

    Raises:
        ConfigError: it does not fit.
    """
    if free is None:
        return
    if (need := memory_for_gates(view, trained, length)) > free:
        shorter = f"--seq-len {BATCH_TOKENS}, or " if length > BATCH_TOKENS else ""
        raise ConfigError(
            f"gradients through {len(view.layers)} layers need about {need / 1e9:.1f} GB beside the model, "
            f"and {free / 1e9:.1f} GB are free",
            hint=f"{shorter}a method that needs no gradients: policygrad, wandasp, multipruner",
        )


def _of_numbers(view: View, layer: int, names: list[str], rank: int | None, processes: int) -> int:
    """Return the bytes that the trained numbers of a layer take."""
    total = 0
    for name in names:
        tensor = view.layer(layer).get_parameter(name)
        *stack, rows, columns = (1, 1, *tensor.shape)
        copies = max(1, torch.Size(stack).numel())
        trained = tensor.numel() if rank is None else copies * min(rank, rows, columns) * (rows + columns)
        # in another dtype it is what the model runs with, which counts there; of a streamed model it is not here
        elsewhere = 0 if rank is None and (view.streamed or tensor.dtype != torch.float32) else _ELSEWHERE
        total += (_PER_NUMBER + (processes - 1) * elsewhere) * trained // processes
    return total


def _made(view: View, layer: int, names: list[str], rank: int | None) -> int:
    """Return the bytes of what a layer runs with in place of its own weights, and of its gradients."""
    tensors = [view.layer(layer).get_parameter(name) for name in names]
    return sum(2 * t.nbytes for t in tensors if rank is not None or view.streamed or t.dtype != torch.float32)


def _kept_for_the_way_back(view: View, windows: int, length: int) -> int:
    """Return the bytes of activations that one layer keeps for its gradient, counted as it runs on a batch."""
    seen: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> Any:
        if not isinstance(tensor, torch.nn.Parameter):
            storage = tensor.untyped_storage()
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    runner = LayerRunner(view)
    middle = list(view.layers)[len(view.layers) // 2]
    with torch.no_grad():
        hidden = runner.enter(torch.zeros(windows, length, dtype=torch.int64, device=view.device))
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with view.materialised(middle), torch.enable_grad(), hooks:
        runner.layer(middle, hidden.detach().clone().requires_grad_())
    return sum(seen.values())
