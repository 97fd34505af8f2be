"""Swapping pruned and kept weights of a row until the expected change of its output is small (DSnoT).

With mean inputs `μ`, a row that lost the weights of a mask is off by `ε = Σ W μ` over them, on average. Putting the
weight `g` back takes `W_g μ_g` off `ε`; removing `p` in its place adds `W_p μ_p`. The number of weights in each row
never changes. Pure functions of tensors.

DSnoT is arXiv 2310.08915. Departures from the released code: a swap is made only if it brings `ε` nearer to zero, with
the first weights of both orders that do so together, and only if `ε² + Σ W² σ²` over the weights that are gone falls,
the mean square of the row's change if inputs are independent; a row without such a swap is done. Without the second
condition rows of a few hundred inputs trade much variance for little of a mean, and errors grow. A row is also done
at a share of its own first `ε`, not at an absolute one; lists of candidates end where the weights of the sign in need
end, so that none is put back that was not gone; inputs that hardly vary get a least variance.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from sned.errors import NumericalError

FLATTEST = 1e-6
"""Least variance of an input, relative to the largest."""
CANDIDATES = 50
"""How many weights of each kind and sign a row considers at least."""


@dataclass(frozen=True, slots=True)
class _Candidates:
    """The first weights of each row in some order, twice: for `ε` above zero and for `ε` below.

    Attributes:
        columns: Where they are, `[2, rows, n]`.
        sizes: `|W μ|` `[2, rows, n]`, float64; infinite behind the last candidate.
    """

    columns: torch.Tensor
    sizes: torch.Tensor


@dataclass(frozen=True, slots=True)
class _State:
    """Which weights are gone now and were at first, `[out, in]`, `ε` `[out]`, and `W² σ²` `[out, in]`."""

    gone: torch.Tensor
    mask: torch.Tensor
    rest: torch.Tensor
    risk: torch.Tensor


Pair = Callable[[torch.Tensor, _State], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]
"""Takes rows; returns which of them have a swap that helps, the columns put back and those removed, each `[rows]`."""


def swap(
    weight: torch.Tensor,
    mask: torch.Tensor,
    mean: torch.Tensor,
    variance: torch.Tensor,
    norm: torch.Tensor,
    *,
    cycles: int = 50,
    tolerance: float = 0.1,
    power: float = 1.0,
    group: int | None = None,
) -> torch.Tensor:
    """Return a mask with as many weights in each row, whose rows are expected to move their output less.

    A row puts back the weight whose `W μ / σ²` is largest in the direction of `ε`, and removes the one of lowest
    `|W| · norm` among those that push `ε` the other way. No weight is swapped twice.

    Args:
        weight: `W` `[out, in]`.
        mask: True where a weight goes, `[out, in]`.
        mean: Mean of each input over tokens, `[in]`.
        variance: Of each input, `[in]`.
        norm: Of each input, `[in]`.
        cycles: Swaps per row at most.
        tolerance: Share of its first `|ε|` at which a row is done.
        power: Of the variance.
        group: For an n:m pattern, its `m`: weights then change places within a run, whatever sign the one removed has.

    Raises:
        NumericalError: a weight or a statistic is not finite.
    """
    if not all(torch.isfinite(values).all() for values in (weight, mean, variance, norm)):
        raise NumericalError("a weight or a statistic of its inputs is NaN or infinite")
    weight = weight.detach().to(torch.float64 if weight.dtype == torch.float64 else torch.float32)
    shift, wanda = weight * mean.to(weight), weight.abs() * norm.to(weight)
    n = max(cycles, CANDIDATES)
    grown = _candidates(-shift.abs() / _spread(variance.to(weight), power), mask, shift, n)
    if group is None:
        pair = partial(_pair_anywhere, grown=grown, dropped=_candidates(wanda, ~mask, -shift, n))
    else:
        pair = partial(_pair_in_run, grown=grown, shift=shift, wanda=wanda, m=group)
    state = _State(mask.clone(), mask, (shift.double() * mask).sum(1), weight.double().square() * variance.double())
    enough, rows = tolerance * state.rest.abs(), torch.arange(len(mask), device=mask.device)
    for _ in range(cycles):
        rows = rows[state.rest[rows].abs() > enough[rows]]
        if len(rows):
            rows = _swap_once(rows, state, shift, pair)
    return state.gone


def _swap_once(rows: torch.Tensor, state: _State, shift: torch.Tensor, pair: Pair) -> torch.Tensor:
    """Swap one pair of weights in each of these rows that has one that helps, and return those rows."""
    found, back, away = pair(rows, state)
    rest, step = state.rest[rows], shift[rows, away].double() - shift[rows, back].double()
    risk = state.risk[rows, away] - state.risk[rows, back]
    found = found & ((rest + step).square() + risk < rest.square())
    rows, back, away = rows[found], back[found], away[found]
    state.rest[rows] += step[found]
    state.gone[rows, back], state.gone[rows, away] = False, True
    return rows


def _spread(variance: torch.Tensor, power: float) -> torch.Tensor:
    """Return a power of the variance relative to the largest one, `[in]`, never zero."""
    largest = variance.max().clamp_min(torch.finfo(variance.dtype).tiny)
    return (variance / largest).clamp_min(FLATTEST) ** power


def _candidates(key: torch.Tensor, allowed: torch.Tensor, sign: torch.Tensor, n: int) -> _Candidates:
    """Return the `n` weights of lowest key in each row, of those that are allowed, by sign: above zero, then below."""
    columns, sizes = [], []
    for ok in (allowed & (sign > 0), allowed & (sign < 0)):
        first = key.masked_fill(~ok, torch.inf).sort(dim=1, stable=True).indices[:, :n]
        columns.append(first)
        sizes.append(sign.gather(1, first).abs().double().masked_fill(~ok.gather(1, first), torch.inf))
    return _Candidates(torch.stack(columns), torch.stack(sizes))


def _left(rows: torch.Tensor, state: _State, candidates: _Candidates) -> tuple[torch.Tensor, torch.Tensor]:
    """Return columns and sizes `[rows, n]` of what is needed for `ε`; sizes are infinite where a weight was swapped."""
    below = (state.rest[rows] < 0).long()
    columns = candidates.columns[below, rows]
    at = rows[:, None], columns
    return columns, candidates.sizes[below, rows].masked_fill(state.gone[at] != state.mask[at], torch.inf)


def _pair_anywhere(
    rows: torch.Tensor, state: _State, grown: _Candidates, dropped: _Candidates
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return which rows have a swap that helps, the columns put back and those removed, each `[rows]`.

    Both weights push `ε` the same way, so together they must not be as large as twice `|ε|`.
    """
    limit = 2 * state.rest[rows].abs()[:, None]
    back, back_sizes = _left(rows, state, grown)
    away, away_sizes = _left(rows, state, dropped)
    helps = back_sizes + away_sizes.amin(1, keepdim=True) < limit
    first = helps.long().argmax(1, keepdim=True)
    second = (away_sizes + back_sizes.gather(1, first) < limit).long().argmax(1, keepdim=True)
    return helps.any(1), back.gather(1, first)[:, 0], away.gather(1, second)[:, 0]


def _pair_in_run(
    rows: torch.Tensor, state: _State, grown: _Candidates, shift: torch.Tensor, wanda: torch.Tensor, m: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return which rows have a swap within a run that helps, the columns put back and those removed, each `[rows]`."""
    back, sizes = _left(rows, state, grown)
    runs = (back - back % m)[:, :, None] + torch.arange(m, device=back.device)
    at = rows[:, None, None], runs
    rest = state.rest[rows][:, None, None]
    after = rest - rest.sign() * sizes[:, :, None] + shift[at].double()
    helps = (after.abs() < rest.abs()) & ~state.mask[at] & ~state.gone[at]
    first = helps.any(2).long().argmax(1)
    here = torch.arange(len(rows), device=rows.device), first
    away = wanda[at][here].masked_fill(~helps[here], torch.inf).argmin(1)
    return helps.any(2).any(1), back[here], runs[(*here, away)]
