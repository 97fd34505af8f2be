"""Which class can hold a pruned model: a stock one if its config can say all shapes, else an uneven twin.

A plain config is proposed, then probed: built on meta and compared shape by shape. May import `models`.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from sned.models import modeling_sned
from sned.models.modeling_sned import LinearLayer, NoMixer, NoMLP

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from sned.models.view import View

_MLP_WIDTHS = ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size")
_HEAD_COUNTS = ("num_key_value_heads", "num_kv_heads")
MODULE_FILE = "modeling_sned.py"


@dataclass(frozen=True, slots=True)
class Proposal:
    """The config to save, and whether stock classes load it."""

    config: PretrainedConfig
    stock: bool


def propose(view: View) -> Proposal:
    """Return a plain config if stock classes build exactly this model from it, else one for an uneven twin."""
    uniform = _uniform_config(view)
    if uniform is not None and _shapes_match(view, uniform):
        return Proposal(uniform, stock=True)
    return Proposal(_uneven_config(view), stock=False)


def _uniform_config(view: View) -> PretrainedConfig | None:
    """Return the view's config with the widths that all its layers share, or None if they share none."""
    if any(isinstance(layer, LinearLayer) for layer in view.layers.values()):
        return None
    config: Any = copy.deepcopy(view.model.config)
    geometry = view.geometry
    for kind, names in (("mlp.hidden", _MLP_WIDTHS), ("attn.group", _HEAD_COUNTS)):
        axes = [geometry.axes[f"layers.{i}.{kind}"] for i in view.layers if f"layers.{i}.{kind}" in geometry.axes]
        if not axes or all(len(view.alive[axis.name]) == axis.size for axis in axes):
            continue
        sizes = {len(view.alive[axis.name]) for axis in axes}
        if len(sizes) > 1 or len(axes) != len(view.layers):
            return None
        size = sizes.pop()
        if kind == "attn.group":
            if not hasattr(config, "head_dim"):
                return None
            config.head_dim = geometry.head_dim
            config.num_attention_heads = size * (geometry.n_heads // geometry.n_kv_groups)
        for name in names:
            if hasattr(config, name):
                setattr(config, name, size)
    return config


def _shapes_match(view: View, config: PretrainedConfig) -> bool:
    """Build the model that a config describes on meta, and compare every parameter's shape with the view's."""
    try:
        with torch.device("meta"):
            probe = type(view.model)._from_config(config)
    except (ValueError, TypeError, KeyError):
        return False
    return _shapes(probe) == _shapes(view.model)


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(param.shape) for name, param in model.named_parameters()}


def _uneven_config(view: View) -> PretrainedConfig:
    """Return a config whose recipe says how each layer differs from the stock one at its position."""
    family = view.family
    config: Any = copy.deepcopy(view.model.config)
    with torch.device("meta"):
        stock = type(view.model)._from_config(copy.deepcopy(config))
    stock_layers: Any = stock.get_submodule(family.layers)
    changes = {str(p): _change(layer, stock_layers[p]) for p, layer in enumerate(view.layers.values())}
    recipe = {
        "path": family.layers,
        "attn": family.attn,
        "mlp": family.mlp,
        "up": family.up,
        "down": family.down,
        "hidden": view.geometry.hidden,
        "returns_tuple": family.returns_tuple,
        "layers": {position: change for position, change in changes.items() if change},
    }
    name, prefix = type(view.model).__name__, modeling_sned.PREFIX
    config_name = type(config).__name__
    uneven = getattr(modeling_sned, prefix + config_name.removeprefix(prefix))
    document = {**config.to_dict(), modeling_sned.RECIPE: recipe}
    document.pop("model_type", None)
    made = uneven.from_dict(document)
    made.architectures = [prefix + name.removeprefix(prefix)]
    stem = MODULE_FILE.removesuffix(".py")
    decoder = type(view.model.base_model).__name__.removeprefix(prefix)
    made.auto_map = {
        "AutoConfig": f"{stem}.{type(made).__name__}",
        "AutoModel": f"{stem}.{prefix}{decoder}",
        "AutoModelForCausalLM": f"{stem}.{made.architectures[0]}",
    }
    return made


def _change(layer: nn.Module, stock: nn.Module) -> dict[str, Any]:
    """Return what distinguishes a layer from the stock one, in the terms of `modeling_sned.rebuild`."""
    if isinstance(layer, LinearLayer):
        return {"linear": True}
    without = {"attn" if isinstance(m, NoMixer) else "mlp" for m in layer.modules() if isinstance(m, NoMixer | NoMLP)}
    twins = dict(stock.named_modules())
    shapes: dict[str, list[int]] = {}
    attributes: dict[str, dict[str, int]] = {}
    own_config: dict[str, dict[str, int]] = {}
    for name, module in layer.named_modules():
        twin = twins.get(name)
        if twin is None or type(twin) is not type(module):
            continue
        for leaf, param in module.named_parameters(recurse=False):
            if param.shape != getattr(twin, leaf).shape:
                shapes[f"{name}.{leaf}"] = list(param.shape)
        if values := _integers_that_differ(module, twin):
            attributes[name] = values
        if values := _head_counts_that_differ(module, twin):
            own_config[name] = values
    found = {"without": sorted(without), "shapes": shapes, "attributes": attributes, "config": own_config}
    return {key: value for key, value in found.items() if value}


def _integers_that_differ(module: nn.Module, twin: nn.Module) -> dict[str, int]:
    mine, theirs = vars(module), vars(twin)
    return {k: v for k, v in mine.items() if type(v) is int and k != "layer_idx" and theirs.get(k) != v}


def _head_counts_that_differ(module: Any, twin: Any) -> dict[str, int]:
    mine, theirs = getattr(module, "config", None), getattr(twin, "config", None)
    if mine is None or theirs is None:
        return {}
    names = ("num_attention_heads", "num_key_value_heads")
    pairs = {n: (getattr(mine, n, None), getattr(theirs, n, None)) for n in names}
    return {n: a for n, (a, b) in pairs.items() if a != b and a is not None}
