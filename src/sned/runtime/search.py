"""Finding the candidate that costs least: the plain way, the exact way, or by racing.

Every search method goes through here. Losses are paired: all candidates meet the same windows in the same order,
and what was measured is kept in the journal, so that a killed search goes on where it was. May import `score` and
its neighbours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from sned.errors import NumericalError
from sned.runtime.board import BASE, Board
from sned.runtime.objective import ObjectiveName, objective_of
from sned.runtime.race import Race
from sned.runtime.sweep import Sweep, windows_together
from sned.runtime.trials import Trials

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sned.plans.ops import Op
    from sned.runtime.context import Context
    from sned.runtime.likeness import Likeness

SearchMode = Annotated[
    Literal["exact", "racing", "exhaustive"],
    "exact: same choice as exhaustive, less work; racing: drop candidates that can't win at --confidence",
]
ObjectiveOption = Annotated[ObjectiveName, "what is kept low: perplexity, or KL divergence from the dense model"]
SURE = 1.5
"""How many times what bounds fall short by a candidate is behind if it is to be given up by its bound."""
Confidence = Annotated[float, Field(gt=0.5, lt=1), "racing: certainty with which a candidate is dropped"]


@dataclass(frozen=True, slots=True)
class Choice:
    """The winner of one step, and what it was judged on.

    Attributes:
        key: The winner.
        loss: Its mean loss per token.
        increase: By how much the change raises the loss: on the same tokens or, in a race, at best estimate on all.
        tokens: Predicted tokens that both were measured on.
        measured: Candidates measured at all in this step.
    """

    key: str
    loss: float
    increase: float
    tokens: int
    measured: int


class Search:
    """Chooses the best of many candidates, step after step, each time from the model as it is then."""

    def __init__(
        self,
        ctx: Context,
        mode: Literal["exact", "racing", "exhaustive"] = "exact",
        objective: ObjectiveName | Likeness = "perplexity",
        confidence: float = 0.999,
        windows: int | None = None,
    ) -> None:
        """Search by an objective, on the calibration tokens or their first windows."""
        self._ctx, self._mode = ctx, mode
        self._tokens = ctx.calibration if windows is None else ctx.calibration.take(windows)
        sweep = Sweep(ctx.view, ctx.cost)
        judge = objective_of(objective, sweep, ctx.dense) if isinstance(objective, str) else objective
        self._trials = Trials(sweep, judge, ctx.tensors, ctx.progress.warn)
        self._objective: str = judge.name
        self._unit = " nats a token" if isinstance(objective, str) else ""
        self._race = Race(confidence, windows_together(self._tokens.length), self._tell)

    def best(self, candidates: Mapping[str, Sequence[Op]], savings: Mapping[str, float] | None = None) -> Choice:
        """Return the candidate with the least loss or, with savings, the least increase in loss per thing saved.

        Ties go to the first. A candidate whose loss is not finite is dropped, and the user is told.

        Raises:
            NumericalError: no candidate has a finite loss.
        """
        board = Board(self._ctx, self._trials, self._objective, self._tokens, candidates, savings)
        with self._ctx.progress.task("try candidates", board.work) as board.advance:
            match self._mode:
                case "exhaustive":
                    board.measure_plainly()
                case "exact":
                    self._exact(board, len(self._tokens))
                case "racing":
                    return self._choice(board, *self._race.run(board))
        winner = min(board.keys, key=board.score)
        return self._choice(board, winner, board.increase(winner))

    def loss(self, ops: Sequence[Op]) -> float:
        """Return the mean loss per token with some ops tried; infinity where it is not finite, and the user is told."""
        board = Board(self._ctx, self._trials, self._objective, self._tokens, {"alone": ops})
        with self._ctx.progress.task("try a candidate", board.work) as board.advance:
            board.extend(board.keys, board.n_windows)
        return board.loss("alone")

    def _exact(self, board: Board, windows: int) -> None:
        """Measure all candidates, giving up those whose least possible loss exceeds the whole loss of one that is done.

        Who is clearly dearer on the first windows is sure to be given up by what it loses at least, which costs less
        to find; if it is not, it is measured like the others.
        """
        heat = min(windows, windows_together(self._tokens.length))
        keys, foresees = board.keys, board.foresees and windows > heat
        board.extend([BASE, *keys], heat)
        favourite = min(keys, key=board.score)
        lead = {k: board.increase(k) - board.score(favourite) * board.saving(k) for k in keys}
        if foresees:
            board.extend([], min(2 * heat, windows), [favourite])
        for stop in range(2 * heat, windows + heat, heat):
            board.extend([BASE, favourite], min(stop, windows))
        behind = [k for k in keys if foresees and lead[k] > SURE * board.slack(favourite)]
        others = [k for k in keys if k != favourite and k not in behind]
        if left := self._narrow(board, others, behind, favourite):
            self._narrow(board, left, [], favourite)
        board.keep_only([k for k in keys if board.windows(k) == windows])

    def _narrow(self, board: Board, keys: list[str], behind: list[str], favourite: str) -> list[str]:
        """Measure heat after heat whoever may still be better than the favourite; return who of those behind may be."""
        heat, windows = windows_together(self._tokens.length), board.n_windows

        def alive(keys: list[str]) -> list[str]:
            return [k for k in keys if board.least_score(k) <= board.score(favourite)]

        for stop in range(2 * heat, windows + heat, heat):
            keys, behind = alive(keys), alive(behind)
            self._tell(favourite, board.increase(favourite), len(keys) + len(behind) + 1)
            board.extend(keys, min(stop, windows), behind)
        return alive(behind)

    def _tell(self, leader: str, increase: float, n_live: int) -> None:
        note = f"best so far: {leader}, {increase:+.4f}{self._unit}, {n_live} in the running"
        self._ctx.progress.note(note)

    def _choice(self, board: Board, winner: str, increase: float) -> Choice:
        if not math.isfinite(board.loss(BASE)):
            raise NumericalError(f"the model itself gives no finite loss: {board.reason}", hint="try --dtype fp32")
        if not math.isfinite(board.score(winner)):
            raise NumericalError(f"no candidate gives a finite loss: {board.reason}", hint="try --dtype fp32")
        return Choice(winner, board.loss(winner), increase, board.tokens(winner), board.measured)
