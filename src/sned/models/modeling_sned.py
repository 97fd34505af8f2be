"""Modules that stand where pruning removed something, and the classes that rebuild a model of uneven layers.

This file is shipped beside the weights of models that stock classes cannot hold. It needs only torch and
transformers, and never imports sned.

What differs by layer stands in the config under `per_layer_config`, in the schema of transformers: the family's own
names of widths and head counts, `skip` for a branch that is gone, and `attn_in`, `attn_out`, `mlp_in` and `mlp_out`
for the features of the residual stream that a branch reads and writes, one bit each in hexadecimal. What that schema
cannot say stands under `sned_layers`: where the layers are, what stands for removed ones, which modules a branch
consists of, and which parameters its width is a size of.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
import transformers
from torch import nn

PREFIX = "Sned"
FACTS = "sned_layers"
"""Name of the config entry with the facts of the family that are needed to build uneven layers."""
_OVERRIDES = "_overrides_by_layer"


def _find_cache(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any | None:
    """Return the KV cache among a layer's arguments; families pass it under different names."""
    return next((a for a in (*kwargs.values(), *args) if hasattr(a, "get_seq_length")), None)


def _count_tokens(cache: Any | None, hidden: torch.Tensor, layer_idx: int) -> None:
    """Keep the length of a cache slot that holds no keys.

    The length of the whole cache, and with it positions and masks, is read from one slot, often the first. A
    one-wide zero key per token keeps that answer right; a slot that was allocated early has its own shape.
    """
    if cache is None:
        return
    slots = getattr(cache, "layers", [])
    keys = getattr(slots[layer_idx], "keys", None) if layer_idx < len(slots) else None
    heads, width = (1, 1) if keys is None else (keys.shape[1], keys.shape[-1])
    zeros = hidden.new_zeros(hidden.shape[0], heads, hidden.shape[1], width)
    cache.update(zeros, zeros, layer_idx)


class NoMixer(nn.Module):
    """Stands where an attention was removed: adds nothing to the residual stream.

    It must not be named after attention: transformers greps for such names when it switches kernels.
    """

    def __init__(self, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx = layer_idx

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, None]:
        """Return zeros `[batch, tokens, hidden]`, and count the tokens in the cache."""
        _count_tokens(_find_cache(args, kwargs), hidden_states, self.layer_idx)
        return torch.zeros_like(hidden_states), None


class NoMLP(nn.Module):
    """Stands where an MLP was removed: adds nothing to the residual stream."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return zeros `[..., hidden]`."""
        return torch.zeros_like(hidden_states)


def stand_in(spec: str, weight: torch.Tensor, stream: torch.Tensor) -> torch.Tensor:
    """Return what stands for removed layers makes of the residual stream `x` `[..., hidden]`, in the same shape.

    Args:
        spec: `linear`: `x T`; `shift`: `x + u`; `scale`: `x * d`, channel by channel; `lowrank`: `x + (x A) B`.
        weight: `T` `[hidden, hidden]`; `u` or `d` `[hidden]`; the rows of `A` transposed, then those of `B`
            `[2 * rank, hidden]`.
        stream: The stream.
    """
    match spec:
        case "linear":
            return stream @ weight
        case "shift":
            return stream + weight
        case "scale":
            return stream * weight
        case "lowrank":
            down, up = weight.chunk(2)
            return stream + nn.functional.linear(stream, down) @ up
    raise ValueError(f"nothing called {spec!r} can stand for a layer")


class StandIn(nn.Module):
    """Stands where decoder layers were replaced by something simple that sees the residual stream alone.

    A fresh one passes the stream through.
    """

    def __init__(self, spec: str, shape: Sequence[int], layer_idx: int, *, returns_tuple: bool = False) -> None:
        super().__init__()
        fresh = {"linear": torch.eye(shape[-1]), "scale": torch.ones(*shape)}
        self.weight = nn.Parameter(fresh[spec] if spec in fresh else torch.zeros(*shape))
        self.spec = spec
        self.layer_idx = layer_idx
        self.returns_tuple = returns_tuple

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Map `[batch, tokens, hidden]` to the same shape, and count the tokens in the cache."""
        _count_tokens(_find_cache(args, kwargs), hidden_states, self.layer_idx)
        mapped = stand_in(self.spec, self.weight, hidden_states)
        return (mapped, None) if self.returns_tuple else mapped


class Features:
    """Some features of the residual stream, in ascending order: what a branch reads, or writes.

    No buffer: whoever loads a checkpoint would miss it, or cast it. Where the features follow each other, reading
    them copies nothing. Gathering and scattering are the fastest of torch's ways to do it on a CPU, above all in bf16.
    """

    def __init__(self, features: Sequence[int], width: int) -> None:
        self.features = tuple(features)
        self.width = width
        self.first = self.features[0]
        self.together = self.features[-1] - self.first + 1 == len(self.features)
        self._places: dict[torch.device, torch.Tensor] = {}

    @classmethod
    def from_bits(cls, bits: str, width: int) -> Features:
        """Return the features whose bits are set in a hexadecimal number, feature 0 being the lowest."""
        mask = int(bits, 16)
        return cls([i for i in range(width) if mask >> i & 1], width)

    @property
    def bits(self) -> str:
        """The hexadecimal number in which their bits are set."""
        return f"{sum(1 << i for i in self.features):x}"

    def _on(self, device: torch.device) -> torch.Tensor:
        if device not in self._places:
            self._places[device] = torch.tensor(self.features, device=device)
        return self._places[device]

    def take(self, stream: torch.Tensor) -> torch.Tensor:
        """Return these features `[..., features]` of a stream `[..., width]`."""
        if self.together:
            return stream.narrow(-1, self.first, len(self.features))
        return stream.gather(-1, self._on(stream.device).expand(*stream.shape[:-1], -1))

    def put(self, values: torch.Tensor) -> torch.Tensor:
        """Return a stream `[..., width]` that is zero but for these features `[..., features]`."""
        if self.together:
            return nn.functional.pad(values, (self.first, self.width - self.first - len(self.features)))
        zeros = values.new_zeros(*values.shape[:-1], self.width)
        return zeros.scatter(-1, self._on(values.device).expand_as(values), values)


class _Routed:
    """Mixed into a branch, or its first and last projection, that reads and writes some features of the stream."""

    reads: Features | None = None
    writes: Features | None = None

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Run the module on the features that it reads of `[..., hidden]`, and spread out what it returns."""
        read = hidden_states if self.reads is None else self.reads.take(hidden_states)
        out = super().forward(read, *args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]
        if self.writes is None:
            return out
        return (self.writes.put(out[0]), *out[1:]) if isinstance(out, tuple) else self.writes.put(out)


@cache
def _routed(stock: type) -> type:
    return type(f"Routed{stock.__name__}", (_Routed, stock), {"__module__": __name__})


def route(module: Any, **features: Features) -> None:
    """Let a module read (`reads`) or write (`writes`) some features of the stream, for which its weights are cut."""
    if not isinstance(module, _Routed):
        module.__class__ = _routed(type(module))
    for name, chosen in features.items():
        setattr(module, name, chosen)


def rebuild(model: nn.Module, config: Any) -> None:
    """Give a freshly built stock model, or its bare decoder, the layers that its config describes."""
    facts = getattr(config, FACTS)
    names = facts["path"].split(".")
    while not hasattr(model, names[0]):
        names.pop(0)  # a bare decoder lacks the first step of the path
    layers: Any = model.get_submodule(".".join(names))
    stand_ins = {own["layer"]: own for own in facts.get("stand_ins", [])}
    for index, own in config.overrides.items():
        if index in stand_ins:
            continue
        for branch, silence in (("attention", NoMixer(index)), ("mlp", NoMLP())):
            if branch in own.get("skip", []):
                _silence(layers[index], silence, facts[branch])
                continue
            if facts.get(branch, {}).get("width") in own:
                _narrow(layers[index], config, own, facts[branch])
            _reroute(layers[index], config.hidden_size, own, facts.get(branch, {}))
    for index, names in facts.get("biases", {}).items():
        for module in (layers[int(index)].get_submodule(name) for name in names):
            module.bias = nn.Parameter(module.weight.new_zeros(module.out_features), requires_grad=False)
    for index, own in stand_ins.items():
        layers[index] = StandIn(own["spec"], own["shape"], index, returns_tuple=facts["returns_tuple"])


def _silence(layer: nn.Module, silence: nn.Module, facts: dict[str, Any]) -> None:
    """Take a branch and the norms that serve it alone out of a layer."""
    setattr(layer, facts["module"], silence)
    for name in facts["passing"]:
        setattr(layer, name, nn.Identity())


def _narrow(layer: nn.Module, config: Any, own: dict[str, Any], facts: dict[str, Any]) -> None:
    """Give the parameters of a branch the shapes that its own width makes, and its module the counts."""
    units = own[facts["width"]]
    gone = getattr(config, facts["width"]) - units
    for size in facts["sizes"]:
        length = layer.get_parameter(size["param"]).shape[size["dim"]] - gone * size["per_unit"]
        _shorten(layer, size["param"], size["dim"], length)
    branch: Any = layer.get_submodule(facts["module"])
    for name, per_unit in facts.get("attributes", {}).items():
        setattr(branch, name, units * per_unit)
    if "own_config" in facts:
        branch.config = copy.copy(branch.config)
        for name, per_unit in facts["own_config"].items():
            setattr(branch.config, name, units * per_unit)


def _reroute(layer: nn.Module, hidden: int, own: dict[str, Any], facts: dict[str, Any]) -> None:
    """Let a branch read and write only the features of the stream that its layer's config names, if it names some."""
    for name in ("reads", "writes"):
        bits = own.get(facts.get(name, {}).get("features"))
        if bits is None:
            continue
        chosen = Features.from_bits(bits, hidden)
        for size in facts[name]["sizes"]:
            _shorten(layer, size["param"], size["dim"], len(chosen.features))
        route(layer.get_submodule(facts[name]["module"]), **{name: chosen})


def _shorten(layer: nn.Module, param: str, dim: int, length: int) -> None:
    """Cut a parameter to a length along a dimension, and tell its module."""
    owner, _, leaf = param.rpartition(".")
    module: Any = layer.get_submodule(owner)
    old = getattr(module, leaf)
    kept = old.data.narrow(dim, 0, length).clone()
    setattr(module, leaf, nn.Parameter(kept, requires_grad=old.requires_grad))
    if leaf == "weight" and isinstance(module, nn.Linear):
        module.out_features, module.in_features = kept.shape
    elif leaf == "weight" and type(module).__name__ == "Conv1D":
        module.nx, module.nf = kept.shape


class _UnevenConfig:
    """Keeps what differs by layer to itself: transformers would refuse to read a head count that varies."""

    @property
    def overrides(self) -> dict[int, dict[str, Any]]:
        """What differs from the config, by layer position."""
        return self.__dict__.get(_OVERRIDES, {})

    @property
    def per_layer_config(self) -> list[Any]:
        """The config of every layer, with its own values and `skip`; caches take their shapes from these."""
        return [self._resolve(index) for index in range(self.num_hidden_layers)]  # pyright: ignore[reportAttributeAccessIssue]

    @per_layer_config.setter
    def per_layer_config(self, overrides: dict[Any, dict[str, Any]]) -> None:
        self.__dict__[_OVERRIDES] = {int(index): dict(own) for index, own in overrides.items()}

    def _resolve(self, index: int) -> Any:
        layer: Any = copy.copy(self)
        for name, value in {"skip": [], **self.overrides.get(index, {})}.items():
            setattr(layer, name, value)
        layer.__dict__.pop(_OVERRIDES, None)
        return layer

    def to_dict(self) -> dict[str, Any]:
        """Return the config as it is saved."""
        document = super().to_dict()  # pyright: ignore[reportAttributeAccessIssue]
        overrides = document.pop(_OVERRIDES, {})
        if overrides:
            digits = len(str(max(overrides)))
            document["per_layer_config"] = {str(i).zfill(digits): overrides[i] for i in sorted(overrides)}
        return document


class _Uneven:
    """Builds the stock model, then gives it its own layers."""

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)  # pyright: ignore[reportCallIssue]
        rebuild(self, config)  # pyright: ignore[reportArgumentType]

    def set_attn_implementation(self, *args: Any, **kwargs: Any) -> None:
        """Switch the kernel of all layers, those with a config of their own included."""
        model: Any = self
        super().set_attn_implementation(*args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]
        for module in model.modules():
            if getattr(module, "config", None) is not None:
                module.config._attn_implementation = model.config._attn_implementation


def _settable(computed: property) -> property:
    """Return the `head_dim` of a config that computes it, so that it can be said where head counts vary."""
    return property(
        lambda config: config.__dict__.get("head_dim") or computed.__get__(config),
        lambda config, value: config.__dict__.update(head_dim=value),
    )


def _make_config(name: str, stock: Any) -> type:
    body: dict[str, Any] = {"model_type": f"sned_{stock.model_type}", "__module__": __name__}
    if isinstance(computed := getattr(stock, "head_dim", None), property):
        body["head_dim"] = _settable(computed)
    return type(name, (_UnevenConfig, stock), body)


@cache
def _make(name: str) -> type:
    """Return the uneven twin of a stock class: `SnedLlamaForCausalLM` of `LlamaForCausalLM`, and so on."""
    stock = getattr(transformers, name.removeprefix(PREFIX))
    if issubclass(stock, transformers.PretrainedConfig):
        return _make_config(name, stock)
    body = {
        "__module__": __name__,
        "config_class": _make(f"{PREFIX}{stock.config_class.__name__}"),
        # what transformers finds out by reading the source of a class's module, which must be the stock one
        "_can_set_attn_implementation": stock._can_set_attn_implementation,
        "_can_set_experts_implementation": stock._can_set_experts_implementation,
        # so that this file is written beside the weights again
        "_auto_class": "AutoModelForCausalLM" if issubclass(stock, transformers.GenerationMixin) else "AutoModel",
    }
    return type(name, (_Uneven, stock), body)


def __getattr__(name: str) -> Any:
    if name.startswith(PREFIX) and hasattr(transformers, name.removeprefix(PREFIX)):
        return _make(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
