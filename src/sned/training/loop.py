"""The training loop: AdamW over windows of text, the best weights by held-out loss, resumable to the same bits.

May import `runtime` and its neighbours.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from sned.runtime import journal as journals
from sned.runtime.crew import ALONE
from sned.runtime.sweep import windows_together
from sned.training.optimiser import Optimiser
from sned.training.options import held_out_part

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sned.data.tokens import Tokens
    from sned.progress import Progress
    from sned.runtime.context import Context
    from sned.runtime.crew import Crew
    from sned.runtime.journal import Journal
    from sned.training.schedule import Schedule
    from sned.training.tasks import Task

DIVERGED = 2.0
"""Training stops once the held-out loss is so many times what it was at first."""
_ENDS = ("", "done", "no better", "diverged")


@dataclass(frozen=True, slots=True)
class Fit:
    """How training went; the masters have the best weights afterwards.

    Attributes:
        curve: Rows of step, tokens seen, mean loss of the steps since the last row (NaN for the first) and held-out
            loss.
        best: The step with the lowest held-out loss.
        ended: Why training ended: `done`, `no better` or `diverged`.
    """

    curve: list[list[float]]
    best: int
    ended: str

    @property
    def held_out(self) -> tuple[float, float]:
        """Held-out loss before training, and of the best weights."""
        return self.curve[0][3], min(row[3] for row in self.curve)

    def as_scores(self) -> dict[str, Any]:
        """Return what a plan or report keeps: numbers that JSON has."""
        rows = [[None if math.isnan(value) or math.isinf(value) else value for value in row] for row in self.curve]
        return {"curve": rows, "best_step": self.best, "ended": self.ended}


def train(ctx: Context, task: Task, loss: str, schedule: Schedule, key: list[Any]) -> Fit:
    """Train on the calibration tokens, some of them held out; `ctx.scores["training"]` keeps how it went.

    Args:
        ctx: The context.
        task: What is trained.
        loss: The name of what the task makes small.
        schedule: How long and how fast.
        key: Tells this training from others.

    Raises:
        DataError: there is too little text.
    """
    tokens, held_out = held_out_part(ctx.calibration)
    found = fit_within(ctx, task, tokens, held_out, schedule, key)
    ctx.scores["training"] = {"loss": loss, "tokens": tokens.n_tokens} | found.as_scores()
    return found


def fit_within(ctx: Context, task: Task, tokens: Tokens, held_out: Tokens, schedule: Schedule, key: list[Any]) -> Fit:
    """Call `fit` with the journal, the progress, the seed and the processes of a context."""
    return fit(
        task,
        tokens,
        held_out,
        schedule,
        journal=ctx.journal,
        key=key,
        progress=ctx.progress,
        seed=ctx.seed,
        crew=ctx.crew,
    )


def fit(
    task: Task,
    tokens: Tokens,
    held_out: Tokens,
    schedule: Schedule,
    *,
    journal: Journal,
    key: list[Any],
    progress: Progress,
    seed: int = 0,
    crew: Crew = ALONE,
) -> Fit:
    """Train the masters of a task, and leave the best weights in them.

    A run that was interrupted goes on from where it last saved, to the same bits; one that is done is not repeated.

    Args:
        task: What is trained, and on what loss.
        tokens: To train on.
        held_out: To judge by; none of them among `tokens`.
        schedule: How long and how fast.
        journal: Keeps what a resumed run needs.
        key: Tells this training from others.
        progress: Told of every window, and of the losses.
        seed: Of the order of windows.
        crew: The processes that share the batches of every step; only the journal of the leading one counts.
    """
    whole = [*key, tokens.digest, held_out.digest, asdict(schedule), seed]
    run = _Run(task, tokens, held_out, schedule, seed, progress, crew)

    def found(what: str) -> bool:
        kept = journal.load_tensors(what, whole)
        if there := crew.heed(kept is not None):
            run.load(kept or {})
        return there

    if found("trained"):
        run.optimiser.adopt_best()
        return run.result()
    found("training")
    saver = journals.Pacer()
    with progress.task("train", len(tokens) * schedule.epochs) as advance:
        advance(min(run.step * schedule.batch, len(tokens) * schedule.epochs))
        for n_windows in run.go():
            advance(n_windows)
            if crew.heed(saver.due()):
                journal.save_tensors("training", whole, run.state(), partial=True)
    journal.save_tensors("trained", whole, run.state())
    journal.forget("training", whole)
    run.optimiser.adopt_best()
    if run.ended == "diverged":
        progress.warn(f"training diverged at step {run.step}; the weights are those of step {run.best_step}, the best")
    return run.result()


class _Run:
    """One training, step by step."""

    def __init__(
        self,
        task: Task,
        tokens: Tokens,
        held_out: Tokens,
        schedule: Schedule,
        seed: int,
        progress: Progress,
        crew: Crew,
    ) -> None:
        self.task, self.tokens, self.held_out, self.schedule = task, tokens, held_out, schedule
        self.seed, self.progress, self.crew = seed, progress, crew
        self.optimiser = Optimiser(task.parameters, schedule, crew)
        self.step, self.best_step, self.ended = 0, 0, ""
        self.curve: list[list[float]] = []
        self.since: list[float] = []

    def go(self) -> Iterator[int]:
        """Train to the end, yielding the windows of every step once it is whole."""
        n_steps = self.schedule.steps(len(self.tokens))
        if not self.curve:
            self._evaluate()
        while self.step < n_steps and not self.ended:
            windows = self.schedule.windows(self.step, len(self.tokens), self.seed)
            loss = self._descend(self.tokens.ids[windows], self.schedule.rate(self.step, n_steps))
            self.step += 1
            self.since.append(loss)
            if not math.isfinite(loss):
                self.ended = "diverged"
            elif self.schedule.evaluates(self.step, n_steps):
                self._evaluate()
            yield len(windows)
        self.ended = self.ended or "done"

    def _descend(self, ids: torch.Tensor, rate: float) -> float:
        """Take one step of the optimiser and return the loss before it; none is taken if that is not finite."""
        self.optimiser.forget_gradients()
        found, own = torch.zeros((), dtype=torch.float64), self.crew.share(_batches(ids))
        judged = self.task.losses([batch for batch, _ in own], self.step)
        for (batch, counts), loss in zip(own, judged, strict=True):
            share = loss * (counts * len(batch) / len(ids))
            share.backward()
            found += float(share.detach())
        self.crew.add_up([found])
        total = float(found)
        return total if math.isfinite(total) and self.optimiser.step(rate) else math.nan

    @torch.no_grad()
    def _evaluate(self) -> None:
        """Measure the held-out loss, keep the weights if they are the best so far, and see whether to go on."""
        found, own = torch.zeros((), dtype=torch.float64), self.crew.share(_batches(self.held_out.ids))
        judged = self.task.losses([batch for batch, _ in own], None)
        for (batch, counts), loss in zip(own, judged, strict=True):
            found += float(loss) * counts * len(batch)
        self.crew.add_up([found])
        held_out = float(found) / len(self.held_out)
        trained = sum(self.since) / len(self.since) if self.since else math.nan
        seen = min(self.step * self.schedule.batch, len(self.tokens) * self.schedule.epochs) * self.tokens.length
        if held_out < min((row[3] for row in self.curve), default=math.inf):
            self.optimiser.keep_best()
            self.best_step = self.step
        self.curve.append([float(self.step), float(seen), trained, held_out])
        self.since = []
        self.progress.note(f"held-out loss {held_out:.4f}, at first {self.curve[0][3]:.4f}")
        worse = [row for row in self.curve if row[0] > self.best_step]
        if not held_out <= DIVERGED * self.curve[0][3]:
            self.ended = "diverged"
        elif len(worse) >= self.schedule.patience:
            self.ended = "no better"

    def result(self) -> Fit:
        """Return how it went."""
        return Fit(self.curve, self.best_step, self.ended)

    def state(self) -> dict[str, torch.Tensor]:
        """Return all that going on needs, where this process leads."""
        made = self.optimiser.state()
        facts = [self.step, self.best_step, _ENDS.index(self.ended)]
        made |= {"facts": torch.tensor(facts), "curve": torch.tensor(self.curve, dtype=torch.float64)}
        return made | {"since": torch.tensor(self.since, dtype=torch.float64)}

    def load(self, kept: dict[str, torch.Tensor]) -> None:
        """Take up what `state` returned where this process leads."""
        told = [kept[name].tolist() for name in ("facts", "curve", "since")] if self.crew.leads else []
        facts, self.curve, self.since = self.crew.heed(told)
        self.step, self.best_step, ended = facts
        self.ended = _ENDS[ended]
        self.optimiser.load(kept, self.step)


def _batches(ids: torch.Tensor) -> list[torch.Tensor]:
    """Cut windows into what runs together through a layer."""
    return list(ids.split(windows_together(ids.shape[1])))
