"""What a result is held against: simpler methods, and chance at the same shape. May import everything below `jobs`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from sned.errors import BudgetError, NumericalError, PlanError
from sned.evaluation.quality import measure_quality
from sned.jobs import compose
from sned.jobs.plan import run_method
from sned.jobs.session import Session, read_text
from sned.models.count import count
from sned.plans.budget import Budget
from sned.plans.ops import DropSublayer, Keep
from sned.plans.twin import random_twin
from sned.runtime.method import find_method
from sned.score.quota import parse_n_of_m

if TYPE_CHECKING:
    from sned.checkpoint.model import Model
    from sned.data.tokens import Tokens
    from sned.jobs.request import PruneRequest
    from sned.models.view import View
    from sned.plans.plan import Plan
    from sned.runtime.journal import Journal
    from sned.runtime.method import Method

TWIN = "random (same shape)"


class Comparisons:
    """Plans and evaluates what stands beside one result; each row is kept in the journal."""

    def __init__(
        self, request: PruneRequest, plan: Plan, dense: Model, evaluation: Tokens, journal: Journal, session: Session
    ) -> None:
        self._request, self._plan, self._dense = request, plan, dense
        self._evaluation, self._journal, self._session = evaluation, journal, session

    def rows(self, calibration: Tokens | None) -> list[dict[str, Any]]:
        """Return a row for each method asked for, and where parts of layers went, one for a random choice of them.

        What cannot be compared is left out, and the user is told why.
        """
        rows = [self._try(name, lambda n=name: self._method(n, calibration)) for name in self._request.baselines]
        if any(isinstance(op, DropSublayer | Keep) for op in self._plan.ops):
            rows.append(self._try(TWIN, self._twin))
        return [row for row in rows if row is not None]

    def _try(self, name: str, make: Any) -> dict[str, Any] | None:
        try:
            return make()
        except (BudgetError, NumericalError, PlanError) as error:
            self._session.progress.warn(f"no comparison with {name}: {error.args[0]}")
            return None

    def _method(self, name: str, calibration: Tokens | None) -> dict[str, Any]:
        request, method = self._request, find_method(name)
        given = self._shared_options(method)
        if calibration is None and method.reads_text(method.parse(given)):
            calibration = read_text(self._dense, request.calibration, method.calibration_tokens, seed=request.seed)
        plain, note = replace(request, options=given), ""
        if request.budget.kind not in method.budgets:
            share = self._share(self._plan.pruned.params)
            if request.budget.sparsity is not None or "sparsity" in method.budgets:
                raise PlanError("zeros among the weights and parameters removed are not the same budget")
            plain, note = replace(plain, budget=same_size(self._plan)), f"asked to remove {share:.1%}"
        view = self._dense.view.fork()
        beside = Session(self._session.progress)
        plan = run_method(plain, method, view, calibration, self._journal, beside, source=self._dense.source)
        return self._row(name, view, compose.removed_layers(plan), note, plan.digest)

    def _shared_options(self, method: Method) -> dict[str, Any]:
        """Return the options that must be as in the result for the two to be comparable: an n:m pattern."""
        pattern = str(self._request.options.get("pattern", ""))
        return {"pattern": pattern} if parse_n_of_m(pattern) and "sparsity" in method.budgets else {}

    def _twin(self) -> dict[str, Any]:
        view = self._dense.view.fork()
        ops = random_twin(self._plan.ops, view.geometry, torch.Generator().manual_seed(self._request.seed))
        for op in ops:
            op.apply(view, {})
        identity = [op.model_dump(mode="json") for op in ops]
        return self._row(TWIN, view, "", "as much of everything, drawn by chance", identity)

    def _row(self, name: str, view: View, layers: str, note: str, identity: Any) -> dict[str, Any]:
        nll = self._journal.recall(
            "baseline",
            [identity, self._evaluation.digest, str(view.dtype)],
            lambda: measure_quality(view, self._evaluation, progress=self._session.progress).nll,
        )
        if (perplexity := compose.perplexity(nll)) is None:
            raise NumericalError(f"its perplexity is beyond all bounds (loss {nll:.3g})")
        removed = self._share(count(view).params)
        return {"method": name, "perplexity": perplexity, "layers": layers, "removed": removed, "note": note}

    def _share(self, left: int) -> float:
        return 1 - left / self._plan.dense.params


def same_size(plan: Plan) -> Budget:
    """Return what removes at least as many parameters as a plan does; half a one less, for the rounding of a share."""
    return Budget(remove=(plan.dense.params - plan.pruned.params - 0.5) / plan.dense.params)
