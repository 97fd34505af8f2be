"""What a report says, in words and rows, once for page, card and terminal. Imports canon and its neighbours.

Layers are counted from 0 in the base model, and a range names both its ends.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from sned.canon import format_span
from sned.report import numbers, tasks, zeros

if TYPE_CHECKING:
    from collections.abc import Callable

    from sned.report.schema import Baseline, Layer, Pair, Repair, Report
    from sned.report.worth_blocks import StandIn

Section = Literal["Size", "Quality", "Tasks", "Speed"]
Verdict = Literal["better", "worse", ""]


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the before/after table; an empty text is a cell with nothing to say."""

    section: Section
    label: str
    dense: str
    pruned: str
    change: str
    side: Verdict
    exact: str = ""


def span(layers: list[int], limit: int = 10) -> str:
    """Return layers as ``13–18, 25``, cut short after so many ranges."""
    ranges = format_span(layers).replace("-", "–").split(",")
    return ", ".join(ranges if len(ranges) <= limit else [*ranges[: limit - 1], "…"])


def place(item: StandIn) -> str:
    """Return what was there, as ``13–18`` or ``MLP 3``."""
    return spell_cut(f"{item.which}.{item.start}") if item.which else span(list(range(item.start, item.end)))


def gone(stack: list[Layer]) -> list[int]:
    """Return the layers that no longer exist as decoder layers."""
    return [item.layer for item in stack if item.state in ("removed", "replaced")]


def is_partial(stack: list[Layer]) -> bool:
    """Tell whether a layer lost its attention or its MLP but not both."""
    return any("removed" in (item.attention, item.mlp) and item.attention != item.mlp for item in stack)


def spell_cut(cut: str) -> str:
    """Return a step of a search in words: ``layer 2``, ``attn 7``, ``MLP 3 + attn 4``, ``MLP 3 → 1024``."""
    named = cut.replace("mlp.", "MLP ").replace("attn.", "attn ").replace("layer.", "layer ")
    return named.replace("+", " + ").replace(":", " → ")


def repaired(refits: list[Repair]) -> str:
    """Say what a repair changed and what it left: ``3 of 5 output projections were refitted ...``."""
    left = [item.left for item in refits if item.ridge is not None]
    same = len(refits) - len(left)
    if not left:
        which = "the one output projection" if same == 1 else f"any of the {same} output projections"
        return f"No refit of {which} helped, so everything stayed as it was."
    lost, most = numbers.percent(min(left)), numbers.percent(max(left))
    share = lost if lost == most else f"{lost} to {most}"
    many = f"{len(left)} of {len(refits)} output {_plural('projection', len(refits))}"
    done = f"{many} {'was' if len(left) == 1 else 'were'} refitted, which leaves {share} of the error there"
    kept = f"; {same} stayed as {'it was' if same == 1 else 'they were'}, for no refit helped" if same else ""
    return f"{done}{kept}."


def is_whole(stack: list[Layer]) -> bool:
    """Tell whether every layer still has all of its parts, at their full width."""
    return all(item.state == item.attention == item.mlp == "kept" for item in stack)


def notes(report: Report) -> list[tuple[list[int], str]]:
    """Return remarks, each with its layers; where weights are zero, none on whole layers: a picture tells more."""
    told: dict[str, list[int]] = {}
    for item in report.stack:
        if item.note and not (report.sparsity and is_whole([item])):
            told.setdefault(item.note, []).append(item.layer)
    return [(layers, note) for note, layers in told.items()]


def named_layers(layers: list[int]) -> str:
    """Return ``Layer 4`` or ``Layers 0–3, 7``."""
    return f"Layer{'s' if len(layers) > 1 else ''} {span(layers)}"


def planned(summary: str, shown: int = 4) -> str:
    """Return what a plan does, cut short after so many ops if there are many more."""
    ops = summary.split("; ")
    return summary if len(ops) <= 2 * shown else f"{'; '.join(ops[:shown])}; and {len(ops) - shown} more"


def removal(report: Report) -> str:
    """Say what was taken out: ``6 of 30 layers removed (13–18)``, ``2 attentions (7, 9) removed, 2 of 60 blocks``.

    Empty where nothing was, but single weights were set to zero.
    """
    stack = report.stack
    rest = [item for item in stack if item.state not in ("removed", "replaced")]
    out = [item.layer for item in stack if item.state == "removed"]
    found = [
        _blocks_removed(stack, out) if is_partial(stack) else _counted("layer", out, "removed", len(stack)),
        _counted("layer", [i.layer for i in stack if i.state == "replaced"], "replaced by a simple map", len(stack)),
        _counted("attention", [i.layer for i in rest if i.attention == "trimmed"], "narrowed"),
        _counted("MLP", [i.layer for i in rest if i.mlp == "trimmed"], "narrowed"),
    ]
    return ", ".join(filter(None, found)) or ("" if report.sparsity else "No layer removed")


def _counted(noun: str, layers: list[int], verb: str, total: int | None = None) -> str:
    if not layers:
        return ""
    of = "" if total is None else f" of {total}"
    return f"{len(layers)}{of} {_plural(noun, total or len(layers))} {verb} ({span(layers)})"


def _blocks_removed(stack: list[Layer], whole: list[int]) -> str:
    """Say which attentions and MLPs went, those of whole layers among them."""
    kept = [item for item in stack if item.state != "replaced"]
    lost = {
        "attention": [item.layer for item in kept if item.attention == "removed"],
        "MLP": [item.layer for item in kept if item.mlp == "removed"],
    }
    named = [f"{len(n)} {_plural(noun, len(n))} ({span(n)})" for noun, n in lost.items() if n]
    both = f", both of {_plural('layer', len(whole))} {span(whole)}" if whole else ""
    return f"{' and '.join(named)} removed, {sum(map(len, lost.values()))} of {2 * len(stack)} blocks{both}"


def _plural(noun: str, n: int) -> str:
    return noun if n == 1 else f"{noun}s"


def verdict(report: Report) -> str:
    """Tell the outcome in plain sentences: what went, what it cost, what it gained."""
    params = report.model.params
    first = removal(report)
    if params.removed:
        body = numbers.percent(params.body_removed)
        first += f": {numbers.percent(params.removed)} of all parameters, {body} of those in decoder layers"
    zeroed = report.sparsity
    sentences = [first, *((zeros.outcome(zeroed), zeros.choice(report.options)) if zeroed else ())]
    quality = report.quality
    if quality and quality.dense:
        before, after = quality.dense.perplexity, quality.pruned.perplexity
        ratio = f" ({numbers.times(after / before)})" if before else ""
        sentences.append(f"Perplexity {numbers.decimal(before)} → {numbers.decimal(after)}{ratio}")
    elif quality:
        sentences.append(f"Perplexity {numbers.decimal(quality.pruned.perplexity)}")
    if report.speed and not only_zeros(report):
        sentences.append(f"Decodes {numbers.decimal(report.speed.decode_ratio)} times as fast")
    return ". ".join(filter(None, sentences)) + "."


def only_zeros(report: Report) -> bool:
    """Tell whether nothing but single weights went: any difference in speed is then the machine's own unrest."""
    return report.sparsity is not None and report.model.params.dense == report.model.params.pruned


def compared(report: Report, beside: Baseline) -> str:
    """Say how a baseline was asked, and what it removed if that is not as much: ``..., removed 18.4% of ...``."""
    same = beside.removed is None or abs(beside.removed - report.model.params.removed) < 5e-4
    size = "" if same or beside.removed is None else f"removed {numbers.percent(beside.removed)} of the parameters"
    return ", ".join(filter(None, [beside.note, size]))


def rows(report: Report) -> list[Row]:
    """Return the before/after table, without lines for what was not measured."""
    judged = [Row("Tasks", *cells) for cells in tasks.cells(report.tasks)] if report.tasks else []
    return [*_size_rows(report), *_quality_rows(report), *judged, *_speed_rows(report)]


def loading(report: Report, folder: str) -> str:
    """Return Python that loads the checkpoint in `folder` with transformers alone."""
    trust = "" if report.verify and report.verify.stock_class else ", trust_remote_code=True"
    return (
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f'model = AutoModelForCausalLM.from_pretrained("{folder}", dtype="auto"{trust})\n'
        f'tokenizer = AutoTokenizer.from_pretrained("{folder}"{trust})\n'
    )


def _size_rows(report: Report) -> list[Row]:
    model, params, stack = report.model, report.model.params, report.stack
    table = _zero_rows(report)
    if is_partial(stack):
        for label, part in (("Attentions", "attention"), ("MLPs", "mlp")):
            left = sum(item.state != "replaced" and getattr(item, part) != "removed" for item in stack)
            table.append(_size(label, len(stack), left, str))
    elif stack:
        table.append(_size("Decoder layers", len(stack), len(stack) - len(gone(stack)), str))
    table.append(_size("Parameters", params.dense, params.pruned, numbers.count))
    if params.body_dense is not None and params.body_pruned is not None:
        table.append(_size("… in decoder layers", params.body_dense, params.body_pruned, numbers.count))
    elif params.body_removed:
        lost = numbers.percent(-params.body_removed)
        table.append(Row("Size", "… in decoder layers", "", "", lost, "better"))
    table.append(_size("Compute per token", *_both(model.flops_per_token), _flops))
    table.append(_size("KV cache per token", *_both(model.kv_bytes_per_token), _bytes))
    if report.memory_to_run:
        table.append(_size("Memory, with 1,024 tokens", *_both(report.memory_to_run), _bytes))
    if report.bytes_on_disk:
        table.append(_size("Weights on disk", *_both(report.bytes_on_disk), _bytes))
    if report.sparsity:
        ratio = numbers.times(report.sparsity.packed_ratio)
        table.append(Row("Size", "… layers' matrices, if packed as bit masks", "", ratio, "", ""))
    return table


def _zero_rows(report: Report) -> list[Row]:
    found = report.sparsity
    if found is None:
        return []
    exact = f"{numbers.grouped(found.zeros)} zeros"
    shares = {"Zeros in the layers' matrices": found.ratio, "Zeros among all parameters": found.ratio_of_all}
    return [Row("Size", label, "", numbers.percent(share), "", "", exact) for label, share in shares.items()]


def _quality_rows(report: Report) -> list[Row]:
    quality = report.quality
    if quality is None:
        return []
    dense, pruned = quality.dense, quality.pruned
    before = numbers.decimal(dense.perplexity) if dense else ""
    ratio = numbers.times(pruned.perplexity / dense.perplexity) if dense and dense.perplexity else ""
    side = _side(dense.nll, pruned.nll, lower_is_better=True) if dense else ""
    table = [Row("Quality", "Perplexity", before, numbers.decimal(pruned.perplexity), ratio, side)]
    before = numbers.decimal(dense.nll) if dense else ""
    delta = f"{pruned.nll - dense.nll:+.3f}".replace("-", "−") if dense else ""
    table.append(Row("Quality", "Loss, nats per token", before, numbers.decimal(pruned.nll), delta, side))
    if quality.kl is not None:
        table.append(Row("Quality", "KL from the base, nats per token", "", numbers.decimal(quality.kl), "", ""))
    if quality.top1_agreement is not None:
        share = numbers.percent(quality.top1_agreement)
        table.append(Row("Quality", "Same top token as the base", "", share, "", ""))
    return table


def _speed_rows(report: Report) -> list[Row]:
    speed = report.speed
    if speed is None:
        return []
    dense, pruned = speed.dense, speed.pruned
    table = [
        _rate("Prefill, tokens/s", dense.prefill_tokens_per_s, pruned.prefill_tokens_per_s, speed.prefill_ratio),
        _rate("Decode, tokens/s", dense.decode_tokens_per_s, pruned.decode_tokens_per_s, speed.decode_ratio),
    ]
    if speed.decode_body_ratio is not None:
        ratio = speed.decode_body_ratio
        side = _side(1.0, ratio, lower_is_better=False)
        table.append(Row("Speed", "Decode, decoder layers alone", "", "", numbers.times(ratio), side))
    if speed.head_share is not None:
        table.append(Row("Speed", "Decode, share of the head", numbers.percent(speed.head_share), "", "", ""))
    return [replace(row, side="") for row in table] if only_zeros(report) else table


def _size(label: str, dense: int, pruned: int, spell: Callable[[int], str]) -> Row:
    exact = f"{numbers.grouped(dense)} → {numbers.grouped(pruned)}"
    side = _side(dense, pruned, lower_is_better=True)
    return Row("Size", label, spell(dense), spell(pruned), numbers.change(dense, pruned), side, exact)


def _rate(label: str, dense: float, pruned: float, ratio: float) -> Row:
    side = _side(1.0, ratio, lower_is_better=False)
    return Row("Speed", label, numbers.decimal(dense), numbers.decimal(pruned), numbers.times(ratio), side)


def _side(before: float, after: float, *, lower_is_better: bool) -> Verdict:
    if before == after:
        return ""
    return "better" if (after < before) == lower_is_better else "worse"


def _both(pair: Pair) -> tuple[int, int]:
    return pair.dense, pair.pruned


def _flops(value: int) -> str:
    return numbers.scaled(value, "FLOP")


def _bytes(value: int) -> str:
    return numbers.scaled(value, "B")
