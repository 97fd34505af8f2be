"""Resumable sums over activations: what methods learn about a model in one pass. May import `score` and `sweep`.

A statistic names the sites it needs, is updated batch by batch, and can be stopped and continued anywhere. Sums
are kept in float64; products are formed in float32 per batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, get_args

import torch

from sned.runtime.sweep import SUBLAYERS, Group, Site
from sned.score.linear_map import Moments
from sned.score.similarity import angular, cosine_rows, cosine_triangle
from sned.score.updates import Update

if TYPE_CHECKING:
    from sned.models.family import Sublayer

Positions = Literal["all", "last"]
"""Which tokens of a window count: all, or the last one, which alone has seen the whole window."""
Metric = Literal["cosine", "l1", "l2", "relative_l1", "relative_l2"]
METRICS: tuple[Metric, ...] = get_args(Metric)
R = TypeVar("R")


class Statistic(ABC, Generic[R]):
    """A sum over activations; `sums` is its whole state, so that it can be saved and continued."""

    def __init__(self, sites: Group, sums: dict[str, torch.Tensor]) -> None:
        self.sites = sites
        self.sums = sums

    @property
    @abstractmethod
    def key(self) -> list[Any]:
        """What distinguishes the statistic from all others; JSON."""

    @abstractmethod
    def update(self, *activations: torch.Tensor) -> None:
        """Add one batch: `[batch, tokens, hidden]` for each site, in order."""

    @abstractmethod
    def result(self) -> R:
        """Return what the sums mean."""


class Distances(Statistic[dict[str, list[list[float]]]]):
    """Mean distance between the stream entering every layer and the stream entering every later one.

    The result holds two triangles indexed `[s][e]`: `angular`, mean angle as a share of half a turn (UIDL,
    ReplaceMe), and `cosine`, one minus the mean cosine (ShortGPT's block influence on its first off-diagonal).

    Departure: the papers look at the last token of a padded document. Windows here are packed, so by default all
    tokens count; `positions="last"` gives theirs.
    """

    _PIECE = 128

    def __init__(self, boundaries: list[int], positions: Positions = "all") -> None:
        n = len(boundaries)
        self.boundaries, self.positions = boundaries, positions
        zeros = {name: torch.zeros(n, n, dtype=torch.float64) for name in ("angular", "cosine")}
        super().__init__(tuple(Site("resid", i) for i in boundaries), zeros | {"tokens": torch.zeros(())})

    @property
    def key(self) -> list[Any]:
        return ["distances", self.boundaries, self.positions]

    def update(self, *activations: torch.Tensor) -> None:
        picked = [x[:, -1:] if self.positions == "last" else x for x in activations]
        flat = [x.flatten(0, 1) for x in picked]
        for start in range(0, len(flat[0]), self._PIECE):
            cosine = cosine_triangle(torch.stack([x[start : start + self._PIECE] for x in flat]))
            self.sums["cosine"] += (1 - cosine).sum(0, dtype=torch.float64).cpu()
            self.sums["angular"] += angular(cosine).sum(0, dtype=torch.float64).cpu()
            self.sums["tokens"] += len(cosine)

    def result(self) -> dict[str, list[list[float]]]:
        n = self.boundaries[-1] + 1
        out: dict[str, list[list[float]]] = {}
        for name in ("angular", "cosine"):
            full = torch.full((n, n), float("nan"), dtype=torch.float64)
            index = torch.tensor(self.boundaries)
            full[index[:, None], index] = self.sums[name] / self.sums["tokens"]
            out[name] = full.tolist()
        return out


class CutMoments(Statistic[Moments]):
    """Moments of the least-squares problem that makes up for a cut of layers `[start, end)`.

    Folded (ReplaceMe, arXiv 2505.02819, eq. 5): `M` is what the MLP of the layer before the cut adds, and
    `Z = x_end - (x_start - M)`. Stand-alone (appendix A.9): `M = x_start`, `Z = x_end`, without the first token
    of each window, whose huge norm would drown all others.
    """

    def __init__(self, before: int, start: int, end: int, hidden: int, *, standalone: bool = False) -> None:
        self.cut, self.standalone = (before, start, end), standalone
        stream = (Site("resid", start), Site("resid", end))
        sites = stream if standalone else (Site("mlp", before), *stream)
        square = torch.zeros(hidden, hidden, dtype=torch.float64)
        super().__init__(
            sites,
            {
                "gram": square,
                "cross": square.clone(),
                "target": torch.zeros((), dtype=torch.float64),
                "tokens": torch.zeros((), dtype=torch.int64),
            },
        )

    @property
    def key(self) -> list[Any]:
        return ["cut", *self.cut, self.standalone]

    def update(self, *activations: torch.Tensor) -> None:
        states, target = cut_problem(activations, standalone=self.standalone)
        self.sums["gram"] += (states.T @ states).double().cpu()
        self.sums["cross"] += (states.T @ target).double().cpu()
        self.sums["target"] += target.square().sum(dtype=torch.float64).cpu()
        self.sums["tokens"] += len(states)

    def result(self) -> Moments:
        s = self.sums
        return Moments(s["gram"], s["cross"], float(s["target"]), int(s["tokens"]))


def cut_problem(activations: tuple[torch.Tensor, ...], *, standalone: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Return `M` and `Z`, `[tokens, hidden]` in float32, from the activations at the sites of `CutMoments`."""
    if standalone:
        start, end = (x[:, 1:].flatten(0, 1).float() for x in activations)
        return start, end
    added, start, end = (x.flatten(0, 1).float() for x in activations)
    return added, end - (start - added)


class Received(Statistic[torch.Tensor]):
    """The root mean square of what each input channel of a layer's output projection receives, `[channels]`, float64.

    `heads` is of the attention, `channels` of the MLP.
    """

    def __init__(self, layer: int, kind: Literal["heads", "channels"], size: int) -> None:
        self.site = Site(kind, layer)
        sums = {"squares": torch.zeros(size, dtype=torch.float64), "tokens": torch.zeros((), dtype=torch.int64)}
        super().__init__((self.site,), sums)

    @property
    def key(self) -> list[Any]:
        return ["received", self.site.kind, self.site.layer]

    def update(self, *activations: torch.Tensor) -> None:
        flat = activations[0].flatten(0, 1).float()
        self.sums["squares"] += flat.square().sum(0, dtype=torch.float64).cpu()
        self.sums["tokens"] += len(flat)

    def result(self) -> torch.Tensor:
        return (self.sums["squares"] / self.sums["tokens"]).sqrt()


class Fluctuation(Statistic[tuple[torch.Tensor, torch.Tensor]]):
    """Mean and variance of what each input channel of a layer's output projection receives, `[channels]`, float64."""

    def __init__(self, layer: int, kind: Literal["heads", "channels"], size: int) -> None:
        self.site = Site(kind, layer)
        sums = {name: torch.zeros(size, dtype=torch.float64) for name in ("values", "squares")}
        super().__init__((self.site,), sums | {"tokens": torch.zeros((), dtype=torch.int64)})

    @property
    def key(self) -> list[Any]:
        return ["fluctuation", self.site.kind, self.site.layer]

    def update(self, *activations: torch.Tensor) -> None:
        flat = activations[0].flatten(0, 1).double()
        self.sums["values"] += flat.sum(0).cpu()
        self.sums["squares"] += flat.square().sum(0).cpu()
        self.sums["tokens"] += len(flat)

    def result(self) -> tuple[torch.Tensor, torch.Tensor]:
        mean = self.sums["values"] / self.sums["tokens"]
        return mean, (self.sums["squares"] / self.sums["tokens"] - mean.square()).clamp_min(0)


class Influence(Statistic[dict[str, dict[Metric, float]]]):
    """How much one layer, its attention and its MLP turn the stream, and how much they add to it.

    The result holds means over tokens for `layer`, `attn` and `mlp`, each from the stream without the part and what
    the part adds to it: `cosine`, one minus the cosine between the stream without and with it (ShortGPT, arXiv
    2403.03853, eq. 1; per sublayer after "A deeper look", arXiv 2407.16286); `l1` and `l2`, the norm of what is added;
    `relative_l1` and `relative_l2`, that norm as a multiple of the norm of the stream without it.
    """

    def __init__(self, layer: int, following: int, *, has_attn: bool = True, has_mlp: bool = True) -> None:
        self.layer = layer
        there: dict[Sublayer, bool] = {"attn": has_attn, "mlp": has_mlp}
        self.parts: list[Sublayer] = [which for which in SUBLAYERS if there[which]]
        sites = [Site("resid", layer), Site("resid", following), *(Site(kind, layer) for kind in self.parts)]
        names = [f"{part}.{metric}" for part in ("layer", *self.parts) for metric in METRICS]
        super().__init__(tuple(sites), {name: torch.zeros((), dtype=torch.float64) for name in (*names, "tokens")})

    @property
    def key(self) -> list[Any]:
        return ["influence", self.layer, self.parts, list(METRICS)]

    def update(self, *activations: torch.Tensor) -> None:
        before, after, *added = (x.float() for x in activations)
        self._add("layer", before, after - before)
        for part, change in zip(self.parts, added, strict=True):
            self._add(part, before if part == "attn" else after - change, change)
        self.sums["tokens"] += before.shape[0] * before.shape[1]

    def _add(self, part: str, without: torch.Tensor, change: torch.Tensor) -> None:
        values = {"cosine": 1 - cosine_rows(without, without + change)}
        for name, order in (("l1", 1), ("l2", 2)):
            values[name] = change.norm(order, dim=-1)
            values[f"relative_{name}"] = values[name] / without.norm(order, dim=-1).clamp_min(1e-12)
        for metric, value in values.items():
            self.sums[f"{part}.{metric}"] += value.sum(dtype=torch.float64).cpu()

    def result(self) -> dict[str, dict[Metric, float]]:
        tokens = float(self.sums["tokens"])
        parts = ("layer", *self.parts)
        return {part: {m: float(self.sums[f"{part}.{m}"]) / tokens for m in METRICS} for part in parts}


class Updates(Statistic[Update]):
    """What layers `[start, end)` did to the stream, for a simple map that is to stand in their place.

    What reads the stream divides by its norm, so each token weighs as the inverse square of that norm behind the
    layers; else the first of each window, of huge norm, would drown all others.
    """

    _CHANNELS = ("added", "before", "after", "square", "product")

    def __init__(self, start: int, end: int, hidden: int, *, moments: bool = False) -> None:
        self.cut, self.moments = (start, end), moments
        sums = {name: torch.zeros(hidden, dtype=torch.float64) for name in self._CHANNELS}
        if moments:
            sums |= {name: torch.zeros(hidden, hidden, dtype=torch.float64) for name in ("gram", "cross")}
        sums |= {name: torch.zeros((), dtype=torch.float64) for name in ("added_square", "weight")}
        super().__init__(
            (Site("resid", start), Site("resid", end)), sums | {"tokens": torch.zeros((), dtype=torch.int64)}
        )

    @property
    def key(self) -> list[Any]:
        return ["updates", *self.cut, self.moments]

    def update(self, *activations: torch.Tensor) -> None:
        before, after = (x.flatten(0, 1).float() for x in activations)
        added, weight = after - before, 1 / after.square().mean(-1, keepdim=True).clamp_min(1e-12)
        found = {"added": added, "before": before.abs(), "after": after.abs(), "square": before.square()}
        for name, values in {**found, "product": before * added}.items():
            self.sums[name] += (weight * values).sum(0, dtype=torch.float64).cpu()
        self.sums["added_square"] += (weight * added.square()).sum(dtype=torch.float64).cpu()
        self.sums["weight"] += weight.sum(dtype=torch.float64).cpu()
        self.sums["tokens"] += len(before)
        if self.moments:
            weighted = (weight * before).T
            self.sums["gram"] += (weighted @ before).double().cpu()
            self.sums["cross"] += (weighted @ added).double().cpu()

    def result(self) -> Update:
        s, tokens, square = self.sums, int(self.sums["tokens"]), float(self.sums["added_square"])
        moments = Moments(s["gram"], s["cross"], square, tokens) if self.moments else None
        channels = [s[name] for name in self._CHANNELS]
        return Update(tokens, float(s["weight"]), *channels, added_square=square, moments=moments)


class Additions(Updates):
    """What a sublayer adds to the stream, by itself, for a constant that is to stand in its place.

    Tokens weigh as in `Updates`, by the stream that enters the layer with nothing but this added.
    """

    def __init__(self, which: Sublayer, layer: int, hidden: int) -> None:
        super().__init__(layer, layer + 1, hidden)
        self.which = which
        self.sites = (Site("resid", layer), Site(which, layer))

    @property
    def key(self) -> list[Any]:
        return ["additions", self.which, self.cut[0]]

    def update(self, *activations: torch.Tensor) -> None:
        before, added = activations
        super().update(before, before.float() + added.float())
