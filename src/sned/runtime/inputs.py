"""What the matrices of a layer receive: sums over all calibration tokens, of which scores are made.

Matrices that read the very same tensor, such as q, k and v, share one set of sums. May import `lockstep`.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Literal

import torch

from sned.errors import NumericalError
from sned.score.obs import Factor, factor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

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
        """Mean product of every two channels, `[columns, columns]` in float32.

        Raises:
            ValueError: it was not asked for.
        """
        if self._gram is None:
            raise ValueError("these sums hold no products of channels")
        upper = self._gram.triu()
        return (upper + upper.triu(1).T) / max(1, self.tokens)

    @cached_property
    def factor(self) -> Factor:
        """The inverse of the products, factored for SparseGPT; one for all matrices that share these inputs."""
        return factor(self.gram)

    @property
    def squares(self) -> torch.Tensor:
        """Mean square of each channel, `[columns]` in float64."""
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
    """Run a layer over all batches and return what its matrices receive, by module.

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
    columns = {matrix.module: matrix.columns for matrix in matrices}
    found: dict[str, Inputs] = {}
    if needs == "nothing" and stay:
        return found
    for received in stream.inputs(layer, list(columns), stay=stay):
        owners: dict[int, str] = {}
        for module, states in received.items():
            owner = owners.setdefault(id(states), module)
            if owner == module:
                sums = found.setdefault(module, Inputs(columns[module], needs, states.device))
                sums.add(states)
                _require_finite(sums, layer, module)
            else:
                found[module] = found[owner]
        advance(next(iter(received.values())).shape[:-1].numel())
    return found


def distinct(found: dict[str, Inputs]) -> Iterable[Inputs]:
    """Return the sums, those that several modules share once."""
    return {id(sums): sums for sums in found.values()}.values()


def _require_finite(sums: Inputs, layer: int, module: str) -> None:
    if not torch.isfinite(sums.squares).all():
        raise NumericalError(f"what {module} of layer {layer} receives holds NaN or infinity", hint="try --dtype fp32")
