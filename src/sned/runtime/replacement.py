"""What stands for a run of layers before it is trained: a layer of the run, or a linear map, and where it is trained.

May import its neighbours in `runtime`.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import torch

from sned.errors import ConfigError
from sned.models.folding import output_projection
from sned.plans.ops import DropLayers, DropSublayer, Fold, Op, Replace, SetWeight
from sned.runtime.depth import boundaries, layers_of
from sned.runtime.map_maker import fit_maps

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sned.runtime.context import Context
    from sned.score.select import Cut

Kind = Literal["layer", "mlp", "linear", "nothing"]
Inherit = Literal["fitted", "first", "last", "mean"]


@dataclass(frozen=True, slots=True)
class Replacement:
    """What is to stand for a run of layers.

    Attributes:
        kind: A layer of the model's own kind, one without its attention, a linear map, or nothing.
        inherit: Of a layer: whose weights it starts with.
        count: How many layers stand for the run.
    """

    kind: Kind
    inherit: Inherit = "first"
    count: int = 1

    @property
    def own(self) -> bool:
        """Whether layers of the run itself stand for it."""
        return self.kind in ("layer", "mlp")

    def boundaries(self, ctx: Context, min_start: int, max_end: int | None) -> list[int]:
        """Return where a run may begin and end: the layer of a run that stays whole need not be one that may go."""
        allowed = boundaries(ctx, min_start, max_end)
        if self.kind != "layer":
            return allowed
        if self.inherit == "last":
            return [*allowed, *[i for i in (*ctx.view.layers, ctx.view.geometry.n_layers) if i > allowed[-1]][:1]]
        return [*[i for i in ctx.view.layers if i < allowed[0]][-1:], *allowed]

    def kept(self, ctx: Context, cut: Cut) -> list[int]:
        """Return the layers of a run that stay."""
        if not self.own:
            return []
        return [chunk[-1] if self.inherit == "last" else chunk[0] for chunk in self._chunks(ctx, cut)]

    def trained(self, ctx: Context, cut: Cut) -> tuple[int, dict[int, list[str] | None]]:
        """Return where what is trained begins, and its parameters by layer, None for all; for a view already cut."""
        if self.own:
            return cut[0], dict.fromkeys(self.kept(ctx, cut))
        if cut[0] in ctx.view.layers:
            return cut[0], {cut[0]: None}
        before = _before(ctx, cut)
        return before, {before: [f"{output_projection(ctx.view, 'mlp')}.weight"]}

    def maps(self, ctx: Context, cut: Cut) -> list[tuple[int, int, int]]:
        """Return what maps are to make up for: the layer before, the first that goes, and the first after it."""
        if self.kind == "linear":
            return [(_before(ctx, cut), *cut)]
        if not (self.own and self.inherit == "fitted"):
            return []
        chunks = self._chunks(ctx, cut)
        ends = [*(chunk[0] for chunk in chunks[1:]), cut[1]]
        return [(chunk[0], chunk[1], end) for chunk, end in zip(chunks, ends, strict=True) if len(chunk) > 1]

    def ops(self, ctx: Context, cuts: Sequence[Cut]) -> list[list[Op]]:
        """Return for each run what cuts it and puts something untrained in its place; one pass serves all maps."""
        problems = [self.maps(ctx, cut) for cut in cuts]
        alone = self.kind == "linear" and not all(_foldable(ctx, [_before(ctx, cut)]) for cut in cuts)
        flat = [problem for own in problems for problem in own]
        references = iter(fit_maps(ctx, flat, standalone=alone)) if flat else iter(())
        made: list[list[Op]] = []
        for cut, own in zip(cuts, problems, strict=True):
            inside, maps = layers_of(ctx, cut), [(problem[0], next(references)) for problem in own]
            if alone:
                made.append([Replace(layers=inside, tensor=maps[0][1])])
                continue
            kept = self.kept(ctx, cut)
            start: list[Op] = [Fold(layer=layer, tensor=reference) for layer, reference in maps]
            start += self._means(ctx, cut) if self.inherit == "mean" else []
            start.append(DropLayers(layers=tuple(i for i in inside if i not in kept)))
            start += [DropSublayer(layer=i, which="attn") for i in kept if self.kind == "mlp"]
            made.append(start)
        return made

    def _chunks(self, ctx: Context, cut: Cut) -> list[Sequence[int]]:
        """Split a run into parts of nearly the same length, the longer ones first: one for each layer that stays."""
        layers = [i for i in ctx.dense.layers if cut[0] <= i < cut[1]]
        size, longer = divmod(len(layers), self.count)
        starts = [i * size + min(i, longer) for i in range(self.count + 1)]
        return [layers[a:b] for a, b in pairwise(starts)]

    def _means(self, ctx: Context, cut: Cut) -> list[Op]:
        return [op for chunk in self._chunks(ctx, cut) for op in _mean(ctx, chunk)]


def default_inherit(ctx: Context, kind: Kind) -> Inherit:
    """Return how a layer starts unless told otherwise: fitted, where the output of every MLP can be."""
    return "fitted" if kind == "layer" and _foldable(ctx, list(ctx.dense.layers)) else "first"


def _mean(ctx: Context, layers: Sequence[int]) -> list[Op]:
    """Return what gives the first of some layers the mean of their parameters.

    Raises:
        ConfigError: they are not of one shape, or do not see the same features of the stream.
    """
    sums: dict[str, torch.Tensor] = {}
    for layer in layers:
        if ctx.view.routes(layer):
            raise ConfigError(f"layer {layer} reads or writes some features only: it has no mean", hint="inherit first")
        with ctx.view.materialised(layer) as block:
            for name, param in block.named_parameters():
                if sums.setdefault(name, torch.zeros_like(param, dtype=torch.float64)).shape != param.shape:
                    raise ConfigError(f"layers {list(layers)} differ in shape: they have no mean", hint="inherit first")
                sums[name] += param.detach().double()
    means = {name: (total / len(layers)).to(ctx.view.dtype) for name, total in sums.items()}
    into = layers[0]
    return [SetWeight(layer=into, param=name, tensor=ctx.put(f"{into}.{name}", mean)) for name, mean in means.items()]


def _before(ctx: Context, cut: Cut) -> int:
    return max((i for i in ctx.dense.layers if i < cut[0]), default=-1)


def _foldable(ctx: Context, layers: Sequence[int]) -> bool:
    return all(i >= 0 and ctx.dense.fold_obstacle(i) is None for i in layers)
