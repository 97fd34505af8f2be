"""A plan as a reader sees it: what it is for, what it does, what it saves, and why. Imports rich; plans when called."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.text import Text

from sned.cli import sparse, worth
from sned.cli.tables import facts, table
from sned.report import numbers
from sned.report.facts import spell_cut

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from rich.console import RenderableType

    from sned.plans.diff import LayerState
    from sned.plans.plan import Plan, Size

PER_ROW = 60  # layers in one row of the picture
_LOOKS = {
    "kept": ("█", "blue"),
    "removed": ("·", "red"),
    "folded": ("◆", "yellow"),
    "replaced": ("═", "magenta"),
    "trimmed": ("▒", "cyan"),
}
_MEANING = {
    "kept": "kept",
    "removed": "removed",
    "folded": "kept, with a linear map folded in",
    "replaced": "replaced by a simple map",
    "trimmed": "kept, but narrower",
}


def document(plan: Plan) -> dict[str, Any]:
    """Return a plan for programs: all that its file holds, its digest, and the state of every layer."""
    from sned.plans.diff import layer_states
    from sned.plans.plan import FORMAT

    states = [
        {"layer": i, "state": s.layer, "attention": s.attn, "mlp": s.mlp, "note": s.note}
        for i, s in enumerate(layer_states(plan))
    ]
    head = {"format": FORMAT, "digest": plan.digest, "summary": plan.summary()}
    return {**head, **plan.model_dump(mode="json"), "layers": states}


def parts(plan: Plan) -> list[RenderableType]:
    """Return a plan for people."""
    from sned.plans.diff import layer_states

    shown: list[RenderableType] = [facts(_identity(plan)), "", strip(layer_states(plan)), ""]
    first = 0
    for stage in plan.stages:
        # what is done to single weights is told by layer below, not op by op
        told = [] if "sparsity" in stage.scores else stage.ops
        described = [(str(n), op.op, op.describe()) for n, op in enumerate(told, first)]
        shown += [table(("op", "kind", "what it does"), described, left=(1, 2)), ""] if described else []
        first += len(stage.ops)
    shown.append(sizes(plan.dense, plan.pruned))
    for stage in plan.stages:
        shown += [*_reasons(stage.scores), *_steps(stage.scores, plan.dense.params)]
        shown += [*worth.tables(stage.scores), *sparse.zeros(stage.scores)]
    return shown


def sizes(dense: Size, pruned: Size) -> RenderableType:
    """Return the counts before and after."""
    rows = [(label, spell(a), spell(b), numbers.change(a, b)) for label, a, b, spell in _counts(dense, pruned)]
    return table(("", "base", "pruned", "change"), rows)


def strip(states: Sequence[LayerState]) -> Text:
    """Draw every layer as a column, attention over MLP."""
    picture, seen = Text(), set()
    for first in range(0, len(states), PER_ROW):
        row = states[first : first + PER_ROW]
        picture.append(f"{'layer':<11}{_ruler(first, len(row))}\n", style="dim")
        for label, part in (("attention", "attn"), ("MLP", "mlp")):
            picture.append(f"{label:<11}", style="dim")
            for state in row:
                look = _look(state, part)
                seen.add(look)
                picture.append(*_LOOKS[look])
            picture.append("\n")
    picture.append(" " * 11)
    for look, (sign, colour) in _LOOKS.items():
        if look in seen:
            picture.append(sign, style=colour)
            picture.append(f" {_MEANING[look]}   ", style="dim")
    return picture


def differences(first: Plan, second: Plan, names: tuple[str, str]) -> list[RenderableType]:
    """Return what two plans do differently, for people."""
    shown: list[RenderableType] = []
    if base := first.base.differences(second.base):
        shown += ["The plans are for different models:", *(f"    {line}" for line in base), ""]
    shown += [_asked_side_by_side(first, second, names), ""]
    rows = layer_differences(first, second)
    if rows is None:
        shown.append("Their layers cannot be compared one by one: the models have different depths.")
    elif rows:
        shown.append(table(("layers", *names), [(r["layers"], r["first"], r["second"]) for r in rows], left=(0, 1, 2)))
    else:
        same = first.digest == second.digest
        shown.append("They are the same plan." if same else "They treat every layer alike.")
    return [*shown, *sparse.overlap_table(first, second, names), "", _side_by_side(first.pruned, second.pruned, names)]


def layer_differences(first: Plan, second: Plan) -> list[dict[str, str]] | None:
    """Return the layers that two plans treat differently, or None where the models have different depths."""
    from sned.plans.diff import diff_plans

    if first.base.n_layers != second.base.n_layers:
        return None
    return [{"layers": d.layers, "first": d.first, "second": d.second} for d in diff_plans(first, second)]


def forecast(expected: Mapping[str, Any]) -> RenderableType:
    """Return what a job would do and need, for people."""
    free = expected["memory_available_bytes"]
    memory = f"{numbers.scaled(expected['memory_bytes'], 'B')} of {numbers.scaled(free, 'B')} free"
    tried = f"about {numbers.grouped(expected['trials'])} trials of a cut, all on the same text"
    rows = [
        ("Model", expected["model"] + (", read layer by layer from disk" if expected["streamed"] else "")),
        ("Method", expected["method"]),
        ("Steps", " → ".join(expected["steps"])),
        ("To set to zero" if expected["remove"]["what"] == "weights" else "To remove", _amount(**expected["remove"])),
        *([("Search", tried)] if expected["trials"] else []),
        ("Calibration", f"{numbers.grouped(expected['calibration_tokens'])} tokens"),
        ("Evaluation", f"{numbers.grouped(expected['evaluation_tokens'])} tokens"),
        ("Memory", f"about {memory}"),
        ("Time", f"about {numbers.duration(expected['seconds'])}, from a short trial"),
        ("Written", "nothing yet; repeat without --dry-run"),
    ]
    return facts(rows)


def _amount(what: str, count: int, of: int) -> str:
    if what in ("parameters", "weights"):
        return f"{numbers.count(count)} of {numbers.count(of)} {what}"
    return f"{count} of {of} {'attentions and MLPs' if what == 'blocks' else what}"


def _identity(plan: Plan) -> list[tuple[str, str]]:
    base, text = plan.base, plan.provenance.get("calibration")
    size = f"{base.n_layers} layers, hidden size {base.hidden}, {numbers.count(base.n_params)} parameters"
    rows = [("Base", f"{base.source} ({base.model_type}; {size})"), ("Weights", base.weights[:12])]
    rows += [("Method", _asked_stage(stage.method, stage.options)) for stage in plan.stages]
    if text:
        rows.append(("Calibration", f"{text['source']} ({text['digest'][:12]})"))
    return [*rows, ("Digest", plan.digest[:12])]


def _asked_side_by_side(first: Plan, second: Plan, names: tuple[str, str]) -> RenderableType:
    """Return the methods of two plans, and the options of both in which they differ."""
    mine, other = _options(first), _options(second)
    rows = [("method", *("; ".join(stage.method for stage in plan.stages) for plan in (first, second)))]
    rows += [
        (name, _value(mine[name]), _value(other[name])) for name in mine if mine[name] != other.get(name, mine[name])
    ]
    return table(("asked for", *names), rows, left=(0, 1, 2))


def _options(plan: Plan) -> dict[str, Any]:
    return {name: value for stage in plan.stages for name, value in stage.options.items()}


def _value(value: Any) -> str:
    return "–" if value is None else str(value)


def _asked_stage(method: str, options: Mapping[str, Any]) -> str:
    given = ", ".join(f"{name}={value}" for name, value in options.items() if value is not None)
    return f"{method} ({given})" if given else method


def _reasons(scores: Mapping[str, Any]) -> list[RenderableType]:
    """Return the scores behind the chosen cuts; other scores are for pictures and programs."""
    shown: list[RenderableType] = []
    if cuts := scores.get("cuts"):
        rows = [(_span(cut), _number(cut.get("distance"))) for cut in cuts]
        shown += ["", table(("chosen cut", "angular distance / π"), rows)]
    if probe := scores.get("probe"):
        rows = [(_span(cut), _number(cut.get("nll"))) for cut in probe]
        shown += ["", table(("cut tried", "loss, nats per token"), rows)]
    if fits := scores.get("fit"):
        rows = [
            (_span(fit), numbers.grouped(fit["tokens"]), str(fit["rank"]), _number(fit.get("relative_error")))
            for fit in fits
        ]
        shown += ["", table(("map for layers", "tokens", "rank", "relative error"), rows)]
    if merges := scores.get("merges"):
        rows = [
            (f"{row['layers'].replace('-', '–')} into {row['into']}", f"{row['similarity']:.4f}", str(row["tried"]))
            for row in merges
        ]
        shown += ["", table(("merge, in order", "similarity to the base", "candidates tried"), rows)]
    return shown


def _steps(scores: Mapping[str, Any], params: int) -> list[RenderableType]:
    """Return how a search went, step by step, and the ranking that it went by."""
    shown: list[RenderableType] = []
    if trace := scores.get("trace"):
        rows = [
            (
                spell_cut(row["cut"]),
                numbers.decimal(row["loss"]),
                numbers.signed(row["increase"]),
                numbers.grouped(row["tokens"]),
                f"{row['measured']} of {row['candidates']}",
                numbers.percent(1 - row["params"] / params),
            )
            for row in trace
        ]
        headers = ("cut, in order", "loss", "change", "tokens", "candidates tried", "removed so far")
        shown += ["", table(headers, rows)]
    if ranking := scores.get("ranking"):
        rows = [(spell_cut(row["cut"]), _number(row["loss"])) for row in ranking]
        shown += ["", table(("cut alone, best first", "loss"), rows)]
    return shown


def _span(cut: Mapping[str, Any]) -> str:
    first, last = cut["start"], cut["end"] - 1
    return str(first) if first == last else f"{first}–{last}"


def _number(value: float | None) -> str:
    return "not finite" if value is None else numbers.decimal(value)


def _look(state: LayerState, part: str) -> str:
    if state.layer in ("removed", "replaced"):
        return state.layer
    return "folded" if state.layer == "folded" and part == "mlp" else getattr(state, part)


def _ruler(first: int, count: int) -> str:
    """Write every tenth layer above its column."""
    marks = (f"{layer:<10}" for layer in range(first, first + count, 10))
    return "".join(marks)[: max(count, len(str(first + count)))].rstrip()


def _side_by_side(first: Size, second: Size, names: tuple[str, str]) -> RenderableType:
    rows = [(label, spell(a), spell(b)) for label, a, b, spell in _counts(first, second)]
    return table(("after pruning", *names), rows)


def _counts(first: Size, second: Size) -> list[tuple[str, int, int, Callable[[int], str]]]:
    return [
        ("Parameters", first.params, second.params, numbers.count),
        ("… in decoder layers", first.body_params, second.body_params, numbers.count),
        ("Compute per token", first.flops_per_token, second.flops_per_token, lambda n: numbers.scaled(n, "FLOP")),
        ("KV cache per token", first.kv_bytes_per_token, second.kv_bytes_per_token, lambda n: numbers.scaled(n, "B")),
    ]
