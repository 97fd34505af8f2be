"""What was found out about a model, for people: `inspect`, `scan`, `eval` and `bench`. Imports rich."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.text import Text

from sned.cli.sparse import profiles
from sned.cli.tables import bars, facts, table, wants_log
from sned.report import numbers, tasks
from sned.report.facts import rows, span

if TYPE_CHECKING:
    from rich.console import RenderableType

    from sned.report.schema import Report

_BAR = 16  # characters
_CUTS = 12  # rows of nearest cuts
_PARTS = {"mlp": "MLP", "head": "output head"}


def inspected(found: Mapping[str, Any]) -> list[RenderableType]:
    """Return the facts about a model."""
    sizes = found["sizes"]
    mlp = " or ".join(f"{size:,}" for size in sizes["mlp"][:4]) or "experts"
    heads = f"{sizes['heads']} heads in {sizes['kv_groups']} KV groups, {sizes['head_dim']} wide"
    identity = [
        ("Model", found["model"]),
        *([("Folder", found["folder"])] if found["folder"] != found["model"] else []),
        ("Family", _family(found)),
        ("Layers", str(sizes["layers"])),
        ("Hidden size", f"{sizes['hidden']:,}"),
        ("Attention", heads),
        ("MLP", mlp),
        ("Vocabulary", f"{sizes['vocabulary']:,}"),
        ("Positions", "not stated" if sizes["positions"] is None else f"{sizes['positions']:,}"),
        ("Weights", f"{found['dtype']}, {numbers.scaled(found['bytes_on_disk'], 'B')} on disk"),
        ("To plan", _memory(found["memory_bytes"])),
    ]
    cuts = [
        (row["what"], Text("yes", "green") if row["possible"] else Text("no", "red"), row["note"])
        for row in found["prunable"]
    ]
    return [facts(identity), "", _parts(found), "", table(("what can go", "", ""), cuts, left=(0, 1, 2))]


def scanned(found: Mapping[str, Any]) -> list[RenderableType]:
    """Return the importance of every part, the nearest cuts, and the shares of zeros if allocators were asked."""
    model, text, layers = found["model"], found["calibration"], found["layers"]
    columns = [[layer[name] for layer in layers] for name in ("influence", "attention", "mlp")]
    log = any(wants_log(values) for values in columns)
    cells = [map(_score, values, bars(values, _BAR, log=log)) for values in columns]
    relative = ["–" if layer["relative"] is None else numbers.decimal(layer["relative"], 2) for layer in layers]
    named = [str(layer["layer"]) for layer in layers]
    lines = list(zip(named, *cells, relative, strict=True))
    headers = ("layer", "influence", "attention", "MLP", "relative size")
    nearest = [
        (str(cut["layers"]), span(list(range(cut["start"], cut["end"]))), numbers.decimal(cut["distance"]))
        for cut in found["best_cuts"][:_CUTS]
    ]
    scale = "; bars are logarithmic" if log else ""
    return [
        f"{model['source']}: {model['layers']} layers ({model['family']}), "
        f"{numbers.grouped(text['tokens'])} tokens of {text['source']}",
        "",
        table(headers, lines, left=(0, 1, 2, 3)),
        "",
        f"Influence: 1 − cos of the stream without and with the part{scale}. Relative size: what the layer adds.",
        "",
        table(("layers to cut", "nearest cut", "angular distance / π"), nearest),
        *profiles(found),
    ]


def measured(report: Report, model: str, against: str | None) -> list[RenderableType]:
    """Return what was measured of a model, beside another one if there is one."""
    shown = [row for row in rows(report) if row.section != "Size" or against is not None or report.speed]
    if against is None:
        body = table(("", *_short(model)), [(row.label, row.pruned or row.dense) for row in shown])
    else:
        names = _short(against, model)
        body = table(("", *names, "change"), [(r.label, r.dense, r.pruned, r.change) for r in shown])
    remarks: list[RenderableType] = []
    if report.quality:
        text = report.quality.protocol
        windows = f"windows of {numbers.grouped(text.seq_len)}"
        remarks.append(f"Measured on {numbers.grouped(text.tokens)} tokens of {text.source}, {windows}")
    if report.tasks:
        remarks += [f"Task {task}: {words}" for task, words in tasks.words(report.tasks)]
    if report.speed and report.speed.protocol:
        remarks.append(f"Measured with {report.speed.protocol}")
    return [body, "", *remarks]


def _memory(needed: Mapping[str, int]) -> str:
    text = f"about {numbers.scaled(needed['loaded'], 'B')} of memory beside torch itself"
    saving = needed["streamed"] < needed["loaded"]
    return f"{text}; {numbers.scaled(needed['streamed'], 'B')} with --stream on" if saving else text


def _family(found: Mapping[str, Any]) -> str:
    """Name the family, with its row of the table: what differs from Llama, or what was guessed."""
    kind, row = found["model_type"], found["family"]["row"].partition(": Family(")[2].removesuffix("),")
    if not found["family"]["known"]:
        return f"{kind}, guessed: Family({row})"
    return f"{kind} ({row})" if row else kind


def _quantity(value: int, unit: str) -> str:
    return numbers.scaled(value, unit) if value else "–"


def _short(*models: str) -> list[str]:
    """Return the last part of each path or id, unless these are alike."""
    ends = [model.rstrip("/").rpartition("/")[2] or model for model in models]
    return ends if len(set(ends)) == len(ends) else list(models)


def _parts(found: Mapping[str, Any]) -> RenderableType:
    lines = []
    for part, sizes in (*found["parts"].items(), ("total", found["total"])):
        share = numbers.percent(sizes["params"] / found["total"]["params"])
        shared = part == "head" and not sizes["params"]
        lines.append(
            (
                _PARTS.get(part, part),
                "tied" if shared else numbers.count(sizes["params"]),
                "" if shared else share,
                *(
                    _quantity(sizes[name], unit)
                    for name, unit in (("flops_per_token", "FLOP"), ("kv_bytes_per_token", "B"))
                ),
            )
        )
    return table(("part", "parameters", "share", "compute per token", "KV cache per token"), lines)


def _score(value: float | None, bar: str) -> Text:
    number = "–" if value is None else numbers.decimal(value, 2)
    return Text.assemble(f"{number:>9} ", (bar, "blue"))
