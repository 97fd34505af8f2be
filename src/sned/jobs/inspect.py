"""What a model is, what of it can be pruned and why not, and what that takes. May import everything below `jobs`.

Weights are left on disk where the checkpoint allows it, so that a model too large for the machine can be inspected.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from sned.canon import format_span
from sned.checkpoint.locate import locate
from sned.checkpoint.model import resolve_dtype
from sned.checkpoint.shards import ShardReader
from sned.errors import UnsupportedModelError
from sned.jobs.forecast import memory_needed
from sned.jobs.session import Recorder, Session, open_model
from sned.models.count import count, head_flops, layer_kv_values
from sned.models.families import FAMILIES
from sned.models.infer import UNEVEN, describe
from sned.models.view import View

if TYPE_CHECKING:
    from pathlib import Path

    from sned.jobs.request import LoadRequest
    from sned.progress import Progress

PARTS = ("embeddings", "attention", "mlp", "norms", "head", "other")


def inspect(load: LoadRequest, progress: Progress) -> dict[str, Any]:
    """Return the facts about a model; JSON.

    Raises:
        CheckpointError: files are missing or corrupt.
        UnsupportedModelError: the architecture is unknown and no guess is accepted.
    """
    folder, view = open_to_look(load, Session(Recorder(progress)))
    geometry, totals = view.geometry, count(view)
    kind = geometry.model_type.removeprefix(UNEVEN)
    return {
        "model": load.model,
        "folder": str(folder),
        "model_type": geometry.model_type,
        "family": {"known": kind in FAMILIES, "row": describe(kind, view.family)},
        "dtype": str(view.dtype).removeprefix("torch."),
        "bytes_on_disk": ShardReader(folder).total_bytes,
        "sizes": _sizes(view),
        "total": {
            "params": totals.params,
            "body_params": totals.body_params,
            "flops_per_token": totals.flops_per_token,
            "kv_bytes_per_token": totals.kv_bytes_per_token,
        },
        "parts": parts(view),
        "prunable": prunable(view),
        "memory_bytes": {
            "loaded": memory_needed(view, streamed=False),
            "streamed": memory_needed(view, streamed=True),
        },
    }


def _sizes(view: View) -> dict[str, Any]:
    geometry = view.geometry
    return {
        "layers": geometry.n_layers,
        "hidden": geometry.hidden,
        "heads": geometry.n_heads,
        "kv_groups": geometry.n_kv_groups,
        "head_dim": geometry.head_dim,
        "mlp": sorted({axis.size for axis in geometry.axes.values() if axis.kind == "mlp.hidden"}),
        "vocabulary": geometry.vocab,
        "positions": getattr(view.model.config, "max_position_embeddings", None),
    }


def parts(view: View) -> dict[str, dict[str, int]]:
    """Return parameters, floating-point operations and cache bytes per token of each part of a model.

    Parts without a parameter of their own are left out, but for the head, which may share the embeddings'.
    """
    found = {part: {"params": 0, "flops_per_token": 0, "kv_bytes_per_token": 0} for part in PARTS}
    for i, layer in view.layers.items():
        for name, param in layer.named_parameters():
            _add(found[layer_part(view, name, param.dim())], param, view.geometry.active_expert_ratio)
        found["attention"]["kv_bytes_per_token"] += layer_kv_values(view, i) * view.dtype.itemsize
    head = view.model.get_output_embeddings()
    seen = {id(param) for layer in view.layers.values() for param in layer.parameters()}
    for module in view.model.modules():
        for param in module.parameters(recurse=False):
            if id(param) not in seen:
                seen.add(id(param))
                part = "head" if module is head else "embeddings" if isinstance(module, nn.Embedding) else None
                found[part or ("norms" if param.dim() == 1 else "other")]["params"] += param.numel()
    found["head"]["flops_per_token"] = head_flops(view)
    return {part: sizes for part, sizes in found.items() if any(sizes.values())}


def layer_part(view: View, name: str, dims: int) -> str:
    """Return the part that a parameter of a decoder layer belongs to."""
    family = view.family
    mlp = (family.mlp,) if family.mlp else (family.up, family.down, *filter(None, (family.gate, family.gate_up)))
    if name.startswith(f"{family.attn}."):
        return "attention"
    if name.startswith(tuple(f"{module}." for module in mlp)):
        return "mlp"
    # a bare weight is that of a map in a layer's place
    return "norms" if dims == 1 and name != "weight" else "other"


def prunable(view: View) -> list[dict[str, Any]]:
    """Return what can be cut, whether it can, and what a user should know about it."""
    family, geometry = view.family, view.geometry
    obstacles: dict[str | None, list[int]] = {}
    for i in view.layers:
        obstacles.setdefault(view.fold_obstacle(i), []).append(i)
    foldable = obstacles.pop(None, [])
    folding = "; ".join(f"layers {format_span(layers)}: {reason}" for reason, layers in obstacles.items())
    experts = "its MLP is a mixture of experts; only whole layers and attention can go"
    exact = "" if "attn.group" not in family.inexact else "cutting some changes the others: a norm spans all heads"
    mlp = format_sizes(axis.size for axis in geometry.axes.values() if axis.kind == "mlp.hidden")
    return [
        _row(
            "whole layers", True, f"{geometry.n_layers}; the first and the last stay unless a method is told otherwise"
        ),
        _row(
            "linear map folded into an MLP",
            bool(foldable),
            folding + ("; a linear layer of its own is used instead" if folding else ""),
        ),
        _row("attention of single layers", True, ""),
        _row("MLP of single layers", not family.experts, experts if family.experts else ""),
        _row("attention heads", True, f"{geometry.n_kv_groups} KV groups per layer" + (exact and f"; {exact}")),
        _row("MLP channels", not family.experts, experts if family.experts else f"{mlp} per layer"),
    ]


def format_sizes(sizes: Iterable[int]) -> str:
    """Return one size, or the smallest and the largest."""
    known = sorted(set(sizes))
    return f"{known[0]:,}" if len(known) == 1 else f"{known[0]:,} to {known[-1]:,}" if known else "none"


def open_to_look(load: LoadRequest, session: Session) -> tuple[Path, View]:
    """Open a model with its layers on disk, or, where they cannot be read one by one, as a mere outline."""
    try:
        model = open_model(replace(load, stream="on"), session, to_run=False)
    except UnsupportedModelError as error:
        if "--stream off" not in (error.hint or ""):
            raise
        return _outline(load, session)
    return model.folder, model.view


def _outline(load: LoadRequest, session: Session) -> tuple[Path, View]:
    """Build a model without any weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = locate(load.model, progress=session.progress)
    dtype = resolve_dtype(load.dtype, ShardReader(folder))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=dtype)
    model.tie_weights()
    return folder, View(model, source=_NoWeights(), trust_inferred=load.trust_inferred)


class _NoWeights:
    """The layers of an outline: they have shapes only."""

    def layer(self, index: int) -> dict[str, torch.Tensor]:
        raise UnsupportedModelError(f"the weights of layer {index} were not read", hint="use --stream off")

    def sample(self, index: int, name: str, count: int) -> torch.Tensor:
        return torch.zeros(count)


def _add(sizes: dict[str, int], param: nn.Parameter, active_expert_ratio: float) -> None:
    sizes["params"] += math.prod(param.shape)
    if param.dim() >= 2:
        # stacked experts have three dimensions, and a token meets a few of them
        sizes["flops_per_token"] += round(2 * param.numel() * (active_expert_ratio if param.dim() == 3 else 1.0))


def _row(what: str, possible: bool, note: str) -> dict[str, Any]:
    return {"what": what, "possible": possible, "note": note}
