"""The score board of one search step: what every candidate lost on the windows it has met so far.

May import its neighbours in `runtime`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from sned.canon import digest
from sned.runtime.trials import segment_tokens

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sned.data.tokens import Tokens
    from sned.plans.ops import Op
    from sned.runtime.context import Context
    from sned.runtime.trials import Trials

BASE = ""
"""Stands for the model without any candidate's change."""


class Board:
    """Sums of losses by candidate, window and segment; filled through the journal.

    Candidates meet the windows in order, so that a number of windows says which.
    """

    def __init__(
        self,
        ctx: Context,
        trials: Trials,
        objective: str,
        tokens: Tokens,
        candidates: Mapping[str, Sequence[Op]],
        savings: Mapping[str, float] | None = None,
    ) -> None:
        self._ctx, self._trials = ctx, trials
        self.advance: Callable[[int], None] = lambda _units: None
        self._tokens = tokens
        self._ops: dict[str, Sequence[Op]] = {BASE: (), **candidates}
        self.keys = list(candidates)
        self._savings = savings or {}
        self._sums: dict[str, list[torch.Tensor]] = {k: [] for k in self._ops}
        self._least: dict[str, list[torch.Tensor]] = {k: [] for k in self._ops}
        self._counts = segment_tokens(self._tokens.length)
        self._state = digest([*ctx.state(self._tokens), objective])
        self.history = ctx.identify(ctx.ops)
        self._marks = {k: digest(self.identity(k)) for k in self._ops}
        active = ctx.view.active
        first = {k: min((i for op in ops for i in op.touched), default=active[-1] + 1) for k, ops in self._ops.items()}
        self._depth = {k: sum(i >= first[k] for i in active) for k in self._ops}

    @property
    def work(self) -> int:
        """The layers that all candidates have to themselves, times windows: the units of `advance`."""
        return len(self._tokens) * sum(self._depth.values())

    @property
    def foresees(self) -> bool:
        """Whether it is known at a lower cost what a candidate loses at least."""
        return self._trials.knows_least

    def extend(self, keys: Sequence[str], stop: int, foresee: Sequence[str] = ()) -> None:
        """Let candidates meet the windows up to `stop`; of those to foresee, find only what they lose at least."""
        for key in foresee:
            self._least[key] = self._least[key] or list(self._sums[key])
        reached = {k: self.windows(k) for k in keys} | {k: self._reached(k) for k in foresee}
        for start in sorted(set(reached.values())):
            if start < stop:
                group, least = ([k for k in some if reached[k] == start] for some in (keys, foresee))
                for first, last in self._trials.portions(start, stop, self._tokens.length):
                    self._measure(group, least, first, last)

    def measure_plainly(self) -> None:
        """Measure all candidates alone, from the first layer to the last, on all windows."""
        for key in self._ops:
            where = [self._state, self._marks[key], "plain"]
            ids = self._tokens.ids
            kept = self._ctx.journal.recall(
                "loss", where, lambda k=key, i=ids: self._trials.plain(self._ops[k], i).tolist()
            )
            self._sums[key].append(_sums(kept))
            self.advance(len(kept) * self._depth[key])

    def keep_only(self, keys: Sequence[str]) -> None:
        """Leave only these in the running."""
        for key in set(self.keys) - set(keys):
            self.advance((len(self._tokens) - self._reached(key)) * self._depth[key])
        self.keys = [k for k in self.keys if k in keys]

    @property
    def measured(self) -> int:
        """How many candidates have met any window."""
        return sum(bool(sums) for k, sums in self._sums.items() if k != BASE)

    @property
    def reason(self) -> str:
        """Why the last candidate was dropped."""
        return self._trials.reason

    def windows(self, key: str) -> int:
        """How many windows a candidate has met."""
        return sum(map(len, self._sums[key]))

    def tokens(self, key: str) -> int:
        """How many predicted tokens a candidate has met."""
        return self.windows(key) * (self._tokens.length - 1)

    def loss(self, key: str) -> float:
        """Return the mean loss per token."""
        return self._total(key) / self.tokens(key)

    def increase(self, key: str) -> float:
        """Return by how much the mean loss exceeds that of the base on the same windows."""
        return (self._total(key) - self._total(BASE, self.windows(key))) / self.tokens(key)

    def score(self, key: str) -> float:
        """Return what is to be least: the increase per thing saved; infinite for a candidate that failed."""
        return self._scored(key, self.increase(key))

    def least_score(self, key: str) -> float:
        """Return the least score that a candidate may have: with what is foreseen, or nothing, lost ahead."""
        met, n = self.windows(key), len(self._tokens)
        ahead = float(self._foreseen(key)[met:].sum())
        tokens = n * (self._tokens.length - 1)
        return self._scored(key, (self._total(key) + ahead - self._total(BASE, n)) / tokens)

    def slack(self, key: str) -> float:
        """Return by how much more per token a candidate lost than foreseen, on windows that it met later."""
        foreseen = self._foreseen(key)
        short = (torch.cat(self._sums[key])[: len(foreseen)] - foreseen).sum(1)
        return float(short.sum()) / (max(1, int((short > 0).sum())) * (self._tokens.length - 1))

    def saving(self, key: str) -> float:
        """Return what a candidate saves; 1 where savings do not count."""
        return self._savings.get(key, 1.0)

    def costs(self, key: str) -> torch.Tensor:
        """Return by how much the loss exceeds the base's on every segment that a candidate has met, `[segments]`."""
        return (self._per_segment(key) - self._per_segment(BASE)[: self.windows(key)]).flatten()

    def sums(self, key: str) -> list[torch.Tensor]:
        """Return the losses of a candidate as measured so far."""
        return list(self._sums[key])

    def start(self, key: str, sums: list[torch.Tensor]) -> None:
        """Take over what was measured under another name."""
        self._sums[key] = list(sums)

    def identity(self, key: str) -> list[Any]:
        """Return what a candidate changes, as `history` says what was changed before."""
        return self._ctx.identify(self._ops[key])

    @property
    def n_windows(self) -> int:
        """How many windows there are to meet."""
        return len(self._tokens)

    @property
    def n_units(self) -> int:
        """How many segments all windows hold."""
        return self.n_windows * len(self._counts)

    def _reached(self, key: str) -> int:
        """How many windows a candidate has met or is foreseen on."""
        return max(self.windows(key), sum(map(len, self._least[key])))

    def _foreseen(self, key: str) -> torch.Tensor:
        """Return what a candidate loses at least, from the first window on, `[windows, segments]`."""
        return torch.cat(self._least[key]) if self._least[key] else torch.empty(0, len(self._counts))

    def _scored(self, key: str, increase: float) -> float:
        return increase / self.saving(key) if math.isfinite(increase) else math.inf

    def _per_segment(self, key: str) -> torch.Tensor:
        return torch.cat(self._sums[key]) / self._counts

    def _total(self, key: str, windows: int | None = None) -> float:
        return float(torch.cat(self._sums[key])[:windows].sum())

    def _measure(self, keys: Sequence[str], foresee: Sequence[str], start: int, stop: int) -> None:
        journal = self._ctx.journal
        whats = dict.fromkeys(keys, "loss") | dict.fromkeys(foresee, "least")
        kept = {key: journal.lookup(what, self._where(key, start, stop)) for key, what in whats.items()}
        missing = [key for key, sums in kept.items() if sums is None]
        least = {number for number, key in enumerate(missing) if whats[key] == "least"}
        ahead = (stop - start) * sum(self._depth[key] for key in whats if start >= self._reached(key))

        def advance(units: int) -> None:
            nonlocal ahead
            units = min(units, ahead)  # what was foreseen has been counted
            ahead -= units
            self.advance(units)

        found = self._trials.measure([self._ops[k] for k in missing], self._tokens.ids[start:stop], advance, least)
        for number, sums in found if missing else ():
            kept[missing[number]] = sums.tolist()
            journal.keep(whats[missing[number]], self._where(missing[number], start, stop), kept[missing[number]])
        for key, sums in kept.items():
            (self._least if whats[key] == "least" else self._sums)[key].append(_sums(sums or []))
        self.advance(ahead)  # what was known already, or shared by several

    def _where(self, key: str, start: int, stop: int) -> list[Any]:
        return [self._state, self._marks[key], start, stop]


def _sums(rows: list[list[float]]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)
