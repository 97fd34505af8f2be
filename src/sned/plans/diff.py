"""What two plans do differently, layer by layer, without any weights. May import its neighbours in `plan`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sned.canon import format_span
from sned.plans.ops import AddBias, DropLayers, DropSublayer, Fold, Keep, Merge, Replace, SetWeight

if TYPE_CHECKING:
    from sned.plans.plan import Plan


@dataclass(frozen=True, slots=True)
class LayerState:
    """What a plan leaves of one base layer."""

    layer: str = "kept"
    """kept | removed | folded | replaced"""
    attn: str = "kept"
    """kept | removed | trimmed"""
    mlp: str = "kept"
    note: str = ""
    attn_units: str = ""
    """The units kept of a trimmed sublayer, as a span."""
    mlp_units: str = ""
    features: tuple[tuple[str, str], ...] = ()
    """Which features of the stream a sublayer reads and writes, where not all: the kind of axis, and a span."""
    refitted: bool = False
    """Some of its weights have new values."""
    biased: bool = False
    """An output projection of its adds a constant that it did not."""
    zeros: float = 0.0
    """Share of the weights of its matrices that were set to zero."""
    stand_in: str = ""
    """What stands where it was replaced, alone or with its neighbours."""
    merged: str = ""
    """Which layers were merged into it, and how."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Consecutive layers that two plans treat differently."""

    layers: str
    first: str
    second: str


def layer_states(plan: Plan) -> list[LayerState]:
    """Return what a plan leaves of every base layer."""
    states: list[dict[str, Any]] = [{} for _ in range(plan.base.n_layers)]
    features: list[dict[str, tuple[int, ...]]] = [{} for _ in states]
    refitted: set[int] = set()
    biased: set[int] = set()
    for op in plan.ops:
        match op:
            case DropLayers() | Merge():
                for i in op.layers:
                    states[i] = {"layer": "removed", "attn": "removed", "mlp": "removed"}
            case DropSublayer():
                states[op.layer][op.which] = "removed"
            case Keep():
                _, index, which, what = op.axis.split(".")
                states[int(index)][which] = "trimmed"
                if what in ("read", "write"):
                    features[int(index)][f"{which}.{what}"] = op.units
                else:
                    states[int(index)]["note"] = f"{len(op.units)} {which} units kept"
                    states[int(index)][f"{which}_units"] = format_span(op.units)
            case Fold():
                states[op.layer] |= {"layer": "folded", "note": "a linear map is folded into its MLP"}
            case Replace():
                for i in op.layers:
                    states[i] = {"layer": "replaced", "attn": "removed", "mlp": "removed", "stand_in": op.stand_in}
                states[op.layers[0]]["note"] = f"{op.stand_in} stands here"
            case SetWeight():
                refitted.add(op.layer)
            case AddBias():
                biased.add(op.layer)
    for state in states:
        if state.get("attn") == state.get("mlp") == "removed" and state.get("layer") != "replaced":
            state.clear()  # nothing is left of it, whatever was done to it before
            state.update(layer="removed", attn="removed", mlp="removed")
    for state, found in zip(states, features, strict=True):
        left = {kind: units for kind, units in found.items() if state.get(kind.partition(".")[0]) == "trimmed"}
        if left:
            words = ", ".join(f"{kind.replace('.', ' ')}s {len(units)} features" for kind, units in left.items())
            spans = tuple((kind, format_span(units)) for kind, units in left.items())
            _remark(state, words, features=spans)
    for i, (merged, note) in _merges(plan).items():
        _remark(states[i], note, merged=merged)
    for i in refitted:
        _remark(states[i], "refitted", refitted=True)
    for i in biased:
        _remark(states[i], "bias added", biased=True)
    for i, share in _zeros(plan).items():
        _remark(states[i], f"{share:.1%} of its weights are zero", zeros=share)
    return [LayerState(**state) for state in states]


def _remark(state: dict[str, Any], note: str, **facts: Any) -> None:
    """Add to what is said of a layer, if it is still there."""
    if state.get("layer") not in ("removed", "replaced"):
        state.update(facts, note="; ".join(filter(None, (state.get("note"), note))))


def _merges(plan: Plan) -> dict[int, tuple[str, str]]:
    """Return what was merged into each base layer and how: in short, and as a note with the similarity it left."""
    found: dict[int, tuple[str, str]] = {}
    for stage in plan.stages:
        alike = {(row["into"], row["layers"]): row["similarity"] for row in stage.scores.get("merges", [])}
        for op in stage.ops:
            if isinstance(op, Merge) and op.mode != "keep_first":  # which leaves the base layer as it was
                short, note = found.get(op.into, ("", ""))
                layers = format_span(op.layers)
                known = alike.get((op.into, layers))
                how = op.mode if known is None else f"{op.mode}, similarity {known:.3f}"
                short = ", ".join(filter(None, (short, f"{layers} ({op.mode})")))
                note = "; ".join(filter(None, (note, f"layers {layers} merged into it ({how})")))
                found[op.into] = short, note
    return found


def _zeros(plan: Plan) -> dict[int, float]:
    """Return the share of weights that the last stage to do so set to zero, by layer."""
    zeros: dict[int, int] = {}
    of: dict[int, int] = {}
    for row in next((s.scores["sparsity"] for s in reversed(plan.stages) if "sparsity" in s.scores), []):
        layer = int(row["matrix"].split(".")[1])
        zeros[layer] = zeros.get(layer, 0) + row["zeros"]
        of[layer] = of.get(layer, 0) + row["of"]
    return {layer: zeros[layer] / of[layer] for layer in of}


def diff_plans(first: Plan, second: Plan) -> list[Difference]:
    """Return where two plans for the same base differ, in runs of layers that differ alike."""
    rows = [
        (i, _words(a), _words(b))
        for i, (a, b) in enumerate(zip(layer_states(first), layer_states(second), strict=True))
    ]
    changes = {(a, b): [i for i, x, y in rows if (x, y) == (a, b)] for _, a, b in rows if a != b}
    return [Difference(format_span(layers), a, b) for (a, b), layers in changes.items()]


def _words(state: LayerState) -> str:
    if state.layer in ("removed", "replaced"):
        return f"replaced by {state.stand_in}" if state.stand_in else state.layer
    sublayers = (("attn", state.attn, state.attn_units), ("mlp", state.mlp, state.mlp_units))
    parts = [f"{name} {value} {units}".strip() for name, value, units in sublayers if value != "kept"]
    parts += [f"{kind} {span}" for kind, span in state.features]
    zeros = [f"{state.zeros:.1%} zero"] if state.zeros else []
    merged = [f"merged with {state.merged}"] if state.merged else []
    weights = [*["refitted"] * state.refitted, *["bias added"] * state.biased]
    return ", ".join([state.layer, *parts, *merged, *weights, *zeros])
