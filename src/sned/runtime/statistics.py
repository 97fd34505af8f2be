"""Resumable sums over activations: what methods learn about a model in one pass. May import `score` and `sweep`.

A statistic names the sites it needs, is updated batch by batch, and can be stopped and continued anywhere. Sums
are kept in float64; products are formed in float32 per batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Generic, Literal, TypeVar

import torch

from sned.runtime.sweep import Group, Site
from sned.score.linear_map import Moments
from sned.score.similarity import angular, cosine_rows, cosine_triangle

Positions = Literal["all", "last"]
"""Which tokens of a window count: all, or the last one, which alone has seen the whole window."""
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


class Influence(Statistic[dict[str, float]]):
    """How much one layer, its attention and its MLP turn the stream, and how much they add to it.

    `layer`, `attn`, `mlp`: one minus the mean cosine between the stream without and with the part (ShortGPT,
    arXiv 2403.03853, eq. 1; per sublayer after "A deeper look", arXiv 2407.16286). `relative`: mean of
    `‖x_out - x_in‖ / ‖x_in‖` for the layer.
    """

    _NAMES = ("layer", "attn", "mlp", "relative")

    def __init__(self, layer: int, following: int, *, has_attn: bool = True, has_mlp: bool = True) -> None:
        self.layer = layer
        self.parts = [kind for kind, there in (("attn", has_attn), ("mlp", has_mlp)) if there]
        sites = [Site("resid", layer), Site("resid", following)]
        sites += [Site("attn" if kind == "attn" else "mlp", layer) for kind in self.parts]
        sums = {name: torch.zeros((), dtype=torch.float64) for name in (*self._NAMES, "tokens")}
        super().__init__(tuple(sites), sums)

    @property
    def key(self) -> list[Any]:
        return ["influence", self.layer, self.parts]

    def update(self, *activations: torch.Tensor) -> None:
        before, after = activations[0].float(), activations[1].float()
        added = dict(zip(self.parts, activations[2:], strict=True))
        self._add("layer", 1 - cosine_rows(before, after))
        self._add("relative", (after - before).norm(dim=-1) / before.norm(dim=-1).clamp_min(1e-12))
        if "attn" in added:
            self._add("attn", 1 - cosine_rows(before, before + added["attn"].float()))
        if "mlp" in added:
            self._add("mlp", 1 - cosine_rows(after - added["mlp"].float(), after))
        self.sums["tokens"] += before.shape[0] * before.shape[1]

    def _add(self, name: str, values: torch.Tensor) -> None:
        self.sums[name] += values.sum(dtype=torch.float64).cpu()

    def result(self) -> dict[str, float]:
        tokens = float(self.sums["tokens"])
        return {n: float(self.sums[n]) / tokens for n in self._NAMES if n not in ("attn", "mlp") or n in self.parts}
