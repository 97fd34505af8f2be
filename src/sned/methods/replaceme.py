"""ReplaceMe: cut a run of layers and let one linear map, folded into the layer before it, make up for the loss."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field

from sned.errors import ConfigError
from sned.plans.ops import DropLayers, Fold, Op, Replace
from sned.runtime.context import Context
from sned.runtime.depth import (
    boundaries,
    check_span,
    distances,
    explain,
    layers_of,
    least_missed,
    measure_distances,
    scouts,
)
from sned.runtime.map_maker import MapMaker
from sned.runtime.method import method
from sned.runtime.statistics import CutMoments, Positions
from sned.score.linear_map import AdamOptions, Moments, Structure
from sned.score.select import Cut, fuse, ranked_cuts, split_evenly


@method(
    paper="arXiv:2505.02819",
    prunes="depth",
    title="ReplaceMe: Network Simplification via Depth Pruning and Transformer Block Linearization",
)
def replaceme(
    ctx: Context,
    *,
    layers: int,
    estimator: Annotated[Literal["lstsq", "cosine", "mse"], "closed form, or Adam on a loss"] = "lstsq",
    structure: Annotated[Structure, "shape of the map"] = "full",
    ridge: Annotated[
        float | None, Field(ge=0), "relative strength of the ridge; default: 0, or 1 when tokens are few"
    ] = None,
    ridge_target: Annotated[
        Literal["identity", "zero"], "what a strong ridge tends to; zero as published"
    ] = "identity",
    maps: Annotated[int, Field(ge=1), "number of cuts, each with a map; touching ones are joined"] = 1,
    standalone: Annotated[bool, "a linear layer of its own instead of a fold"] = False,
    probe: Annotated[
        int, Field(ge=0), "best cuts by distance whose loss is measured before choosing; 0 or 1: none"
    ] = 3,
    positions: Annotated[Positions, "tokens that count in distances: all, or the last of each window"] = "all",
    span: Annotated[str | None, "cut these layers instead of choosing, such as 13:19 for 13 to 18"] = None,
    min_start: Annotated[int, "first layer that may go"] = 1,
    max_end: Annotated[int | None, "end (excluded) of the layers that may go; default: all but the last"] = None,
    accurate: Annotated[bool, "cosine: compare with the whole stream (eq. 7) instead of the update (eq. 8)"] = False,
    l1: Annotated[float, Field(ge=0), "cosine and mse: penalty on the absolute entries of the map"] = 0.0,
    l2: Annotated[float, Field(ge=0), "cosine and mse: penalty on the squared entries of the map"] = 0.0,
    lr: Annotated[float, Field(gt=0), "cosine and mse: learning rate of Adam"] = 1e-4,
    epochs: Annotated[int, Field(ge=1), "cosine and mse: passes over the states"] = 10,
) -> Iterator[Op]:
    """Cut a run of layers and fold one linear map, fitted on calibration text, into the MLP before it.

    Departures from the released code: states are taken before the final norm and never padded; the ridge is
    relative and tends to plain removal; touching cuts share one map; the cosine estimator's scale is recovered;
    where a norm or experts follow the MLP, the map becomes a linear layer of its own (appendix A.9). The best
    cuts by distance are tried, with their maps, before one is chosen: the distance alone can pick a catastrophe.
    """
    if maps > layers:
        raise ConfigError(f"maps={maps} cuts need as many layers, but the budget is {layers}", hint="lower --set maps")
    iterative = AdamOptions("mse" if estimator == "mse" else "cosine", structure, epochs, lr=lr, l1=l1, l2=l2)
    if estimator == "lstsq" and (l1 or l2):
        raise ConfigError("l1 and l2 need the cosine or mse estimator", hint="for lstsq, use ridge")
    maker = MapMaker(ctx, None if estimator == "lstsq" else iterative, structure, ridge, ridge_target, accurate)
    chooser = _Chooser(ctx, maker, positions, standalone, max(1, probe), boundaries(ctx, min_start, max_end))
    cuts = [check_span(ctx, span, layers)] if span else chooser.choose(split_evenly(layers, maps))
    fused = fuse(cuts)
    for cut in fused:
        yield from chooser.ops(cut, chooser.collect([cut])[0], final=True)
    ctx.scores["cuts"] = [chooser.row(cut) for cut in fused]
    ctx.scores["fit"] = maker.fits


class _Chooser:
    """Chooses cuts by distance, then by trying the best few with their maps."""

    def __init__(
        self,
        ctx: Context,
        maker: MapMaker,
        positions: Positions,
        standalone: bool,
        shortlist: int,
        allowed: list[int],
    ) -> None:
        self.ctx, self.maker = ctx, maker
        self.positions: Positions = positions
        self.standalone, self.shortlist, self.allowed = standalone, shortlist, allowed
        self.known: dict[Cut, Moments] = {}
        self.triangle: list[list[float]] | None = None

    def choose(self, sizes: list[int]) -> list[Cut]:
        """Return one cut per size, none overlapping, best first."""
        windows = scouts(self.ctx)  # the full pass then sums the moments of what looks best
        scouted = measure_distances(self.ctx, self.positions, windows=windows, label="scout for cuts")["angular"]
        likely = {cut for n in set(sizes) for cut in self._ranked(scouted, n, [])[: self.shortlist + 1]}
        self.collect(sorted(likely))
        taken: list[Cut] = []
        for n in sizes:
            ranked = self._ranked(self.triangle or scouted, n, taken)[: self.shortlist]
            if not ranked:
                raise ConfigError(f"{len(sizes)} cuts do not fit beside each other", hint="lower --set maps")
            taken.append(self._probe(ranked))
        return taken

    def collect(self, cuts: list[Cut]) -> list[Moments]:
        """Return the moments of cuts, from one pass for those not known yet; the first pass measures all distances."""
        known = {} if self.ctx.ops else self.known  # once something is cut, the stream is another
        problems = [self._problem(cut) for cut in cuts if cut not in known]
        if problems and self.triangle is None and not self.ctx.ops:
            triangles, *found = self.ctx.collect(distances(self.ctx, self.positions), *problems)
            self.triangle = triangles["angular"]
            explain(self.ctx, triangles)
        else:
            found = self.ctx.collect(*problems) if problems else []
        fresh = {(p.cut[1], p.cut[2]): m for p, m in zip(problems, found, strict=True)}
        if not self.ctx.ops:
            self.known |= fresh
        return [fresh.get(cut) or known[cut] for cut in cuts]

    def ops(self, cut: Cut, moments: Moments, *, final: bool = False) -> list[Op]:
        """Return the ops that cut and make up for it."""
        problem, span = self._problem(cut), layers_of(self.ctx, cut)
        matrix = self.maker.fit(problem, moments, final=final)
        reference = self.ctx.put(f"map.{cut[0]}-{cut[1]}", matrix)
        if problem.standalone:
            return [Replace(layers=span, tensor=reference)]
        return [Fold(layer=problem.cut[0], tensor=reference), DropLayers(layers=span)]

    def row(self, cut: Cut) -> dict[str, Any]:
        """Describe a chosen cut for the scores."""
        start, end = cut
        distance = None if self.triangle is None else self.triangle[start][end]
        folded = any(isinstance(op, Fold) for op in self.ctx.ops)
        return {"start": start, "end": end, "distance": distance, "folded": folded}

    def _ranked(self, triangle: list[list[float]], n: int, taken: list[Cut]) -> list[Cut]:
        return ranked_cuts(triangle, n, self.allowed, taken)

    def _probe(self, cuts: list[Cut]) -> Cut:
        """Return the cut with the least loss when tried alone with its map; ties go to the least distance."""
        if len(cuts) == 1:
            return cuts[0]
        candidates = [self.ops(cut, moments) for cut, moments in zip(cuts, self.collect(cuts), strict=True)]
        return cuts[least_missed(self.ctx, cuts, candidates)]

    def _problem(self, cut: Cut) -> CutMoments:
        start, end = cut
        view = self.ctx.view
        present = [i for i in view.layers if i < start]
        before = present[-1] if present else -1
        alone = self.standalone or before < 0 or view.fold_obstacle(before) is not None
        return CutMoments(before, start, end, view.geometry.hidden, standalone=alone)
