"""What is zero in a saved model: written beside it, and told in the report. May import everything below `jobs`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sned.checkpoint.sparsity import census, write_census
from sned.errors import VerificationError
from sned.models.zeros import Zeros, count_zeros
from sned.score.quota import parse_n_of_m

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from sned.checkpoint.model import Model
    from sned.plans.plan import Plan, Stage


def census_of(folder: Path, plan: Plan, pruned: Model) -> dict[str, Any]:
    """Write `sned/sparsity.json` and return the report's block, if the plan set weights to zero.

    Raises:
        VerificationError: the files hold other zeros than the model.
    """
    stages = [stage for stage in plan.stages if "sparsity" in stage.scores]
    if not stages:
        return {}
    runs = parse_n_of_m(str(stages[-1].options.get("pattern", "")))
    found = census(folder, pruned.view, None if runs is None else runs[1])
    counted = list(count_zeros(pruned.view))
    if found["zeros"] != sum(row.zeros for row in counted):
        raise VerificationError(f"{folder} holds {found['zeros']} zeros in its layers, and the model has others")
    write_census(found, folder / "sned")
    return {"sparsity": _block(plan, stages[-1], counted, pruned.view.dtype.itemsize)}


def _block(plan: Plan, stage: Stage, counted: Sequence[Zeros], width: int) -> dict[str, Any]:
    """Return the block: what is zero in every matrix, and how that was decided.

    Args:
        plan: The plan.
        stage: The last stage that set weights to zero.
        counted: What is zero in the pruned model.
        width: Bytes of a weight.
    """
    rows = stage.scores["sparsity"]
    zeros, of = sum(row.zeros for row in counted), sum(row.of for row in counted)
    packed = sum(-(-row.of // 8) + (row.of - row.zeros) * width for row in counted)
    return {
        "zeros": zeros,
        "of": of,
        "ratio": zeros / of,
        "ratio_of_all": zeros / plan.pruned.params,
        "target": stage.options["sparsity"],
        "zero_before": sum(row["zero_before"] for row in rows),
        "diagonal": [row["matrix"] for row in rows if row["damping"] < 0],
        "matrices": _by_role(counted),
        "allocation": stage.scores.get("allocation"),
        "packed_ratio": packed / (of * width),
    }


def _by_role(counted: Sequence[Zeros]) -> list[dict[str, Any]]:
    """Return the zeros of every layer's q, k, v and so on; those of experts together."""
    found: dict[tuple[int, str], dict[str, Any]] = {}
    for row in counted:
        layer, role = row.matrix.layer, row.matrix.role
        total = found.setdefault((layer, role), {"layer": layer, "role": role, "zeros": 0, "of": 0})
        total["zeros"] += row.zeros
        total["of"] += row.of
    return list(found.values())
