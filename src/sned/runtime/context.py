"""All that a method sees of the world: statistics, losses, tensors, a budget, a seed.

Resuming lives here, not in methods: every pass and every loss is kept in the journal under all that it depends
on. May import `models`, `data`, `plan`, `score` and its neighbours.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from sned.errors import DataError
from sned.plans.ops import Op
from sned.plans.plan import tensor_digest
from sned.progress import SILENT, Progress
from sned.runtime import journal as journals
from sned.runtime.board import Board
from sned.runtime.crew import ALONE, Crew
from sned.runtime.journal import Journal
from sned.runtime.objective import ObjectiveName, objective_of
from sned.runtime.sweep import Cost, Site, Sweep
from sned.runtime.trials import Trials

if TYPE_CHECKING:
    from sned.data.tokens import Tokens
    from sned.models.view import View
    from sned.runtime.statistics import Statistic

R = TypeVar("R")
Candidate = Sequence[Op]
"""Ops to try on top of those already made."""


@dataclass
class Context:
    """What planning works with. The view shows the model with all ops applied that the method has yielded.

    Attributes:
        dense: The model as it was before the method began.
        scores: What explains the method's choice, kept in the plan beside its ops; JSON.
        generator: The only source of randomness; seeded by `seed`.
        free_memory: Bytes that may be used beside the model, as far as is known.
        crew: The processes that share what is trained.
    """

    view: View
    dense: View
    tokens: Tokens | None
    seed: int = 0
    journal: Journal = field(default_factory=Journal)
    progress: Progress = SILENT
    cost: Cost = field(default_factory=Cost)
    scores: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    ops: list[Op] = field(default_factory=list)
    free_memory: int | None = None
    crew: Crew = ALONE

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.seed)
        self._origin = [] if self.journal.folder is None else _cuts_so_far(self.dense)

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
        state = self.state(tokens)
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

    def losses(
        self,
        candidates: Sequence[Candidate],
        *,
        windows: int | None = None,
        objective: ObjectiveName = "perplexity",
        tokens: Tokens | None = None,
        label: str = "try candidates",
    ) -> list[float]:
        """Return the mean loss per predicted token, in nats, with each candidate's ops tried.

        All candidates run together and share what they have in common (see `trials`). One whose forward pass is
        not finite scores infinity, and the user is told.

        Args:
            candidates: Ops to try, each list on its own.
            windows: How many of the first calibration windows to try them on, if not all.
            objective: What a loss is.
            tokens: Other tokens to try them on.
            label: For the progress bar; empty if whoever asks, step after step, shows one of his own.
        """
        tokens = tokens or (self.calibration if windows is None else self.calibration.take(windows))
        sweep = Sweep(self.view, self.cost)
        trials = Trials(sweep, objective_of(objective, sweep, self.dense), self.tensors, self.progress.warn)
        board = Board(self, trials, objective, tokens, {str(i): c for i, c in enumerate(candidates)})
        with self.progress.task(label, board.work) if label else nullcontext(board.advance) as board.advance:
            board.extend(board.keys, board.n_windows)
        return [board.loss(key) for key in board.keys]

    def put(self, label: str, tensor: torch.Tensor) -> str:
        """Keep a tensor for the plan and return the reference by which ops name it.

        Of floating-point tensors those in a wider type than float32 are kept in float32. They lie in the files of the
        journal where there is one, so that a plan may be larger than memory.
        """
        dtype = torch.float32 if tensor.dtype == torch.float64 else tensor.dtype
        kept = tensor.detach().to("cpu", dtype).contiguous()
        reference = f"{label}.{tensor_digest(kept)[:12]}"
        self.tensors[reference] = self.journal.shelve(reference, kept)
        return reference

    def recover(self, references: Iterable[str]) -> bool:
        """Take up tensors again that an interrupted run has put, and tell whether all of them are there."""
        for reference in references:
            if reference not in self.tensors:
                if (kept := self.journal.fetch(reference)) is None:
                    return False
                self.tensors[reference] = kept
        return True

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

    def state(self, tokens: Tokens | None) -> list[Any]:
        """Return what every measurement depends on besides what is measured; without tokens, what looks at none."""
        base = [asdict(self.view.fingerprint), *self._origin, str(self.view.dtype)]
        return [*base, None if tokens is None else tokens.digest, self.identify(self.ops)]

    def identify(self, ops: Candidate) -> list[Any]:
        """Return ops as JSON; tensors are named by their content."""
        return [op.model_dump(mode="json") for op in ops]


def _cuts_so_far(view: View) -> list[Any]:
    """Return what tells a view from others that were cut from the same base; nothing for the base itself."""
    parts = [[i, view.is_replaced(i), view.has_branch(i, "attn"), view.has_branch(i, "mlp")] for i in view.layers]
    trimmed = {name: list(units) for name, units in view.alive.items() if len(units) < view.axis(name).size}
    changed = {str(i): _contents(view, i) for i in view.layers if i in view.changed}
    if parts == [[i, False, True, True] for i in range(view.geometry.n_layers)] and not changed:
        return []
    return [parts, trimmed, changed]


def _contents(view: View, layer: int) -> list[str]:
    with view.materialised(layer) as block:
        return [tensor_digest(param) for param in block.parameters()]


def _all_sums(statistics: Sequence[Statistic[Any]]) -> dict[str, torch.Tensor]:
    return {f"{i}.{name}": t for i, s in enumerate(statistics) for name, t in s.sums.items()}


def _load_sums(statistics: Sequence[Statistic[Any]], kept: dict[str, torch.Tensor]) -> None:
    for i, statistic in enumerate(statistics):
        statistic.sums = {name: kept[f"{i}.{name}"] for name in statistic.sums}
