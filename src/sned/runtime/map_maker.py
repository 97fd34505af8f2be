"""Fitting the linear map that makes up for a cut: what ReplaceMe does, for any method that cuts and repairs.

May import `score` and its neighbours in `runtime`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from sned.runtime.statistics import CutMoments, cut_problem
from sned.score.linear_map import (
    AdamOptions,
    MapFit,
    Moments,
    Structure,
    fit_adam,
    fit_closed,
    relative_error,
)

if TYPE_CHECKING:
    from sned.runtime.context import Context

TOKENS_PER_FEATURE = 10
"""Below ten tokens per hidden feature the plain least-squares map overfits (measured: worse than no map at 1.3)."""


def few_tokens(ctx: Context, moments: Moments, *, warn: bool = True) -> bool:
    """Tell whether a map of all features is fitted on few tokens, and with `warn` tell the user."""
    hidden = len(moments.gram)
    few = moments.tokens < TOKENS_PER_FEATURE * hidden
    if few and warn:
        ctx.progress.warn(
            f"{moments.tokens:,} calibration tokens are few for a map of {hidden} features: "
            f"{TOKENS_PER_FEATURE * hidden:,} or more are advised (--calib-tokens)"
        )
    return few


class MapMaker:
    """Fits the map of one cut, and notes how well."""

    def __init__(
        self,
        ctx: Context,
        iterative: AdamOptions | None,
        structure: Structure,
        ridge: float | None,
        ridge_target: str,
        accurate: bool,
    ) -> None:
        self.ctx, self.iterative = ctx, iterative
        self.structure: Structure = structure
        self.ridge, self.towards_identity, self.accurate = ridge, ridge_target == "identity", accurate
        self.fits: list[dict[str, Any]] = []

    def fit(self, problem: CutMoments, moments: Moments, *, final: bool) -> torch.Tensor:
        """Return the map `[hidden, hidden]`; the closed form while only probing."""
        few = few_tokens(self.ctx, moments, warn=final)
        ridge = float(few) if self.ridge is None else self.ridge
        made = fit_closed(moments, structure=self.structure, ridge=ridge, towards_identity=self.towards_identity)
        if self.iterative is not None and final:
            matrix = self._iterate(problem, self.iterative)
            made = MapFit(matrix, made.rank, made.condition, relative_error(moments, matrix))
        if final:
            before, start, end = problem.cut
            self.fits.append(
                {"layer": before, "start": start, "end": end, "tokens": moments.tokens, "rank": made.rank}
                | {"condition": made.condition, "ridge": ridge, "relative_error": made.relative_error}
                | {"estimator": self.iterative.loss if self.iterative else "lstsq", "structure": self.structure}
            )
        return made.matrix

    def _iterate(self, problem: CutMoments, options: AdamOptions) -> torch.Tensor:
        held: list[tuple[torch.Tensor, ...]] = []
        for activations in self.ctx.stream(*problem.sites):
            states, target = cut_problem(activations, standalone=problem.standalone)
            parts: tuple[torch.Tensor, ...] = (states, target)
            if self.accurate and not problem.standalone:  # a layer of its own makes the whole stream anyway
                offset = activations[1].flatten(0, 1).float() - states
                parts = (states, target + offset, offset)
            held.append(tuple(part.to(torch.bfloat16).cpu() for part in parts))
        states, target, *offset = (torch.cat(parts) for parts in zip(*held, strict=True))
        return fit_adam(states, target, options, generator=self.ctx.generator, offset=offset[0] if offset else None)


def fit_maps(ctx: Context, cuts: list[tuple[int, int, int]], *, standalone: bool = False) -> list[str]:
    """Return references to the least-squares maps of some cuts, from one pass over the calibration tokens.

    Args:
        ctx: The context; nothing may have been cut before a span yet.
        cuts: The layer before, the first that goes, and the first after it.
        standalone: Whether a map is to stand on its own, and not in the MLP of the layer before.
    """
    maker = MapMaker(ctx, None, "full", None, "identity", accurate=False)
    problems = [CutMoments(*cut, ctx.view.geometry.hidden, standalone=standalone) for cut in cuts]
    found = ctx.collect(*problems) if problems else []
    maps = [maker.fit(problem, moments, final=True) for problem, moments in zip(problems, found, strict=True)]
    ctx.scores["fit"] = maker.fits
    return [ctx.put(f"map.{cut[1]}-{cut[2]}", matrix) for cut, matrix in zip(cuts, maps, strict=True)]
