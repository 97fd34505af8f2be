"""Writes the model card, ``README.md``, of a pruned checkpoint. Imports its neighbours; yaml when called.

The card states what is known and no more: what was removed, what was measured and on how little, and what
was not looked at.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sned.report import facts, numbers, trained, zeros

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from sned.report.schema import Report

_INHERITED = ("license", "license_name", "license_link", "language")


def front_matter(readme: str) -> dict[str, Any]:
    """Return the YAML block at the top of a model card; empty when there is none or it is not YAML."""
    import yaml

    lines = readme.lstrip("\ufeff").splitlines()
    if not lines or lines[0].strip() != "---":
        return {}
    end = next((number for number, line in enumerate(lines[1:], start=1) if line.strip() == "---"), None)
    if end is None:
        return {}
    try:
        block = yaml.safe_load("\n".join(lines[1:end]))
    except yaml.YAMLError:
        return {}
    return block if isinstance(block, dict) else {}


def inherited(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a card takes over from that of the base model: licence and languages."""
    return {key: metadata[key] for key in _INHERITED if metadata.get(key)}


def base_metadata(folder: Path) -> dict[str, Any]:
    """Return the front matter of the model card in a folder, empty where there is none."""
    file = folder / "README.md"
    return front_matter(file.read_text(encoding="utf-8", errors="replace")) if file.exists() else {}


def render_card(
    report: Report,
    metadata: Mapping[str, Any],
    *,
    name: str,
    base_model: str | None = None,
    recipe: bool = False,
) -> str:
    """Return the text of ``README.md``.

    Args:
        report: what was done and measured.
        metadata: front matter of the base model's card; its licence and languages are inherited.
        name: title of the card, usually the name of the folder.
        base_model: Hub id of the base model; None when it has none (a local folder).
        recipe: whether a recipe lies beside the report.
    """
    import yaml

    header: dict[str, Any] = {"base_model": base_model} if base_model else {}
    header |= inherited(metadata)
    header |= {
        "library_name": "transformers",
        "pipeline_tag": metadata.get("pipeline_tag") or "text-generation",
        "tags": ["sned", "pruned", report.method],
    }
    block = yaml.safe_dump(header, sort_keys=False, allow_unicode=True)
    body = [
        _intro(report, name, base_model),
        _measured(report),
        _load(report, name),
        _limits(report),
        _made(report, recipe=recipe),
    ]
    return f"---\n{block}---\n\n" + "\n\n".join(filter(None, body)) + "\n"


def _intro(report: Report, name: str, base_model: str | None) -> str:
    link = f"[{base_model}](https://huggingface.co/{base_model})" if base_model else f"`{report.model.source}`"
    how = "pruned, then trained with `sned heal`" if trained.is_healed(report) else f"pruned with `{report.method}`"
    text = f"# {name}\n\n{link}, {how}. {facts.verdict(report)}"
    notes = [f"- {facts.named_layers(layers)}: {note}" for layers, note in facts.notes(report)]
    layered = report.stack and not (report.sparsity and facts.is_whole(report.stack))
    counted = "Layers are counted from 0 in the base model; a range names both its ends."
    return "\n\n".join(filter(None, [text, counted if layered else "", "\n".join(notes)]))


def _measured(report: Report) -> str:
    lines = ["## Before and after", "", "| | base | pruned | change |", "|:--|--:|--:|--:|"]
    lines += [f"| {row.label} | {row.dense} | {row.pruned} | {row.change} |" for row in facts.rows(report)]
    if report.quality:
        text = report.quality.protocol
        tokens, window = numbers.grouped(text.tokens), numbers.grouped(text.seq_len)
        lines += ["", f"Quality: {tokens} tokens of `{text.source}` in windows of {window}."]
    if report.speed and report.environment:
        lines += ["", f"Speed: {report.environment.cpu}, {report.environment.threads} threads."]
    if report.baselines:
        beside = sorted(report.baselines, key=lambda item: item.perplexity)
        named = ", ".join(f"`{item.method}` {numbers.decimal(item.perplexity)}" for item in beside)
        lines += ["", f"Perplexity of what it was compared with: {named}."]
        noted = [(item.method, facts.compared(report, item)) for item in beside]
        lines += [f"- `{name}`: {words}" for name, words in noted if words]
    return "\n".join(lines)


def _load(report: Report, name: str) -> str:
    text = f"## Loading\n\n```python\n{facts.loading(report, name)}```"
    if report.verify and not report.verify.stock_class:
        text += (
            "\n\nIts layers differ in ways that no stock class can hold. `modeling_sned.py` in this folder builds "
            "them, which transformers allows only with `trust_remote_code=True`: read it first. Where sned is "
            f'installed, `sned.load("{name}")` loads the model too, and runs no code from the folder.'
        )
    return text


def _limits(report: Report) -> str:
    known = [trained.limit(report)]
    if report.quality:
        tokens, source = numbers.grouped(report.quality.protocol.tokens), report.quality.protocol.source
        known.append(
            f"The figures come from {tokens} tokens of `{source}`: a small sample. Other text, languages and "
            "tasks will differ, and reasoning and recall often suffer more than perplexity shows."
        )
    else:
        known.append("The quality of this model was not measured.")
    if report.sparsity:
        known.append(zeros.use(report, report.sparsity))
    known.append("Safety behaviour was not evaluated. What the base model's card warns of holds here too.")
    known += [f"Warning while pruning: {warning}" for warning in zeros.warnings(report)]
    return "## Limits\n\n" + "\n".join(f"- {item}" for item in known)


def _made(report: Report, *, recipe: bool) -> str:
    lines = ["## How it was made", "", "```", report.command, "```"]
    healed = trained.is_healed(report)
    if report.calibration:
        text, verb = report.calibration, "Trained with" if healed else "Calibrated on"
        lines += ["", f"{verb} {numbers.grouped(text.tokens)} tokens of `{text.source}`."]
    for item in report.training or []:
        lines += ["", f"Training: {trained.sentence(item)}"]
    kept = "plan, the full report and the recipe" if recipe else "plan and the full report"
    lines += ["", f"sned {report.sned}. The {kept} are in `sned/`."]
    return "\n".join(lines)
