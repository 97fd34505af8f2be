"""What the matrices of a layer receive: sums over all calibration tokens, of which scores are made.

Matrices that read the very same tensor, such as q, k and v, share one set of sums. May import `lockstep`.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Literal

import torch

from sned.errors import NumericalError
from sned.models.experts import received as experts_of
from sned.score.obs import Factor, factor

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from torch import nn

    from sned.models.matrices import Matrix
    from sned.runtime.lockstep import Stream

Needs = Literal["nothing", "norms", "gram"]
"""What a score has to know of the inputs."""
_BLOCKS = 4


class Inputs:
    """Sums over what one or more matrices receive, `[tokens, columns]`."""

    def __init__(self, columns: int, needs: Needs, device: torch.device | str = "cpu") -> None:
        self.tokens = 0
        self._total = torch.zeros(columns, dtype=torch.float64, device=device)
        self._squares = torch.zeros(columns, dtype=torch.float64, device=device)
        self._gram = torch.zeros(columns, columns, device=device) if needs == "gram" else None

    def add(self, states: torch.Tensor) -> None:
        """Add one batch, `[..., columns]`; products are formed in float32."""
        flat = states.flatten(0, -2).float()
        self.tokens += len(flat)
        self._total += flat.sum(0, dtype=torch.float64)
        if self._gram is None:
            self._squares += flat.square().sum(0, dtype=torch.float64)
        else:
            add_gram(self._gram, flat)

    @property
    def gram(self) -> torch.Tensor:
        """Mean product of every two channels, `[columns, columns]` in float32; the identity where no token came by.

        Raises:
            ValueError: it was not asked for.
        """
        if self._gram is None:
            raise ValueError("these sums hold no products of channels")
        if not self.tokens:
            return torch.eye(len(self._gram), device=self._gram.device)
        upper = self._gram.triu()
        return (upper + upper.triu(1).T) / max(1, self.tokens)

    @cached_property
    def factor(self) -> Factor:
        """The inverse of the products, factored for SparseGPT; one for all matrices that share these inputs."""
        return factor(self.gram)

    @property
    def squares(self) -> torch.Tensor:
        """Mean square of each channel, `[columns]` in float64; 1 where no token came by, so that magnitudes decide."""
        if not self.tokens:
            return torch.ones_like(self._total)
        sums = self._squares if self._gram is None else self._gram.diagonal().double()
        return sums / max(1, self.tokens)

    @property
    def norm(self) -> torch.Tensor:
        """Root mean square of each channel, `[columns]` in float32."""
        return self.squares.sqrt().float()

    @property
    def mean(self) -> torch.Tensor:
        """Mean of each channel, `[columns]` in float32."""
        return (self._total / max(1, self.tokens)).float()

    @property
    def variance(self) -> torch.Tensor:
        """Variance of each channel over all tokens, `[columns]` in float32."""
        mean = self._total / max(1, self.tokens)
        return (self.squares - mean.square()).clamp_min(0).float()


def add_gram(gram: torch.Tensor, states: torch.Tensor) -> None:
    """Add `statesᵀ states` to the upper triangle of `gram` `[columns, columns]`; what lies below means nothing.

    Formed in strips that end at the right edge, which leaves out three eighths of the work.
    """
    width = -(-gram.shape[0] // _BLOCKS)
    for start in range(0, gram.shape[0], width):
        strip = states[:, start : start + width]
        gram[start : start + width, start:].addmm_(strip.T, states[:, start:])


def gather(
    stream: Stream,
    layer: int,
    matrices: Sequence[Matrix],
    needs: Needs,
    advance: Callable[[int], None] = lambda _: None,
    *,
    stay: bool = True,
) -> dict[str, Inputs]:
    """Run a layer over all batches and return what its matrices receive, by `Matrix.reads`.

    Args:
        stream: Moved to where it enters the layer.
        layer: The layer, in base coordinates.
        matrices: Of that layer.
        needs: What to sum up; with nothing, no layer is run.
        advance: Told how many tokens went through.
        stay: Whether the stream is to be run through the layer again, since its weights will change.

    Raises:
        NumericalError: what a matrix receives is not finite.
    """
    if needs == "nothing" and stay:
        return {}
    device = stream.view.device
    experts = {matrix.module for matrix in matrices if matrix.expert is not None}
    # an expert may wait for its first token in vain
    found = {m.reads: Inputs(m.columns, needs, device) for m in matrices if m.module in experts}
    for called, tokens in stream.inputs(layer, list({m.module: None for m in matrices}), stay=stay):
        received = _by_reader(stream.view.layer(layer), called, experts)
        owners: dict[int, str] = {}
        for name, states in received.items():
            owner = owners.setdefault(id(states), name)
            if owner == name:
                sums = found.setdefault(name, Inputs(states.shape[-1], needs, device))
                sums.add(states)
                _require_finite(sums, layer, name)
            else:
                found[name] = found[owner]
        advance(tokens)
    return found


def _by_reader(
    block: nn.Module, called: Mapping[str, tuple[torch.Tensor, ...]], experts: Collection[str]
) -> dict[str, torch.Tensor]:
    """Return what each module of a layer receives, and what each expert does of a module that holds experts."""
    received = {module: args[0] for module, args in called.items() if module not in experts}
    for module in experts:
        for expert, entering, hidden in experts_of(block.get_submodule(module), called[module]):
            received |= {f"{module}.{expert}.input": entering, f"{module}.{expert}.hidden": hidden}
    return received


def _require_finite(sums: Inputs, layer: int, module: str) -> None:
    if not torch.isfinite(sums.squares).all():
        raise NumericalError(f"what {module} of layer {layer} receives holds NaN or infinity", hint="try --dtype fp32")
