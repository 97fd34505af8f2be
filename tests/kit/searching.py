"""Candidates of every kind, and what they cost by the plainest means there are: surgery and a model's own forward."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from kit.compare import logits
from kit.planning import calibration
from kit.tiny import DENSE_NAMES, HIDDEN, LAYERS, family_of, make_model, stand_ins
from sned.models.view import View
from sned.plans.ops import DropLayers, DropSublayer, Fold, Keep, Op, Replace
from sned.runtime.context import Context
from sned.runtime.journal import Journal

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from transformers import PreTrainedModel

    from sned.data.tokens import Tokens
    from sned.models.family import Sublayer

TENSORS = {
    **stand_ins(9),
    "map": torch.eye(HIDDEN) + 0.2 * torch.randn(HIDDEN, HIDDEN, generator=torch.Generator().manual_seed(9)),
    "broken": torch.full((HIDDEN, HIDDEN), torch.nan),
}
BROKEN = Replace(layers=[2], tensor="broken")
"""Makes everything after layer 2 NaN."""


def block(which: Sublayer, layer: int) -> DropSublayer:
    return DropSublayer(layer=layer, which=which)


def blocks(name: str) -> dict[str, tuple[Op, ...]]:
    """Every single attention and MLP that can go, in the order that breaks ties."""
    kinds: tuple[Sublayer, ...] = ("attn", "mlp") if name in DENSE_NAMES else ("attn",)
    return {f"{which}.{i}": (block(which, i),) for which in kinds for i in range(LAYERS)}


def assorted(name: str) -> list[tuple[Op, ...]]:
    """Candidates of every kind that a family allows: none, one and several ops, twins among them."""
    attn, both = block("attn", 3), Replace(layers=[1, 2], tensor="map")
    some: list[tuple[Op, ...]] = [(), (attn,), (DropLayers(layers=[0]),), (DropLayers(layers=[1, 4]),), (both,)]
    some += [(Keep(axis="layers.2.attn.group", units=[0]),), (block("attn", 0), attn), (both, attn), (attn,)]
    some += [(DropLayers(layers=[3, 4]),), (Replace(layers=[4], tensor="map"), block("attn", 0))]
    some += [(Replace(layers=[2, 3], spec="shift", tensor="shift"),)]
    some += [(Replace(layers=[2], spec="lowrank", tensor="lowrank"), attn)]
    if name in DENSE_NAMES:
        narrow = Keep(axis="layers.4.mlp.hidden", units=range(5, 30))
        some += [(block("mlp", 2),), (narrow,), (block("mlp", 3), attn), (narrow, DropLayers(layers=[3]), attn)]
        some += (
            [] if family_of(name).mlp_post else [(Fold(layer=2, tensor="map"),), (Fold(layer=2, tensor="map"), attn)]
        )
    return some


def cut(model: PreTrainedModel, ops: Sequence[Op]) -> View:
    """Return a view of a model after some ops."""
    view = View(model)
    for op in ops:
        op.apply(view, TENSORS)
    return view


def loss(model: PreTrainedModel, ids: torch.Tensor) -> float:
    """The mean loss of a model by its own forward pass, in float64."""
    chances = logits(model, ids)[:, :-1].double().log_softmax(-1)
    return -float(chances.gather(2, ids[:, 1:, None]).mean())


def context_of(view: View, text: Tokens | None = None, folder: Path | None = None, **given: Any) -> Context:
    """Return what a method would be given, with the tensors of these candidates."""
    journal = Journal(folder)
    return Context(view, view.fork(), text or calibration(), journal=journal, tensors=dict(TENSORS), **given)


def fresh(name: str, seed: int = 0) -> View:
    return View(make_model(name, seed))
