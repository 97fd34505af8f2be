"""LaCo: merge layers into the one before them, as long as the final states stay like those of the whole model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from pydantic import Field

from sned.canon import format_span
from sned.errors import BudgetError, ConfigError, UnsupportedModelError
from sned.models.merging import MergeMode, merge_obstacle
from sned.plans.ops import Merge, Op
from sned.runtime.context import Context
from sned.runtime.depth import boundaries
from sned.runtime.likeness import Likeness
from sned.runtime.method import method
from sned.runtime.search import Search


@method(
    paper="arXiv:2402.11187",
    prunes="depth",
    title="LaCo: Large Language Model Pruning via Layer Collapse",
    calibration_tokens=4_096,
)
def laco(
    ctx: Context,
    *,
    layers: int,
    merge: Annotated[int, Field(ge=2), "layers that become one in each merge, the base layer among them"] = 3,
    mode: Annotated[
        MergeMode,
        "what the base layer gets: the last one's matrices, as the released code does; the sum of differences, as the "
        "paper says; the mean; or nothing",
    ] = "keep_last",
    threshold: Annotated[
        float | None,
        Field(gt=-1, lt=1),
        "walk down from the top as published, and merge wherever the similarity exceeds this; default: take the most "
        "similar merge of all, again and again",
    ] = None,
    stride: Annotated[int, Field(ge=1), "threshold: how many layers to step down after a merge"] = 1,
    sentences: Annotated[int, Field(ge=1), "windows of calibration text that are compared, at most"] = 4,
    min_start: Annotated[int, Field(ge=1), "first layer that may go; the one before it may be a base layer"] = 1,
    max_end: Annotated[int | None, "end (excluded) of the layers that may go; default: all but the last"] = None,
) -> Iterator[Op]:
    """Merge runs of layers into the layer before them, where the final states change least (algorithm 1).

    A base layer keeps its norms. Similarity is the cosine with the states of the whole model, after the final norm,
    all tokens of a window in one vector; it is averaged over windows.

    Departures: the budget ends it, and the last merge takes only as many layers as are left; without a threshold the
    most similar merge is taken instead of the first that will do, which can be a catastrophe (6 of SmolLM2-135M's 30
    layers: perplexity 37 instead of 4×10⁸ at 0.5, `merge` 7); windows are packed instead of short sentences; the last
    layer is protected; biases are merged too. `keep_last` is the default: the released code updates its base layer
    while it sums up, which comes to that, and so presumably do the published results. The paper's sum of differences
    is the same for `merge` 2, and leaves noise above that. The released notebooks have `merge` 7, `threshold` 0.45 and
    `stride` 1 for a Llama of 13B, and 3, 0.6 and 1 for Baichuan2-13B; others used 4, 0.65 and 2 for Llama-2-7B.
    """
    if threshold is None and stride != 1:
        raise ConfigError("--stride belongs to the walk from the top", hint="give --threshold too, or leave it out")
    collapse = _Collapse(ctx, layers, merge, mode, sentences, boundaries(ctx, min_start, max_end)[:-1])
    found = collapse.best_first() if threshold is None else collapse.from_the_top(threshold, stride)
    for op, similarity in found:
        row = {"into": op.into, "layers": format_span(op.layers), "similarity": similarity, "tried": collapse.tried}
        ctx.scores.setdefault("merges", []).append(row)
        collapse.left, collapse.tried = collapse.left - len(op.layers), 0
        yield op


class _Collapse:
    """Proposes merges of the layers that are still there, and measures them."""

    def __init__(
        self, ctx: Context, layers: int, size: int, mode: MergeMode, sentences: int, removable: list[int]
    ) -> None:
        self.view, self.size, self.removable = ctx.view, size, set(removable)
        self.mode: MergeMode = mode
        self.wanted = self.left = layers
        self.tried = 0
        """Merges measured since the last one that was made."""
        windows = min(sentences, len(ctx.calibration))
        self.search = Search(ctx, objective=Likeness(ctx, ctx.calibration.take(windows)), windows=windows)
        if not any(self._run(position, 1) for position in range(len(self.view.layers))):
            raise UnsupportedModelError(
                "no two neighbouring layers of this model are alike, so none can be merged.",
                hint="use a method that removes whole layers",
            )

    def best_first(self) -> Iterator[tuple[Merge, float]]:
        """Yield the most similar of all merges, and how similar it leaves the model; ties go to the deepest.

        Raises:
            BudgetError: nothing is left to merge.
            NumericalError: no merge leaves finite states.
        """
        while self.left:
            merges = self._all(min(self.size - 1, self.left))
            if not merges:
                raise self._out_of_reach("no other layers can be merged", "lower the budget")
            choice = self.search.best({str(op.into): [op] for op in merges})
            self.tried = choice.measured
            yield next(op for op in merges if str(op.into) == choice.key), 1 - choice.loss

    def from_the_top(self, threshold: float, stride: int) -> Iterator[tuple[Merge, float]]:
        """Yield the merges that a walk from the deepest base layer to the first makes, as published.

        Raises:
            BudgetError: it is through before enough layers are gone.
        """
        present = list(self.view.layers)
        first, last = (present.index(pick(self.removable)) for pick in (min, max))
        position, best = max(0, first - 1, last + 1 - self.size), -1.0
        while self.left:
            if position < max(0, first - 1):
                most = f"; the most is {best:.3f}" if best > -1 else ""
                found = f"further down no merge leaves a similarity above {threshold:g}{most}"
                raise self._out_of_reach(found, "lower --threshold, or leave it out to make the best merges")
            op = self._run(position, min(self.size - 1, self.left))
            similarity = self._similarity(op) if op else -1.0
            if op and similarity > threshold:
                yield op, similarity
                position, best = position - stride, -1.0
            else:
                position, best = position - 1, max(best, similarity)

    def _similarity(self, op: Merge) -> float:
        self.tried += 1
        return 1 - self.search.loss([op])

    def _all(self, most: int) -> list[Merge]:
        """Return the merges of so many layers at every base, deepest first; of fewer only where none is that long."""
        runs = [self._run(position, most) for position in reversed(range(len(self.view.layers)))]
        found = [op for op in runs if op]
        longest = max((len(op.layers) for op in found), default=0)
        return [op for op in found if len(op.layers) == longest]

    def _run(self, position: int, most: int) -> Merge | None:
        """Return the merge into the layer at a position of as many layers after it as can go, if any."""
        into, *after = list(self.view.layers)[position : position + most + 1]
        for n in range(len(after), 0, -1):
            if self.removable.issuperset(after[:n]) and merge_obstacle(self.view, into, after[:n]) is None:
                return Merge(into=into, layers=tuple(after[:n]), mode=self.mode)
        return None

    def _out_of_reach(self, why: str, hint: str) -> BudgetError:
        return BudgetError(f"{self.wanted - self.left} of {self.wanted} layers are merged away: {why}", hint=hint)
