"""The blocks of a report that tell what single stages of a plan found. May import everything below `jobs`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sned.plans.plan import Plan, Stage


def of_stages(plan: Plan) -> dict[str, Any]:
    """Return the blocks that tell of the work of single stages: searches, values, merges, repairs, training."""
    blocks: dict[str, Any] = {}
    if searched := [stage for stage in plan.stages if "trace" in stage.scores or "ranking" in stage.scores]:
        blocks["search"] = _search(searched[-1])
    if evolved := [stage for stage in plan.stages if "evolved" in stage.scores]:
        blocks["evolution"] = _evolution(evolved[-1])
    if learned := [stage for stage in plan.stages if "learning" in stage.scores]:
        blocks["policy"] = _policy(learned[-1])
    if shaped := [stage for stage in plan.stages if "structure" in stage.scores]:
        blocks["structure"] = _structure(shaped[-1])
    if valued := [stage for stage in plan.stages if "values" in stage.scores]:
        blocks["worth"] = _worth(valued[-1])
    if maps := [row for stage in plan.stages for row in stage.scores.get("stand_ins", [])]:
        blocks["stand_ins"] = maps
    if merges := [row for stage in plan.stages for row in stage.scores.get("merges", [])]:
        blocks["merges"] = merges
    if refits := [row for stage in plan.stages for row in stage.scores.get("repair", [])]:
        names = ("layer", "which", "ridge", "left")
        blocks["repair"] = [{name: row[name] for name in names} for row in refits]
    if trained := [stage for stage in plan.stages if "training" in stage.scores]:
        blocks["training"] = [_training(stage) for stage in trained]
    return blocks


def _search(stage: Stage) -> dict[str, Any]:
    """Return the steps of a greedy search, or the one ranking that it went by."""
    names = ("cut", "loss", "increase", "tokens", "measured", "candidates", "params")
    return {
        "objective": stage.options.get("objective", "perplexity"),
        "mode": stage.options.get("search", "exact"),
        "steps": [{name: row[name] for name in names} for row in stage.scores.get("trace", [])],
        "ranking": stage.scores.get("ranking"),
    }


def _evolution(stage: Stage) -> dict[str, Any]:
    """Return what an evolution of widths had to choose from, and its choice."""
    evolved = stage.scores["evolved"]
    return {
        "objective": stage.options.get("objective", "perplexity"),
        "judged": evolved["judged"],
        "chosen": {name: evolved[name] for name in ("loss", "params")},
        "front": stage.scores["front"],
    }


def _policy(stage: Stage) -> dict[str, Any]:
    """Return how the chances of parts were learned."""
    rows = [{name: row[name] for name in ("step", "loss")} for row in stage.scores["learning"]]
    found = {name: stage.options[name] for name in ("objective", "masks")}
    return found | {"parts": len(stage.scores["chances"]), "steps": rows}


def _worth(stage: Stage) -> dict[str, Any]:
    """Return what every unit that might go was worth."""
    objective = stage.options.get("objective", "perplexity")
    return {"objective": objective, **stage.scores["valuation"], "units": stage.scores["values"]}


def _structure(stage: Stage) -> dict[str, Any]:
    """Return how gates were learned, and what they kept."""
    found = stage.scores["structure"]
    return _curve(stage, found) | {name: found[name] for name in ("aimed", "learned", "kept")}


def _training(stage: Stage) -> dict[str, Any]:
    """Return how the training of a stage went."""
    found = stage.scores["training"]
    return _curve(stage, found) | {"loss": found["loss"]}


def _curve(stage: Stage, found: dict[str, Any]) -> dict[str, Any]:
    rows = [
        {"step": int(step), "tokens": int(tokens), "loss": loss, "held_out": held_out}
        for step, tokens, loss, held_out in found["curve"]
    ]
    kept = {name: found[name] for name in ("tokens", "best_step", "ended")}
    return {"stage": stage.method, "options": dict(stage.options), "curve": rows} | kept
