"""What a report says of training, in words, once for page, card and terminal. Imports numbers and the schema."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sned.report import numbers

if TYPE_CHECKING:
    from sned.report.schema import Report
    from sned.report.training_blocks import Curve, Training, TrainingPoint

_HEAL = "heal"
_LOSSES = {
    "nmse": "the squared distance of each token's state after the cut from the base's, relative to the latter's square",
    "mse": "the mean squared difference between the states after the cut and those of the base",
    "cosine": "one minus the cosine between the states after the cut and those of the base",
    "kl": "the KL divergence of the predictions from those of the base, in nats per token",
    "ce": "the cross-entropy of the next token, in nats per token",
    "states": "the squared distance of each token's last state from the base's, relative to the latter's square",
}
_WHICH = {
    "lora": "the matrices of {layers}, by low-rank updates",
    "full": "all weights of {layers}",
    "transform": "the linear maps that stand for removed layers",
}


def sentence(found: Training) -> str:
    """Say what was trained on which loss and how much text, how far that fell, and why training ended."""
    text = f"{found.stage} trained {which(found)}, to lower {_LOSSES[found.loss]}, on {_amount(found)}"
    return f"{text}. On windows kept out of training, {_outcome(found)}.{_shrunk(found)}"


def line(found: Training) -> str:
    """Say the same in a few words: ``126 976 tokens, held-out kl 0.450 → 0.310``."""
    ends = {"done": "", "no better": ", ended early", "diverged": ", then diverged: the best weights were kept"}
    if found.best_step:
        before, after = _fall(found)
        return f"{_amount(found)}, held-out {found.loss} {before} → {after}{ends[found.ended]}"
    why = "diverged, and " if found.ended == "diverged" else ""
    return f"{_amount(found)}, {why}found nothing better: the weights are as they were"


def limit(report: Report) -> str:
    """Say which weights were trained after pruning, if any, and that more training may help."""
    if not report.training:
        return "The weights were not trained after pruning; training would recover some of the loss."
    moved = [item for item in report.training if item.best_step]
    vain = [item for item in report.training if not item.best_step]
    named = "; ".join(f"{which(item)} (`{item.stage}`, {_amount(item)})" for item in moved)
    said = [f"Trained after pruning: {named}."] if moved else ["No weights were changed by training after pruning."]
    said += [f"Training by `{item.stage}` found no better weights, so it changed none." for item in vain]
    return " ".join([*said, "Longer training, or more text, may recover more of the loss."])


def which(found: Training) -> str:
    """Say which weights a stage trained, by its options."""
    last = found.options.get("last")
    layers = "the decoder layers" if last is None else "the last layer" if last == 1 else f"the last {last} layers"
    if (asked := found.options.get("train")) in _WHICH:
        return _WHICH[str(asked)].format(layers=layers)
    return "what stands for the removed layers" if "replacement" in found.options else "weights"


def is_healed(report: Report) -> bool:
    """Tell whether a model that was pruned before was trained, so that its text is one to train on."""
    return report.method == _HEAL


def best(found: Curve) -> TrainingPoint:
    """Return the row whose weights were kept."""
    return next(point for point in found.curve if point.step == found.best_step)


def _fall(found: Training) -> tuple[str, str]:
    """Return the held-out loss before training and of the best weights, with so many digits that they differ."""
    values = [found.curve[0].held_out, best(found).held_out]
    pairs = [tuple("no finite loss" if v is None else numbers.decimal(v, n) for v in values) for n in range(3, 9)]
    before, after = next((pair for pair in pairs if pair[0] != pair[1]), pairs[0])
    return before, after


def _amount(found: Training) -> str:
    """Say how much was trained on; where training diverged, after the last row, only how much there was."""
    whole, seen = numbers.grouped(found.tokens), found.curve[-1].tokens
    if found.ended == "diverged":
        return f"a text of {whole} tokens"
    if seen < found.tokens:
        return f"{numbers.grouped(seen)} of {whole} tokens"
    return f"{whole} tokens" if seen == found.tokens else f"{whole} tokens, seen {seen / found.tokens:.3g} times"


def _outcome(found: Training) -> str:
    """Say how far the held-out loss fell, where the best weights were found, and what came then."""
    step, last = found.best_step, found.curve[-1].step
    if step == 0:
        first = found.curve[0].held_out
        than = "that from before" if first is None else f"the {numbers.decimal(first)} from before"
        early, burst = f"; training ended early, at step {last}", "; training diverged and was stopped"
        ends = {"done": "", "no better": early, "diverged": burst}
        return f"no step got below {than}, so the weights are as they were{ends[found.ended]}"
    before, after = _fall(found)
    fell = f"the loss fell from {before} to {after} at step {step}"
    kept = f"the weights of step {step} were kept"
    if found.ended == "diverged":
        return f"{fell}; then it diverged, so training was stopped, and {kept}"
    if found.ended == "no better":
        return f"{fell} and no further, so training ended early, at step {last}, and {kept}"
    return f"{fell}, the last" if step == last else f"{fell} of {last}, and {kept}"


def _shrunk(found: Training) -> str:
    """Say that the change was made smaller afterwards, if it was, for the losses are then not those of the result."""
    share = found.options.get("first_share", 1)
    if not found.best_step or not isinstance(share, int | float) or share == 1:
        return ""
    kept = f"the first layer kept {numbers.percent(share)}, rising evenly to all of it in the last"
    return f" Then, of the change, {kept}; the losses are from before that."
