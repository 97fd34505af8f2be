"""Sharing a budget out over blocks of weights, to the last weight. Pure functions of tensors, in float64.

Rules that give each block a share of its own rarely meet the budget, and clamping moves them further off it. Blocks may
be matrices, rows or layers. May import torch and `sned.errors`.
"""

from __future__ import annotations

import math

import torch

from sned.errors import BudgetError, NumericalError

HALVINGS = 64
NOISE = 1e-6
"""Fractions of a weight that differ by less are equal."""
MOST_STATES = 2**28
"""Of the dynamic programme, over all sizes: 1 GiB at most."""


def project(raw: torch.Tensor, sizes: torch.Tensor, share: float, low: float = 0.0, high: float = 1.0) -> torch.Tensor:
    """Shift shares by one amount and clip them so that together they are `share` of all weights, `[k]`, float64.

    No order is reversed, and shares that meet the budget stay as they are, to rounding.

    Args:
        raw: The share each block would have, `[k]`, of any scale.
        sizes: Weights of each block, `[k]`.
        share: Of all weights.
        low: The least share a block may have.
        high: The most.

    Raises:
        BudgetError: `share` is not within `low` and `high`.
        NumericalError: a raw share is not finite.
    """
    if not low <= share <= high:
        nearest = low if share < low else high
        raise BudgetError(f"a share of {share:.6g} cannot be reached: the closest is {nearest:.6g}")
    raw, sizes = _finite(raw), sizes.to(raw.device, torch.float64)

    def shifted(shift: float) -> tuple[torch.Tensor, float]:
        shares = (raw + shift).clamp(low, high)
        return shares, float(shares @ sizes)

    target = share * float(sizes.sum())
    below, above = low - float(raw.max()), high - float(raw.min())
    for _ in range(HALVINGS):
        middle = (below + above) / 2
        below, above = (middle, above) if shifted(middle)[1] < target else (below, middle)
    (less, under), (more, over) = shifted(below), shifted(above)
    return less if over <= under else torch.lerp(less, more, min(max((target - under) / (over - under), 0.0), 1.0))


def apportion(shares: torch.Tensor, sizes: torch.Tensor, total: int) -> torch.Tensor:
    """Round shares to whole weights that add up to `total`, `[k]`, int64: the largest remainders are rounded up.

    Each is within 1 of its share if all shares together are within 1 of `total`; else they are first projected onto it.
    Ties go to the first.

    Args:
        shares: `[k]`, float64; what is outside 0 to 1 is clipped.
        sizes: Weights of each block, `[k]`, int64.
        total: Weights of all blocks together.

    Raises:
        BudgetError: there are not as many weights.
        NumericalError: a share is not finite.
    """
    sizes = sizes.to(shares.device)
    n_weights = int(sizes.sum())
    if not 0 <= total <= n_weights:
        raise BudgetError(f"{total} weights cannot be reached: the closest is {min(max(total, 0), n_weights)}")
    quota = _finite(shares).clamp(0, 1) * sizes
    if abs(float(quota.sum()) - total) > 1:
        quota = project(shares, sizes, total / n_weights) * sizes
    counts = (quota + NOISE).floor().long()
    while rest := total - int(counts.sum()):
        step = 1 if rest > 0 else -1
        room = counts < sizes if rest > 0 else counts > 0
        gap = ((quota - counts) / NOISE).round()  # none where there are too many: all quotas were whole
        order = torch.where(room, gap, -torch.inf).sort(descending=True, stable=True).indices
        counts[order[: min(abs(rest), int(room.sum()))]] += step
    return counts


def choose_zeros_of_m(
    raw: torch.Tensor, sizes: torch.Tensor, m: int, total: int, most: int | None = None
) -> torch.Tensor:
    """Choose how many of every `m` weights go in each block so that exactly `total` go, `[k]`, int64.

    Of all such choices `z` it is one with the least `Σ size (z / m - raw)²`: within blocks of one size the cheapest
    steps are the best, and a dynamic programme shares the total out over the sizes, in units of their common divisor.
    Of equal blocks the first lose more.

    Args:
        raw: The share each block would have, `[k]`.
        sizes: Weights of each block, `[k]`, int64, divisible by `m`.
        m: Length of a run of weights.
        total: Weights that go.
        most: How many of every `m` may go; all, unless told otherwise.

    Raises:
        BudgetError: no choice gives `total`, or the sizes have too little in common to tell.
        NumericalError: a raw share is not finite.
    """
    raw, sizes = _finite(raw).cpu(), sizes.cpu()
    unit = math.gcd(*sizes.tolist()) // m
    # the most frequent size first, while there are few states
    groups = sorted(((sizes == size).nonzero()[:, 0] for size in sizes.unique()), key=len, reverse=True)
    widths = [int(sizes[blocks[0]]) // m // unit for blocks in groups]
    # a total that can be reached lies at most one step above any other total
    end = min(max(total, 0) // unit + max(widths), int(sizes.sum()) // unit)
    limit = m if most is None else most
    steps = [_cheapest_steps(raw[blocks], width, m, limit) for blocks, width in zip(groups, widths, strict=True)]
    reached, picks = _programme(widths, [costs for _, costs in steps], end)
    state = int(reached[(reached * unit - total).abs().argmin()])
    if state * unit != total:
        raise BudgetError(f"{total} weights cannot be reached by whole patterns: the closest is {state * unit}")
    zeros = torch.zeros_like(sizes)
    for blocks, width, (owners, _), pick in reversed(list(zip(groups, widths, steps, picks, strict=True))):
        n = int(pick[state])
        zeros[blocks] = owners[:n].bincount(minlength=len(blocks))
        state -= n * width
    return zeros


def _cheapest_steps(raw: torch.Tensor, width: int, m: int, most: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return which block of one size takes each next step, `[n]`, and the cost of any number of steps, `[n + 1]`.

    There are `most` steps for each block. Those of one block cost ever more, so the cheapest of all never skip one.
    """
    taken = torch.arange(most, dtype=torch.float64)
    each = width * ((2 * taken + 1) / m**2 - 2 * raw[:, None] / m)
    ascending, order = each.flatten().sort(stable=True)
    return order // most, torch.nn.functional.pad(ascending.cumsum(0), (1, 0))


def _programme(widths: list[int], costs: list[torch.Tensor], end: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return the states up to `end` that can be reached, and per size how many steps the best way to a state has.

    Args:
        widths: How far a step goes, per size.
        costs: Of 0, 1, … steps, per size.
        end: The last state of interest; state 0 is before any step.

    Raises:
        BudgetError: there are too many states.
    """
    if (end + 1) * len(widths) > MOST_STATES:
        raise BudgetError(
            f"blocks of {len(widths)} sizes have too little in common to share weights out among them exactly",
            hint="give every block the same pattern",
        )
    best, picks = torch.zeros(1, dtype=torch.float64), []
    for width, ladder in zip(widths, costs, strict=True):
        last = min(end, len(best) - 1 + width * (len(ladder) - 1))
        better = torch.full((last + 1,), torch.inf, dtype=torch.float64)
        pick = torch.zeros(last + 1, dtype=torch.int32)
        for n, cost in enumerate(ladder.tolist()):
            there = slice(n * width, n * width + len(best))
            candidate = best[: len(better[there])] + cost
            pick[there].masked_fill_(candidate < better[there], n)
            better[there] = torch.minimum(better[there], candidate)
        best = better
        picks.append(pick)
    return best.isfinite().nonzero()[:, 0], picks


def _finite(shares: torch.Tensor) -> torch.Tensor:
    """Return shares in float64; raise NumericalError where one is not finite."""
    if not shares.isfinite().all():
        raise NumericalError("a share is NaN or infinite")
    return shares.double()
