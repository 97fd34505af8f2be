"""All that a method sees of the world: statistics, losses, tensors, a budget, a seed.

Resuming lives here, not in methods: every pass and every loss is kept in the journal under all that it depends
on. May import `models`, `data`, `plan`, `score` and its neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from sned.errors import DataError, NumericalError
from sned.plans.ops import Op
from sned.plans.plan import tensor_digest
from sned.progress import SILENT, Progress
from sned.runtime import journal as journals
from sned.runtime.journal import Journal
from sned.runtime.objective import window_nll
from sned.runtime.sweep import Cost, Site, Sweep

if TYPE_CHECKING:
    from sned.data.tokens import Tokens
    from sned.models.view import View
    from sned.plans.budget import Budget
    from sned.runtime.statistics import Statistic

R = TypeVar("R")
Candidate = Sequence[Op]
"""Ops to try on top of those already made."""


@dataclass
class Context:
    """What planning works with. The view shows the model with all ops applied that the method has yielded.

    Attributes:
        scores: What explains the method's choice, kept in the plan beside its ops; JSON.
        generator: The only source of randomness; seeded by `seed`.
    """

    view: View
    tokens: Tokens | None
    budget: Budget
    seed: int = 0
    journal: Journal = field(default_factory=Journal)
    progress: Progress = SILENT
    cost: Cost = field(default_factory=Cost)
    scores: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    ops: list[Op] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.seed)

    @property
    def calibration(self) -> Tokens:
        """The calibration tokens.

        Raises:
            DataError: the run has none.
        """
        if self.tokens is None:
            raise DataError("this method needs calibration text", hint="give --calib SOURCE")
        return self.tokens

    def collect(self, *statistics: Statistic[Any], windows: int | None = None, label: str = "calibrate") -> list[Any]:
        """Return the results of all statistics over the calibration tokens, or over their first windows.

        One pass serves all those that are not in the journal yet, whichever method asked for them.
        """
        tokens = self.calibration if windows is None else self.calibration.take(windows)
        state = self._state(tokens)
        missing: list[Statistic[Any]] = []
        for statistic in statistics:
            kept = self.journal.load_tensors("statistic", [*state, statistic.key])
            if kept is None:
                missing.append(statistic)
            else:
                statistic.sums = kept
        if missing:
            key = [*state, [s.key for s in missing]]
            self._accumulate(missing, tokens, key, label)
            for statistic in missing:
                self.journal.save_tensors("statistic", [*state, statistic.key], statistic.sums)
            self.journal.forget("pass", key)
        return [s.result() for s in statistics]

    def stream(self, *sites: Site, label: str = "collect states") -> Iterator[tuple[torch.Tensor, ...]]:
        """Yield the activations `[batch, tokens, hidden]` at some sites, batch by batch."""
        sweep, tokens = Sweep(self.view, self.cost), self.calibration
        with self.progress.task(label, tokens.n_tokens) as advance:
            for chunk in sweep.chunks(tokens.ids):
                for _, activations in sweep.activations(chunk, [sites]):
                    yield activations
                    advance(activations[0].shape[0] * activations[0].shape[1])

    def losses(self, candidates: Sequence[Candidate], *, windows: int | None = None) -> list[float]:
        """Return the mean negative log-likelihood per predicted token, in nats, with each candidate's ops tried.

        A candidate whose forward pass is not finite scores infinity.
        """
        tokens = self.calibration if windows is None else self.calibration.take(windows)
        out: list[float] = []
        with self.progress.task("try candidates", len(candidates) * tokens.n_tokens) as advance:
            for candidate in candidates:
                key = [*self._state(tokens), self._identify(candidate)]
                out.append(self.journal.recall("loss", key, lambda c=candidate: self._loss(c, tokens)))
                advance(tokens.n_tokens)
        return out

    def put(self, label: str, tensor: torch.Tensor) -> str:
        """Keep a tensor for the plan, in float32, and return the reference by which ops name it."""
        kept = tensor.detach().to("cpu", torch.float32).contiguous()
        reference = f"{label}.{tensor_digest(kept)[:12]}"
        self.tensors[reference] = kept
        return reference

    def _accumulate(self, statistics: Sequence[Statistic[Any]], tokens: Tokens, key: list[Any], label: str) -> None:
        """Update statistics over all tokens, going on from where an interrupted pass was saved."""
        sweep, groups, first = Sweep(self.view, self.cost), [s.sites for s in statistics], 0
        if (partial := self.journal.load_tensors("pass", key)) is not None:
            first = int(partial.pop("chunks"))
            _load_sums(statistics, partial)
        saver = journals.Pacer()
        with self.progress.task(label, tokens.n_tokens) as advance:
            for number, chunk in enumerate(sweep.chunks(tokens.ids)):
                if number >= first:
                    for index, activations in sweep.activations(chunk, groups):
                        statistics[index].update(*activations)
                        del activations  # or a whole batch would live on through the next chunk
                    if saver.due():
                        sums = _all_sums(statistics) | {"chunks": torch.tensor(number + 1)}
                        self.journal.save_tensors("pass", key, sums, partial=True)
                advance(sum(ids.numel() for ids in chunk))

    def _loss(self, candidate: Candidate, tokens: Tokens) -> float:
        sweep, total, count = Sweep(self.view, self.cost), 0.0, 0
        with ExitStack() as stack:
            for op in candidate:
                stack.enter_context(op.trial(self.view, self.tensors))
            try:
                for chunk in sweep.chunks(tokens.ids):
                    for ids, hidden in sweep.final(chunk):
                        nll = window_nll(sweep, ids, hidden)
                        total, count = total + float(nll.sum(dtype=torch.float64)), count + nll.numel()
            except NumericalError as error:
                self.progress.warn(f"a candidate was dropped: {error.args[0]}")
                return float("inf")
        return total / count

    def _state(self, tokens: Tokens) -> list[Any]:
        """Return what every measurement depends on besides what is measured."""
        return [asdict(self.view.fingerprint), str(self.view.dtype), tokens.digest, self._identify(self.ops)]

    def _identify(self, ops: Candidate) -> list[Any]:
        return [op.model_dump(mode="json") for op in ops]


def _all_sums(statistics: Sequence[Statistic[Any]]) -> dict[str, torch.Tensor]:
    return {f"{i}.{name}": t for i, s in enumerate(statistics) for name, t in s.sums.items()}


def _load_sums(statistics: Sequence[Statistic[Any]], kept: dict[str, torch.Tensor]) -> None:
    for i, statistic in enumerate(statistics):
        statistic.sums = {name: kept[f"{i}.{name}"] for name in statistic.sums}
