"""A race between candidates, step after step: measure little, and remember what was measured.

What a candidate cost in an earlier step says most of what it costs now. Only the change has to be measured, and that
varies so little from text to text that a few windows tell it. May import `score` and its neighbours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sned.runtime.board import BASE
from sned.score.racing import Estimate, Fall, carry_over, most_fallen, still_racing

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    import torch

    from sned.runtime.board import Board


@dataclass(slots=True)
class _Record:
    """What is remembered of a candidate.

    Attributes:
        costs: What it cost on each unit, in the step in which it was last measured on so many, `[units]`.
        mean: What it cost in the mean, at best estimate, in the step in which it was last measured at all.
        seen: That step.
    """

    costs: torch.Tensor
    mean: float
    seen: int


class Race:
    """Finds the best candidate of a step by dropping, heat after heat, those that cannot win."""

    def __init__(self, confidence: float, heat: int, tell: Callable[[str, float, int], None]) -> None:
        """Race at a confidence, in heats of `heat` windows and more.

        `tell` hears who leads, by how much that raises the loss, and how many are left.
        """
        self._confidence, self._first, self._tell = confidence, heat, tell
        self._records: dict[str, _Record] = {}
        self._falls: list[Fall] = []
        self._step = 0
        self._after: tuple[list[Any], list[torch.Tensor]] = [], []

    def run(self, board: Board) -> tuple[str, float]:
        """Return the winner and by how much it raises the loss, at best estimate."""
        self._step += 1
        if board.history == self._after[0]:
            board.start(BASE, self._after[1])
        live = board.keys
        self._measure(board, self._starters(board, live))
        while True:
            found = {k: e for k in live if (e := self._estimate(board, k)) is not None}
            alive = still_racing(list(found.values()), self._confidence, board.n_units)
            live = [k for k, stays in zip(found, alive, strict=True) if stays]
            leader = min(live, key=lambda k: found[k].mean)
            increase = found[leader].mean * board.saving(leader)
            self._tell(leader, increase, len(live))
            if not (heat := self._least_known(board, {k: found[k] for k in live})):
                break
            self._measure(board, heat)
        self._remember(board)
        board.keep_only(live)
        self._after = [*board.history, *board.identity(leader)], board.sums(leader)
        return leader, increase

    def _starters(self, board: Board, keys: Sequence[str]) -> list[str]:
        """Return those of whom nothing is known or else, if all are known, those that might win by what is known."""
        if new := [k for k in keys if k not in self._records]:
            return new
        known = [e for k in keys if (e := self._estimate(board, k)) is not None]
        alive = still_racing(known, self._confidence, board.n_units)
        return [k for k, stays in zip(keys, alive, strict=True) if stays]

    def _least_known(self, board: Board, found: dict[str, Estimate]) -> list[str]:
        """Return those to measure further, if any: those in doubt, while the others wait until that is settled.

        Those of whom nothing is carried over stay together, for two of them compare only where both were measured.
        """
        open_ = {k: e for k, e in found.items() if board.windows(k) < board.n_windows}
        if len(found) == 1:
            return [k for k, e in open_.items() if not e.measured]
        doubts = {k: e.doubt(self._confidence, board.n_units) for k, e in open_.items()}
        return [k for k, e in open_.items() if doubts[k] >= max(doubts.values()) / 2 or e.measured == len(e.values)]

    def _measure(self, board: Board, keys: Sequence[str]) -> None:
        """Let each meet as many windows again as it has met, and the base as many."""
        for met in sorted({board.windows(k) for k in keys}):
            stop = min(board.n_windows, max(self._first, 2 * met))
            board.extend([BASE, *(k for k in keys if board.windows(k) == met)], stop)

    def _estimate(self, board: Board, key: str) -> Estimate | None:
        """Return what is known of a candidate's score by now; None if it was never measured."""
        saving, record = board.saving(key), self._records.get(key)
        now = board.costs(key) if board.windows(key) else None
        if record is None:
            return None if now is None else Estimate(now / saving, len(now))
        if now is not None:
            return carry_over(record.costs / saving, now / saving)
        fall = most_fallen(record.mean, self._step - record.seen, self._falls, self._confidence)
        shift = record.mean - float(record.costs.mean())
        return Estimate((record.costs + shift) / saving, 0, fall=fall / saving)

    def _remember(self, board: Board) -> None:
        """Keep what candidates cost where they were measured, and how fast that fell since they were seen."""
        for key in board.keys:
            if not board.windows(key):
                continue
            costs, record = board.costs(key), self._records.get(key)
            estimate = carry_over(record.costs, costs) if record else Estimate(costs, len(costs))
            if not math.isfinite(estimate.mean):
                continue
            if record is not None:
                self._falls.append(Fall(record.mean, (record.mean - estimate.mean) / (self._step - record.seen)))
            kept = record.costs if record and len(record.costs) > len(costs) else costs
            self._records[key] = _Record(kept, estimate.mean, self._step)
