"""Which class can hold a pruned model: a stock one if its config can say all shapes, else an uneven twin.

A plain config is proposed, then probed: built on meta and compared shape by shape. May import `models`.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from torch import nn

from sned.models import modeling_sned
from sned.models.folding import output_projection
from sned.models.geometry import build_axes, way_in, way_out
from sned.models.modeling_sned import FACTS, PREFIX, StandIn

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from sned.models.family import Sublayer
    from sned.models.geometry import Axis
    from sned.models.view import View

_MLP_WIDTHS = ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size")
_GROUP_COUNTS = ("num_key_value_heads", "num_kv_heads")
_HEADS = "num_attention_heads"
_BRANCHES: tuple[tuple[Sublayer, str, str], ...] = (("attn", "attention", "attn.group"), ("mlp", "mlp", "mlp.hidden"))
"""A sublayer, its name in a config, and the kind of its axis."""
_FEATURES = {"attn.read": "attn_in", "attn.write": "attn_out", "mlp.read": "mlp_in", "mlp.write": "mlp_out"}
"""What a layer's config calls the features of the stream that its branches read and write, by kind of axis."""
MODULE_FILE = "modeling_sned.py"


@dataclass(frozen=True, slots=True)
class Proposal:
    """The config to save, and whether stock classes load it."""

    config: PretrainedConfig
    stock: bool


def propose(view: View) -> Proposal:
    """Return a plain config if stock classes build exactly this model from it, else one for an uneven twin."""
    plain = _plain_config(view)
    layers = _build(view, plain).get_submodule(view.family.layers)
    uniform = _uniform_config(view, plain, layers)
    if uniform is not None and _shapes_match(view, uniform):
        uniform.architectures = [_stock_name(view.model)]
        return Proposal(uniform, stock=True)
    return Proposal(_uneven_config(view, plain, layers), stock=False)


def _stock_name(thing: object) -> str:
    return type(thing).__name__.removeprefix(PREFIX)


def _stock_class(thing: object) -> Any:
    """Return the class of a model or config, or the stock one that it is an uneven twin of."""
    name = type(thing).__name__
    return getattr(transformers, name.removeprefix(PREFIX)) if name.startswith(PREFIX) else type(thing)


def _plain_config(view: View) -> Any:
    """Return the view's config without what it may say of single layers."""
    config = view.model.config
    stock = _stock_class(config)
    if stock is type(config):
        return copy.deepcopy(config)
    computed = {name for name, value in vars(stock).items() if isinstance(value, property)}
    left_out = {"model_type", "auto_map", "per_layer_config", FACTS} | computed
    return stock.from_dict({name: value for name, value in config.to_dict().items() if name not in left_out})


def _build(view: View, config: PretrainedConfig) -> Any:
    """Return the stock model that a config describes, on meta."""
    with torch.device("meta"):
        return _stock_class(view.model)._from_config(copy.deepcopy(config))


def _axes(view: View, layer: nn.Module) -> dict[str, Axis]:
    """Return the axes that a layer has now, by kind."""
    geometry = view.geometry
    axes = build_axes(layer, 0, view.family, geometry.n_heads // geometry.n_kv_groups, geometry.head_dim)
    return {axis.kind: axis for axis in axes}


def _uniform_config(view: View, plain: Any, stock_layers: Any) -> Any | None:
    """Return the view's config with the widths that all its layers share, or None if they share none."""
    config = copy.deepcopy(plain)
    here = [_axes(view, layer) for layer in view.layers.values()]
    there = [_axes(view, layer) for layer in stock_layers]
    for _, _, kind in _BRANCHES:
        sizes, dense = ([axes[kind].size if kind in axes else None for axes in side] for side in (here, there))
        if sizes == dense:
            continue
        size = sizes[0]
        if size is None or set(sizes) != {size}:
            return None
        if kind == "attn.group":
            if "head_dim" not in vars(config):
                return None  # the class computes it from the number of heads
            config.head_dim = view.geometry.head_dim
        for name, per_unit in _counts(view, config, kind).items():
            setattr(config, name, size * per_unit)
    return config


def _counts(view: View, config: Any, kind: str) -> dict[str, int]:
    """Return the config entries that follow from the size of an axis, per unit; the first counts the units."""
    geometry, alias = view.geometry, config.attribute_map
    if kind == "mlp.hidden":
        name = next((name for name in _MLP_WIDTHS if hasattr(config, name)), _MLP_WIDTHS[0])
        return {alias.get(name, name): 1}
    groups = {alias.get(n, n): 1 for n in _GROUP_COUNTS if getattr(config, n, None) == geometry.n_kv_groups}
    return groups | {alias.get(_HEADS, _HEADS): geometry.n_heads // geometry.n_kv_groups}


def _shapes_match(view: View, config: Any) -> bool:
    """Build the model that a config describes on meta, and compare every parameter's shape with the view's."""
    try:
        config.validate()
        probe = _build(view, config)
    except (ValueError, TypeError, KeyError, StrictDataclassError):
        return False
    return _shapes(probe) == _shapes(view.model)


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(param.shape) for name, param in model.named_parameters()}


def _uneven_config(view: View, plain: Any, stock_layers: Any) -> PretrainedConfig:
    """Return a config that says what differs by layer in the schema of transformers, and beside it the facts.

    Args:
        view: What is to be saved.
        plain: Its config, of the stock class.
        stock_layers: The layers that it describes.
    """
    dense = _axes(view, stock_layers[0])
    per_layer = _per_layer(view, plain, dense)
    document = {**plain.to_dict(), "per_layer_config": per_layer, FACTS: _facts(view, plain, stock_layers)}
    document.pop("model_type")
    for kind, axis in _widths(dense).items():
        width = next(iter(_counts(view, plain, kind)))
        if document.get(width) is None:
            document[width] = axis.size  # what varies must have a value for all
    document |= {key: None for own in per_layer.values() for key in own if key in _FEATURES.values()}
    heads = plain.attribute_map.get(_HEADS, _HEADS)
    if any(heads in own for own in per_layer.values()):
        document["head_dim"] = view.geometry.head_dim
    made = getattr(modeling_sned, PREFIX + _stock_name(plain)).from_dict(document)
    made.architectures = [PREFIX + _stock_name(view.model)]
    stem = MODULE_FILE.removesuffix(".py")
    made.auto_map = {
        "AutoConfig": f"{stem}.{type(made).__name__}",
        "AutoModel": f"{stem}.{PREFIX}{_stock_name(view.model.base_model)}",
        "AutoModelForCausalLM": f"{stem}.{made.architectures[0]}",
    }
    return made


def _widths(axes: dict[str, Axis]) -> dict[str, Axis]:
    """Return those axes whose sizes a config can say."""
    return {kind: axes[kind] for _, _, kind in _BRANCHES if kind in axes}


def _per_layer(view: View, plain: Any, dense: dict[str, Axis]) -> dict[int, dict[str, Any]]:
    """Return what differs from the plain config, by layer position.

    What is gone, or replaced by a simple map, has width one. That is what its slot in the cache holds; and stock
    classes, which would fill the gap with random weights, stop at a width that varies.
    """
    found: dict[int, dict[str, Any]] = {}
    for position, index in enumerate(view.layers):
        axes, own = _axes(view, view.layer(index)), {}
        for kind, axis in _widths(dense).items():
            counts = _counts(view, plain, kind)
            if kind not in axes:
                own |= dict.fromkeys(counts, 1)
            elif axes[kind].size != axis.size:
                own |= {name: axes[kind].size * per_unit for name, per_unit in counts.items()}
        gone = [name for _, name, kind in _BRANCHES if kind in dense and kind not in axes]
        if gone and not view.is_replaced(index):
            own["skip"] = gone
        own |= {_FEATURES[kind]: chosen.bits for kind, chosen in view.routes(index).items()}
        if own:
            found[position] = own
    return found


def _facts(view: View, plain: Any, stock_layers: Any) -> dict[str, Any]:
    """Return what the rebuilding file must know beside `per_layer_config`, in the terms of `modeling_sned`."""
    facts: dict[str, Any] = {"path": view.family.layers}
    layers = list(view.layers)
    if stand_ins := _stand_ins(view):
        facts |= {"stand_ins": stand_ins, "returns_tuple": view.family.returns_tuple}
    if biases := _added_biases(view, stock_layers):
        facts["biases"] = biases
    whole = {position: index for position, index in enumerate(layers) if not view.is_replaced(index)}
    dense = _axes(view, stock_layers[0])
    for which, name, kind in _BRANCHES:
        if not whole or kind not in dense:
            continue
        silent = way_out(view.family, which)
        passing = [part for part in view.parts(next(iter(whole.values())), which) if part != silent]
        facts[name] = {"module": silent, "passing": passing}
        sizes = {p: axes[kind].size for p, i in whole.items() if kind in (axes := _axes(view, view.layer(i)))}
        narrow = [position for position, size in sizes.items() if size != dense[kind].size]
        if narrow:
            facts[name] |= {"width": next(iter(_counts(view, plain, kind))), "sizes": _sizes(dense[kind])}
        facts[name] |= _route_facts(view, which, list(whole.values()), dense)
        if narrow and which == "attn":
            twin = stock_layers[narrow[0]].get_submodule(silent)
            facts[name] |= _own_counts(view.branch(whole[narrow[0]], which), twin, sizes[narrow[0]])
    return facts


def _route_facts(view: View, which: Sublayer, layers: list[int], dense: dict[str, Axis]) -> dict[str, Any]:
    """Say which modules of a branch read and write the stream, and with which parameters, where any does so in part."""
    routed = {kind for index in layers for kind in view.routes(index)}
    reads, writes = (f"{which}.read", way_in(view.family, which)), (f"{which}.write", way_out(view.family, which))
    facts: dict[str, Any] = {}
    for name, (kind, module) in (("reads", reads), ("writes", writes)):
        if kind in routed:
            sizes = [{"param": slot.param, "dim": slot.dim} for slot in dense[kind].slots]
            facts[name] = {"features": _FEATURES[kind], "module": module, "sizes": sizes}
    return facts


def _added_biases(view: View, stock_layers: Any) -> dict[str, list[str]]:
    """Name the linear modules, by position of their layer, that have a bias and had none in the stock class."""
    names = [output_projection(view, which) for which, _, _ in _BRANCHES]
    added: dict[str, list[str]] = {}
    for position, layer in enumerate(view.layers.values()):
        here = dict(layer.named_parameters())
        there = dict(stock_layers[position].named_parameters())
        if own := [name for name in names if f"{name}.bias" in here and f"{name}.bias" not in there]:
            added[str(position)] = own
    return added


def _stand_ins(view: View) -> list[dict[str, Any]]:
    """Say where something simple stands for layers, of which kind and size it is."""
    placed = enumerate(view.layers.values())
    return [
        {"layer": position, "spec": layer.spec, "shape": list(layer.weight.shape)}
        for position, layer in placed
        if isinstance(layer, StandIn)
    ]


def _sizes(axis: Axis) -> list[dict[str, Any]]:
    """Say how much of which parameter each unit of an axis owns."""
    owned: dict[tuple[str, int], int] = {}
    for slot in axis.slots:
        owned[slot.param, slot.dim] = owned.get((slot.param, slot.dim), 0) + slot.block
    return [{"param": param, "dim": dim, "per_unit": count} for (param, dim), count in owned.items()]


def _own_counts(attn: Any, twin: Any, groups: int) -> dict[str, dict[str, int]]:
    """Return, per KV group, the counts that a narrowed attention, or a config of its own, has unlike a stock one."""
    own: dict[str, dict[str, int]] = {}
    mine, theirs = vars(attn), vars(twin)
    if counts := {k: v for k, v in mine.items() if type(v) is int and k != "layer_idx" and theirs.get(k) != v}:
        own["attributes"] = {name: count // groups for name, count in counts.items()}
    names = [name for name in (_HEADS, *_GROUP_COUNTS) if hasattr(mine.get("config"), name)]
    heads = {name: getattr(attn.config, name) for name in names}
    if counts := {name: count for name, count in heads.items() if count != getattr(twin.config, name)}:
        own["own_config"] = {name: count // groups for name, count in counts.items()}
    return own
