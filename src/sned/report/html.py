"""Renders a report as one web page that needs nothing else: no network, no script. Imports its neighbours.

Everything that a report quotes (prompts, commands, names) is escaped; only the pictures drawn here are not.
"""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from sned.report import (
    allocation_picture,
    evidence,
    facts,
    numbers,
    plots,
    policy_picture,
    repair_picture,
    search_picture,
    structure_picture,
    svg,
    tasks,
    trained,
    training_picture,
    worth,
    worth_picture,
    zeros,
    zeros_picture,
)

if TYPE_CHECKING:
    from jinja2 import Template

    from sned.report.schema import Report, Sparsity

STATES = {
    "kept": "kept",
    "folded": "kept, with a linear map folded into its MLP",
    "replaced": "replaced by a simple map",
    "trimmed": "narrowed to the filled part",
    "removed": "removed",
}
FEW = 7
"""With so many layers or fewer, two pictures over layers fit beside each other."""
_PHASES = ("load", "calibrate", "plan", "apply", "train", "save", "verify", "evaluate")


def render(report: Report) -> str:
    """Return the page as text; the same report always gives the same bytes."""
    return _template().render(
        report=report,
        name=report.model.source.rstrip("/").rpartition("/")[2] or report.model.source,
        verdict=facts.verdict(report),
        tiles=_tiles(report),
        sections=_sections(report),
        legend=_legend(report),
        states={item.state for item in report.stack},
        notes=[(facts.named_layers(layers), note) for layers, note in facts.notes(report)],
        warnings=zeros.warnings(report),
        zeroed=_zeroed(report),
        pictures=_pictures(report),
        phases=_phases(report),
        code=facts.loading(report, "path/to/this/folder"),
        options={key: _option(value) for key, value in report.options.items()},
        chosen={(item.start, item.end) for item in report.chosen},
        beside=[(item.method, words) for item in report.baselines if (words := facts.compared(report, item))],
        reading=search_picture.value_of,
        asked=tasks.words(report.tasks) if report.tasks else [],
        repaired=facts.repaired,
        trained=trained.sentence,
        healed=trained.is_healed(report),
        meaning=worth.meaning,
        column=worth.COLUMN,
        placed=worth.placed,
        planned=facts.planned,
        place=facts.place,
        cut=lambda item: facts.span(list(range(item.start, item.end))),
    )


@cache
def _template() -> Template:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    for spell in (numbers.decimal, numbers.percent, numbers.grouped, numbers.count, numbers.scaled, numbers.signed):
        environment.filters[spell.__name__] = spell
    environment.filters["duration"] = numbers.duration
    environment.filters["spell_cut"] = facts.spell_cut
    for index, scheme in enumerate(("light", "dark")):
        colours = [f"--{role}: {pair[index]};" for role, pair in svg.PALETTE.items()]
        environment.globals[scheme] = " ".join(colours)
    source = files("sned.report").joinpath("template.html.jinja").read_text(encoding="utf-8")
    return environment.from_string(source)


def _tiles(report: Report) -> list[tuple[str, str, str]]:
    """Return the headline figures that were measured: title, change, from and to."""
    wanted = {
        "Parameters": "Parameters",
        "KV cache per token": "KV cache",
        "Perplexity": "Perplexity",
        "Decode, tokens/s": "Decoding speed",
    }
    found = {row.label: row for row in facts.rows(report) if row.dense}
    tiles = [
        (title, found[label].change, f"{found[label].dense} → {found[label].pruned}")
        for label, title in wanted.items()
        if label in found
    ]
    if zeroed := report.sparsity:
        size = f"{numbers.count(zeroed.zeros, 3)} of {numbers.count(zeroed.of, 3)}"
        silent = {"Decoding speed"} if facts.only_zeros(report) else set()
        tiles = [tile for tile in tiles if tile[0] not in silent and tile[:2] != ("KV cache", "same")]
        tiles.insert(0, ("Zeros in the layers", numbers.percent(zeroed.ratio), size))
    return tiles


def _sections(report: Report) -> list[tuple[str, list[facts.Row]]]:
    rows = facts.rows(report)
    named = {row.section: [item for item in rows if item.section == row.section] for row in rows}
    return list(named.items())


def _legend(report: Report) -> list[tuple[str, str]]:
    """Return the states that occur in the stack, as (state, words)."""
    seen = {item.state for item in report.stack}
    seen |= {state for item in report.stack for state in (item.attention, item.mlp) if state != "kept"}
    return [(state, words) for state, words in STATES.items() if state in seen]


def _pictures(report: Report) -> dict[str, Any]:
    """Draw what the report holds; a picture without data is not in the result."""
    from markupsafe import Markup

    scores, drawn = report.importance, _zero_pictures(report)
    if report.stack and not (report.sparsity and facts.is_whole(report.stack)):
        drawn["stack"] = plots.stack(report.stack, plots.WIDE)
        drawn["stack_narrow"] = plots.stack(report.stack, plots.NARROW)
    if scores and (scores.layers or scores.attention or scores.mlp):
        drawn["importance"] = evidence.importance(scores, report.stack)
    if scores and scores.distance:
        drawn["triangle"] = evidence.triangle(scores.distance, report.chosen)
    if report.search and report.search.steps:
        drawn["search"] = search_picture.search(report.search, report.model.params.dense)
    if report.evolution:
        drawn["front"] = search_picture.front(report.evolution, report.model.params.dense)
    if report.policy:
        drawn["policy"] = policy_picture.policy(report.policy)
    if shaped := report.structure:
        drawn["structure"] = structure_picture.structure(shaped, len(report.stack) or 1 + shaped.kept[-1].layer)
        if training_picture.can_be_drawn(shaped):
            title, unit = "Cross-entropy", "nats per token; in training, with the missed budget"
            drawn["gates"] = training_picture.curve(shaped, title, unit, "The loss while gates were learned", "gates")
    if report.worth:
        depth = len(report.stack) or 1 + max(unit.layer for unit in report.worth.units)
        drawn["worth"] = worth_picture.worth(report.worth, depth)
    if report.repair:
        drawn["repair"] = repair_picture.repair(report.repair, report.stack)
    for index, item in enumerate(report.training or []):
        if training_picture.can_be_drawn(item):
            drawn[f"training{index}"] = training_picture.training(item, f"training{index}")
    if report.quality and (report.quality.dense or report.baselines):
        drawn["quality"] = plots.quality(report.quality, report.method, report.baselines)
    if report.speed:
        drawn["speed"] = plots.speed(report.speed)
    return {key: Markup(text) for key, text in drawn.items()}  # noqa: S704 - drawn above, text in it escaped


def _zero_pictures(report: Report) -> dict[str, Any]:
    """Draw where the zeros are, unless they are everywhere alike, and what their allocator went by."""
    found = report.sparsity
    if found is None:
        return {}
    depth, drawn = _depth(report, found), {}
    if found.matrices and not zeros.even(found):
        drawn["zeros"] = zeros_picture.heat(found, depth)
        drawn["zeros_narrow"] = zeros_picture.heat(found, depth, upright=True)
    if known := allocation_picture.evidence(found):
        drawn["allocation"] = allocation_picture.line(known, depth)
        drawn["allocation_narrow"] = allocation_picture.line(known, depth, narrow=True)
    for index, made in enumerate(allocation_picture.tries(found)):
        drawn[f"tries{index}"] = allocation_picture.distances(made)
    return drawn


def _depth(report: Report, found: Sparsity) -> int:
    """Return the number of layers of the base model, or of those that have matrices."""
    return len(report.stack) or 1 + max((item.layer for item in found.matrices), default=0)


def _zeroed(report: Report) -> dict[str, Any]:
    """Return what the page says of zeros; empty if there is nothing to say."""
    found = report.sparsity
    if found is None:
        return {}
    known = allocation_picture.evidence(found)
    return {
        "even": zeros.even(found),
        "few": _depth(report, found) <= FEW,
        "use": zeros.use(report, found),
        "allocator": str(report.options.get("allocate") or "the allocator").partition(":")[0],
        "sense": allocation_picture.sense(known, found) if known else "",
        "tries": [(made.among, made.words) for made in allocation_picture.tries(found)],
    }


def _phases(report: Report) -> list[tuple[str, float]]:
    if report.cost is None:
        return []
    spent = [(phase, getattr(report.cost.seconds, phase)) for phase in _PHASES]
    return [(phase, seconds) for phase, seconds in spent if seconds is not None]


def _option(value: Any) -> str:
    if value is None:
        return "not set"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
