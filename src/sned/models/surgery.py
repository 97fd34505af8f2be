"""Cutting a live model: every change that an op can make, in base coordinates, on real and on meta weights alike.

Each function leaves model and config consistent, so that the model runs, decodes with a cache, and saves. May
import its neighbours in `models`.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from sned.errors import PlanError, UnsupportedModelError
from sned.models.modeling_sned import Features, NoMixer, NoMLP, StandIn, route

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from transformers import PretrainedConfig

    from sned.models.family import Sublayer
    from sned.models.geometry import Axis, Slot
    from sned.models.view import View
    from sned.models.weights import Edit, Weights


def drop_layers(view: View, layers: Iterable[int]) -> None:
    """Remove whole decoder layers.

    Raises:
        PlanError: a layer is not there any more, or none would be left.
    """
    gone = set(layers)
    for i in gone:
        view.layer(i)
    kept = [i for i in view.layers if i not in gone]
    if not kept:
        raise PlanError("this would remove every decoder layer")
    _cut_config(view, [position for position, i in enumerate(view.layers) if i not in gone])
    view.set_layers({i: view.layers[i] for i in kept})


def drop_sublayer(view: View, layer: int, which: Sublayer) -> None:
    """Remove the attention or the MLP of one layer, with the norms that serve it alone.

    The other branch stays; where it is gone already, so is the layer now.

    Raises:
        PlanError: the sublayer is not there any more, or no layer would be left.
        UnsupportedModelError: the MLP is a mixture of experts.
    """
    require_sublayer(view, layer, which)
    if not view.has_branch(layer, "mlp" if which == "attn" else "attn"):
        drop_layers(view, [layer])
        return
    block, family, names = view.layer(layer), view.family, view.parts(layer, which)
    gone = tuple(f"{name}." for name in names)
    stand_ins: dict[str, nn.Module] = {family.mlp or family.down: NoMLP()}
    if which == "attn":
        stand_ins = {family.attn: NoMixer(list(view.layers).index(layer))}
    for name in names:
        setattr(block, name, stand_ins.get(name, nn.Identity()))

    def change(weights: Weights) -> None:
        for name in [n for n in weights if n.startswith(gone)]:
            del weights[name]

    view.edit(layer, change, structural=True)


def keep(view: View, axis: Axis, units: Sequence[int]) -> None:
    """Keep only these base units of an axis, of those that are still there.

    Raises:
        PlanError: a unit does not exist, or none of those still there would be kept.
        UnsupportedModelError: heads of a model with ALiBi are to be cut.
    """
    require_sublayer(view, axis.layer, axis.which)
    if axis.kind == "attn.group" and view.heads_carry_positions:
        raise UnsupportedModelError(
            "this model biases its attention by the number of the head (ALiBi), so no head can be cut.",
            hint="cut MLP channels or whole attentions",
        )
    alive = view.alive[axis.name]
    wanted = set(units)
    if beyond := [u for u in wanted if not 0 <= u < axis.size]:
        raise PlanError(f"{axis.name} has units 0-{axis.size - 1}, not {beyond[0]}")
    current = [position for position, unit in enumerate(alive) if unit in wanted]
    if not current:
        raise PlanError(f"this would remove every unit of {axis.name}", hint="drop the sublayer instead")
    view.edit(axis.layer, _cut(axis, len(alive), current), structural=True)
    view.alive[axis.name] = tuple(alive[position] for position in current)
    if axis.kind == "attn.group":
        _set_head_counts(view, axis.layer, len(current))
    elif axis.kind.endswith((".read", ".write")) and len(current) < len(alive):
        _route(view, axis, current)


def replace(view: View, layers: Sequence[int], spec: str, tensor: torch.Tensor) -> None:
    """Put one simple map of the residual stream (see `modeling_sned.stand_in`) in the place of consecutive layers.

    Raises:
        PlanError: the layers are not consecutive present layers, or the tensor has another shape than such maps have.
    """
    first, *rest = sorted(layers)
    start = require_consecutive(view, layers)
    require_shape(view, spec, tensor)
    block = view.layer(first)
    like = next(block.parameters())  # on meta, where layers are read from a source
    layer = StandIn(spec, tensor.shape, start, returns_tuple=view.family.returns_tuple).train(block.training)
    weight = tensor.contiguous().to(view.dtype, copy=True)  # the plan keeps its own
    layer.weight = nn.Parameter(weight.to(like.device), requires_grad=False)
    view.set_layers({**view.layers, first: layer})
    view.rebase(first, {"weight": weight.to(view.device)})
    for axis in [name for name, axis in view.geometry.axes.items() if axis.layer == first]:
        view.alive.pop(axis, None)
    if rest:
        drop_layers(view, rest)


def require_shape(view: View, spec: str, tensor: torch.Tensor) -> None:
    """Make sure that a tensor is what a map that stands for layers consists of.

    Raises:
        PlanError: it is not.
    """
    hidden, shape = view.geometry.hidden, list(tensor.shape)
    wanted = {"linear": [hidden, hidden], "shift": [hidden], "scale": [hidden]}.get(spec)
    if wanted is None:  # two matrices of any rank, one upon the other
        fits = len(shape) == 2 and shape[0] > 0 and shape[0] % 2 == 0 and shape[1] == hidden
    else:
        fits = shape == wanted
    if not fits:
        raise PlanError(f"a {spec} map of this model is {wanted or f'[2 * rank, {hidden}]'} in size, not {shape}")


def require_consecutive(view: View, layers: Sequence[int]) -> int:
    """Make sure that layers are present and follow each other, and return the position of the first.

    Raises:
        PlanError: they do not.
    """
    wanted, present = sorted(layers), list(view.layers)
    for i in wanted:
        view.layer(i)
    start = present.index(wanted[0])
    if present[start : start + len(wanted)] != wanted:
        raise PlanError(f"layers {wanted} are not consecutive, so no single map can replace them")
    return start


def require_sublayer(view: View, layer: int, which: Sublayer) -> None:
    """Make sure that a sublayer is still there, and can be cut.

    Raises:
        PlanError: it was removed, or its layer was.
        UnsupportedModelError: it is a mixture of experts.
    """
    view.layer(layer)
    if which == "mlp" and view.family.experts:
        raise UnsupportedModelError(
            f"layer {layer} has a mixture of experts, which sned cuts only as a whole layer.",
            hint="use a method that removes whole layers",
        )
    gone = view.is_replaced(layer) or isinstance(view.branch(layer, which), NoMixer | NoMLP)
    if gone:
        raise PlanError(f"the {which} of layer {layer} was already removed")


def _cut(axis: Axis, n_alive: int, current: list[int]) -> Edit:
    """Return the edit that selects positions `current` of `n_alive` units in every slot of an axis."""
    by_dim: dict[tuple[str, int], list[Slot]] = {}
    for slot in sorted(axis.slots, key=lambda s: s.offset):
        by_dim.setdefault((slot.param, slot.dim), []).append(slot)
    positions = torch.tensor(current)

    def rows(slot: Slot) -> torch.Tensor:
        # an offset counts units that precede the slot, of which as large a share is gone
        offset = slot.offset * n_alive // axis.size
        return (offset + positions[:, None] * slot.block + torch.arange(slot.block)).flatten()

    def change(weights: Weights) -> None:
        for (param, dim), slots in by_dim.items():
            index = torch.cat([rows(slot) for slot in slots])
            weights[param] = weights[param].index_select(dim, index.to(weights[param].device))
        added = f"{axis.taps[0]}.bias"
        if axis.tap_output and (added, 0) not in by_dim and added in weights:  # since the axis was made
            weights[added] = weights[added].index_select(0, positions.to(weights[added].device))

    return change


def _route(view: View, axis: Axis, current: list[int]) -> None:
    """Let a sublayer read or write only so many of the features of the stream that it does now, given by position."""
    hidden, before = view.geometry.hidden, view.routes(axis.layer).get(axis.kind)
    features = range(hidden) if before is None else before.features
    chosen = Features([features[position] for position in current], hidden)
    if axis.tap_output:
        route(view.branch(axis.layer, axis.which), writes=chosen)
    else:
        route(view.gateway(axis.layer, axis.which), reads=chosen)


def _set_head_counts(view: View, layer: int, groups: int) -> None:
    """Tell the attention module how many heads it has left."""
    attn: Any = view.branch(layer, "attn")
    geometry = view.geometry
    heads = groups * (geometry.n_heads // geometry.n_kv_groups)
    width = heads * geometry.head_dim
    counts = {"num_heads": heads, "num_key_value_heads": groups, "num_kv_heads": groups}
    for name, value in {**counts, "embed_dim": width, "split_size": width}.items():
        if name in vars(attn):
            setattr(attn, name, value)
    if view.family.config_in_forward:
        attn.config = copy.copy(attn.config)
        attn.config.num_attention_heads, attn.config.num_key_value_heads = heads, groups


_NOT_PER_LAYER = frozenset({"architectures", "keys_to_ignore_at_inference"})


def _cut_config(view: View, positions: list[int]) -> None:
    """Set the depth of a config, and cut every list that has one entry per layer."""
    config: PretrainedConfig = view.model.config
    depth = len(view.layers)
    for name, value in config.to_dict().items():
        per_layer = isinstance(value, list) and len(value) == depth and name not in _NOT_PER_LAYER
        if per_layer and not name.endswith(("token_id", "token_ids")):
            setattr(config, name, [value[p] for p in positions])
    if getattr(config, "mlp_only_layers", None) is not None:
        _renumber_dense_layers(view, config, positions)
    setattr(config, config.attribute_map.get("num_hidden_layers", "num_hidden_layers"), len(positions))


def _renumber_dense_layers(view: View, config: Any, positions: list[int]) -> None:
    """Rewrite the rule that says which layers of a mixture of experts are dense: it counts positions."""
    layers = list(view.layers.values())
    dense = [new for new, old in enumerate(positions) if not hasattr(getattr(layers[old], "mlp", None), "experts")]
    config.mlp_only_layers, config.decoder_sparse_step = dense, 1
