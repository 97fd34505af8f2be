"""Finding the family of a model: its row in the table, or a guess that the user must accept.

May import `family` and `families`.
"""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING

from torch import nn

from sned.errors import UnsupportedModelError
from sned.models.families import FAMILIES
from sned.models.family import Family

if TYPE_CHECKING:
    from collections.abc import Iterable

    from transformers import PreTrainedModel


UNEVEN = "sned_"
"""Prefix of the model type of a checkpoint whose layers differ."""


def resolve_family(model: PreTrainedModel, *, trust_inferred: bool = False) -> Family:
    """Return the row that describes a model, checked against the variants that the row does not cover.

    Raises:
        UnsupportedModelError: the model type is unknown and no guess is accepted, or the variant has no plain
            residual stream.
    """
    kind = model.config.model_type.removeprefix(UNEVEN)
    if kind in FAMILIES:
        if not getattr(model.config, "do_layer_norm_before", True):
            raise UnsupportedModelError(
                f"this {kind} model normalises after each residual addition (do_layer_norm_before is false), "
                "so its layers do not share a residual stream that can be cut.",
                hint="use a variant with pre-normalisation",
            )
        return FAMILIES[kind]
    guess = infer_family(model)
    known = ", ".join(sorted(FAMILIES))
    if guess is None:
        raise UnsupportedModelError(
            f"model type {kind!r} is unknown, and its layers look like no known decoder.",
            hint=f"known types: {known}",
        )
    if not trust_inferred:
        raise UnsupportedModelError(
            f"model type {kind!r} is unknown. From its module names it looks like\n    {describe(kind, guess)}",
            hint=f"if that is right, repeat with --trust-inferred; known types: {known}",
        )
    return guess


def infer_family(model: PreTrainedModel) -> Family | None:
    """Return the first known row whose every module exists in the model's decoder layers, if any.

    Rows that name more modules are tried first, so that a fused projection is not taken for a separate one.
    """
    lists = {name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    if not lists:
        return None
    longest = max(lists, key=lambda name: len(lists[name]))
    for row in sorted(set(FAMILIES.values()), key=_specificity, reverse=True):
        same_scale = row.multiplier == _multiplier(model)
        if row.layers == longest and same_scale and _fits_all(row, lists[longest], model):
            return row
    return None


def describe(kind: str, family: Family) -> str:
    """Return a row as it would be pasted into the table of families."""
    default = Family()
    changed = [
        f"{f.name}={getattr(family, f.name)!r}"
        for f in fields(Family)
        if getattr(family, f.name) != getattr(default, f.name)
    ]
    return f'"{kind}": Family({", ".join(changed)}),'


def _specificity(family: Family) -> int:
    return len(_modules(family))


def _multiplier(model: PreTrainedModel) -> str | None:
    """Return the known config attribute that scales what the model's branches add; no module shows it."""
    names = {row.multiplier for row in FAMILIES.values()} - {None}
    return next((name for name in names if hasattr(model.config, str(name))), None)


def _modules(family: Family) -> list[str]:
    attn = [family.qkv] if family.qkv else [family.q, family.k, family.v]
    names = [f"{family.attn}.{name}" for name in [*attn, family.o]]
    if family.full_qk_norm:
        names.append(f"{family.attn}.q_norm")
    mlp = [] if family.experts else [family.gate_up] if family.gate_up else [family.gate, family.up]
    mlp += ["experts"] if family.experts else [family.down]
    names += [f"{family.mlp}.{name}" if family.mlp else str(name) for name in mlp if name]
    return names + [name for name in (family.attn_post, family.mlp_post) if name and name != "post_attention_layernorm"]


def _fits_all(family: Family, layers: Iterable[nn.Module], model: PreTrainedModel) -> bool:
    """Tell whether every layer has the modules of a row; of experts, one layer is enough, since some may be dense."""
    fits = [_fits(family, layer, model) for layer in layers]
    return any(fits) if family.experts else all(fits)


def _fits(family: Family, layer: nn.Module, model: PreTrainedModel) -> bool:
    present = {name for name, _ in layer.named_modules()}
    if not all(name in present for name in _modules(family)):
        return False
    if family.full_qk_norm:
        # a norm over all heads has a weight for each of their features; one per head serves a single head
        heads = int(model.config.num_attention_heads)
        weight = layer.get_parameter(f"{family.attn}.q_norm.weight")
        return heads > 1 and weight.numel() == layer.get_parameter(f"{family.attn}.{family.q}.weight").shape[0]
    return True
