"""What the depth methods share: which layers may go, one pass that measures all distances, and a probe of few cuts.

May import its neighbours in `runtime`.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING

from sned.errors import BudgetError, ConfigError, NumericalError
from sned.runtime.statistics import Distances, Positions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sned.runtime.context import Candidate, Context
    from sned.score.select import Cut

PROBE_WINDOWS = 8
"""Windows of calibration text on which the few best cuts are tried."""
SCOUT_RATIO = 8
"""One of so many windows scouts."""


def scouts(ctx: Context) -> int:
    """Return how many calibration windows are enough to tell which runs of layers are worth a closer look."""
    return max(1, len(ctx.calibration) // SCOUT_RATIO)


def measure_distances(
    ctx: Context, positions: Positions, *, windows: int | None = None, label: str = "measure distances"
) -> dict[str, list[list[float]]]:
    """Return the distance triangles of the view (see `Distances`), from one pass over the calibration tokens."""
    return ctx.collect(distances(ctx, positions), windows=windows, label=label)[0]


def distances(ctx: Context, positions: Positions) -> Distances:
    """Return the statistic that measures all distances of the view as it is."""
    return Distances([*ctx.view.layers, ctx.view.geometry.n_layers], positions)


def explain(ctx: Context, triangles: dict[str, list[list[float]]]) -> None:
    """Keep in the scores what a reader wants to see: `distance[s][n]`, angular, and the influence of each layer."""
    depth = ctx.view.geometry.n_layers
    angular, cosine = triangles["angular"], triangles["cosine"]
    ctx.scores["distance"] = [[_number(angular[s][s + n]) for n in range(depth - s + 1)] for s in range(depth)]
    following = dict(pairwise([*ctx.view.layers, depth]))
    ctx.scores["influence"] = [_number(cosine[s][following.get(s, s + 1)]) for s in range(depth)]


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def layer_range(ctx: Context, min_start: int, max_end: int | None) -> tuple[int, int]:
    """Return the half-open range of layers that may be removed.

    The first layer stays because nothing before it could take over, the last because it turns the stream towards
    the vocabulary (UIDL; ShortGPT: perplexity 7.60 to 13.37 on Llama-2-7B for its last layer alone).

    Raises:
        ConfigError: the range is empty or leaves the model.
    """
    depth = ctx.view.geometry.n_layers
    end = depth - 1 if max_end is None else max_end
    if not 0 <= min_start < end <= depth:
        raise ConfigError(f"min_start={min_start}, max_end={end} is not a range of the {depth} layers")
    return min_start, end


def boundaries(ctx: Context, min_start: int, max_end: int | None) -> list[int]:
    """Return the present layers that may be removed, and the first present one after them (or the depth).

    Raises:
        ConfigError: the range is empty or leaves the model.
    """
    first, last = layer_range(ctx, min_start, max_end)
    end = next((i for i in ctx.view.layers if i >= last), ctx.view.geometry.n_layers)
    return [*(i for i in ctx.view.layers if first <= i < last), end]


def parse_cut(text: str, depth: int) -> Cut:
    """Read ``13:19``, layers 13 to 18.

    Raises:
        ConfigError: it is not a cut of a model of this depth.
    """
    try:
        start, end = (int(part) for part in text.split(":"))
    except ValueError:
        raise ConfigError(f"span {text!r} is not a cut", hint="13:19 means layers 13 to 18") from None
    if not 0 <= start < end <= depth or end - start == depth:
        raise ConfigError(f"span {text!r} is not a cut of {depth} layers", hint="13:19 means layers 13 to 18")
    return start, end


def least_missed(ctx: Context, cuts: Sequence[Cut], candidates: Sequence[Candidate]) -> int:
    """Return the number of the cut with the least loss when tried; ties go to the first; `scores["probe"]` keeps all.

    Args:
        ctx: The context.
        cuts: What would go.
        candidates: The ops of each cut, with what makes up for it.

    Raises:
        NumericalError: none leaves a model with a finite loss.
    """
    losses = ctx.losses(candidates, windows=min(PROBE_WINDOWS, len(ctx.calibration)))
    if math.isinf(min(losses)):
        raise NumericalError("no cut that was tried gives a finite loss", hint="try --dtype fp32, or --probe 1")
    finite = [None if math.isinf(nll) else nll for nll in losses]
    rows = [{"start": s, "end": e, "nll": nll} for (s, e), nll in zip(cuts, finite, strict=True)]
    ctx.scores.setdefault("probe", []).extend(rows)
    return min(range(len(cuts)), key=losses.__getitem__)


def layers_of(ctx: Context, cut: Cut) -> tuple[int, ...]:
    """Return the present layers of a cut."""
    return tuple(i for i in ctx.view.layers if cut[0] <= i < cut[1])


def check_span(ctx: Context, text: str, n: int) -> Cut:
    """Read a span that the user chose, and make sure that it is as long as the budget says.

    Raises:
        BudgetError: it is not.
        ConfigError: it is no cut of this model.
    """
    cut = parse_cut(text, ctx.view.geometry.n_layers)
    if (length := len(layers_of(ctx, cut))) != n:
        raise BudgetError(f"--span {text} is {length} layers, but the budget is {n}", hint="leave one out")
    return cut
