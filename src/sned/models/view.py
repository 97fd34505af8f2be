"""The only object that holds live modules: a decoder seen in the coordinates of its base checkpoint.

Layer 17 is layer 17 of the base model for ever, whatever was removed before it. Layers may live on the meta
device; then a source supplies their base tensors, and the recorded edits are replayed each time one is needed.
May import its neighbours in `models`.
"""

from __future__ import annotations

import copy
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from sned.errors import PlanError
from sned.models.geometry import way_in, way_out
from sned.models.infer import resolve_family
from sned.models.measure import measure, sample_weights
from sned.models.modeling_sned import Features, NoMixer, NoMLP, StandIn
from sned.models.weights import Edit, LayerSource, LiveWeights, Weights, read_layer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from transformers import PreTrainedModel

    from sned.models.family import Sublayer
    from sned.models.geometry import Axis


@dataclass(frozen=True)
class Fingerprint:
    """What a plan remembers of the model it was made for."""

    model_type: str
    geometry: str
    weights: str


class View:
    """A live model in base coordinates.

    Attributes:
        model: The Hugging Face model, always consistent with its own config.
        layers: Present decoder layers by base index, in order.
        alive: Units still present, by axis name; base unit numbers, ascending.
        skipped: Layers that are passed over for the duration of a trial.
        changed: Layers whose tensors are not those of the base any more, present or not.

    Raises:
        UnsupportedModelError: the family is unknown and `trust_inferred` is false.
    """

    def __init__(
        self, model: PreTrainedModel, *, source: LayerSource | None = None, trust_inferred: bool = False
    ) -> None:
        self.model = model
        self.family = resolve_family(model, trust_inferred=trust_inferred)
        self.layers: dict[int, nn.Module] = dict(enumerate(self._layer_list()))
        self.geometry = measure(model, self.family, self.layers)
        self.alive = {name: tuple(range(axis.size)) for name, axis in self.geometry.axes.items()}
        self.skipped: frozenset[int] = frozenset()
        self.changed: frozenset[int] = frozenset()
        self._source = source
        self._history: dict[int, list[Edit]] = {i: [] for i in self.layers}
        weights = sample_weights(self.layers, source)
        self.fingerprint = Fingerprint(model.config.model_type, self.geometry.digest, weights)

    def fork(self) -> View:
        """Return an independent view of the same model that shares all tensors with this one.

        Edits never write into a tensor, so either view can be cut without the other noticing, and both together
        take the memory of one plus what was edited.
        """
        tensors = (*self.model.parameters(), *self.model.buffers())
        shared: dict[int, Any] = {id(t): t for t in tensors}
        twin = copy.copy(self)
        twin.model = copy.deepcopy(self.model, shared)
        twin.layers = dict(zip(self.layers, twin._layer_list(), strict=True))
        twin.alive = dict(self.alive)
        twin._history = {i: list(edits) for i, edits in self._history.items()}
        return twin

    @property
    def active(self) -> list[int]:
        """Base indices of the layers that a forward pass runs, in order."""
        return [i for i in self.layers if i not in self.skipped]

    @property
    def streamed(self) -> bool:
        """Whether layers are read from a source when their turn comes."""
        return self._source is not None

    @property
    def source(self) -> LayerSource | None:
        """What supplies the layers; None where they are in memory."""
        return self._source

    @contextmanager
    def supplied(self, source: LayerSource) -> Iterator[None]:
        """Read the base tensors of a streamed view's layers from elsewhere for the duration of the context."""
        before, self._source = self._source, source
        try:
            yield
        finally:
            self._source = before

    @property
    def device(self) -> torch.device:
        """Where the embeddings are, and so where tokens must go."""
        return self._embeddings.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return self._embeddings.dtype

    @property
    def _embeddings(self) -> torch.Tensor:
        embeddings: Any = self.model.get_input_embeddings()
        return embeddings.weight

    def axis(self, name: str) -> Axis:
        """Return an axis by name.

        Raises:
            PlanError: the model has no such axis.
        """
        try:
            return self.geometry.axes[name]
        except KeyError:
            raise PlanError(f"the model has no axis {name!r}", hint="names look like layers.3.mlp.hidden") from None

    def layer(self, index: int) -> nn.Module:
        """Return a present layer by base index.

        Raises:
            PlanError: the layer was removed, or never existed.
        """
        if index not in self.layers:
            gone = "was already removed" if 0 <= index < self.geometry.n_layers else "does not exist"
            raise PlanError(f"layer {index} {gone}; the base model has layers 0-{self.geometry.n_layers - 1}")
        return self.layers[index]

    def branch(self, index: int, which: Sublayer) -> nn.Module:
        """Return the module whose output is what a sublayer computes, before any norm or multiplier."""
        return self.layer(index).get_submodule(way_out(self.family, which))

    def gateway(self, index: int, which: Sublayer) -> nn.Module:
        """Return the module whose input is what a sublayer reads."""
        return self.layer(index).get_submodule(way_in(self.family, which))

    def parts(self, index: int, which: Sublayer) -> list[str]:
        """Return the names of a layer's modules that are a sublayer: its own, and the norms that serve it alone."""
        layer, family = self.layer(index), self.family
        if which == "attn":
            return [family.attn, *(name for name in family.attn_norms if hasattr(layer, name))]
        own = [family.mlp] if family.mlp is not None else [family.up, family.down]
        return own + [name for name in family.mlp_norms if hasattr(layer, name)]

    def contribution(self, index: int, which: Sublayer) -> nn.Module:
        """Return the module whose output, times `multiplier`, a sublayer adds to the residual stream."""
        post = self.family.attn_post if which == "attn" else self.family.mlp_post
        return self.layer(index).get_submodule(post) if post else self.branch(index, which)

    @property
    def multiplier(self) -> float:
        """The factor between a sublayer's output and what it adds to the residual stream."""
        name = self.family.multiplier
        return float(getattr(self.model.config, name)) if name else 1.0

    @property
    def parallel(self) -> bool:
        """Whether both branches of a layer read the stream that enters it."""
        rule = self.family.parallel
        return bool(getattr(self.model.config, rule)) if isinstance(rule, str) else rule

    def is_replaced(self, index: int) -> bool:
        """Tell whether a simple map stands where the layer was."""
        return isinstance(self.layer(index), StandIn)

    def fold_obstacle(self, index: int) -> str | None:
        """Say why no linear map can be folded into the MLP output of a layer, or None if one can."""
        if self.family.experts:
            return "its MLP is a mixture of experts"
        if self.family.mlp_post:
            return f"the norm {self.family.mlp_post} stands between its MLP and the residual stream"
        if self.is_replaced(index) or isinstance(self.branch(index, "mlp"), NoMLP):
            return "it has no MLP any more"
        if "mlp.write" in self.routes(index):
            return "its MLP writes only to some features of the residual stream"
        return None

    def routes(self, index: int) -> dict[str, Features]:
        """Return what a layer's sublayers read and write of the stream, by kind of axis, where it is not all of it."""
        sublayers: tuple[Sublayer, ...] = ("attn", "mlp")
        ends: dict[str, Features | None] = {}
        for which in sublayers:
            if self.has_branch(index, which):
                ends[f"{which}.read"] = getattr(self.gateway(index, which), "reads", None)
                ends[f"{which}.write"] = getattr(self.branch(index, which), "writes", None)
        return {kind: features for kind, features in ends.items() if features is not None}

    @property
    def heads_carry_positions(self) -> bool:
        """Whether attention is biased by the number of the head (ALiBi), so that none can be cut."""
        return bool(getattr(self.model.config, "alibi", False))

    def has_branch(self, index: int, which: Sublayer) -> bool:
        """Tell whether a present layer still has its attention or its MLP."""
        return not self.is_replaced(index) and not isinstance(self.branch(index, which), NoMixer | NoMLP)

    @contextmanager
    def materialised(self, index: int) -> Iterator[nn.Module]:
        """Hold a layer's weights in memory: at once for a loaded model, read and edited for a streamed one."""
        layer = self.layer(index)
        if self._source is None:
            yield layer
            return
        layer.load_state_dict(read_layer(self._source, index, self._history[index]), strict=True, assign=True)
        try:
            yield layer
        finally:
            live = LiveWeights(layer)
            for name in list(live):
                live[name] = torch.empty_like(live[name], device="meta")

    def reader(self, index: int) -> Callable[[], Mapping[str, torch.Tensor]]:
        """Return what gives the tensors of a present layer as it is now, whatever becomes of the layer later."""
        layer = self.layer(index)
        if self._source is None:
            held = dict(LiveWeights(layer))
            return lambda: held
        source, edits = self._source, tuple(self._history[index])
        return lambda: read_layer(source, index, edits)

    def edit(self, index: int, change: Edit, *, structural: bool) -> None:
        """Change the tensors of one layer, now and whenever it is read again.

        A change of values only (`structural` false) is not run on weights that are absent.
        """
        self.changed |= {index}
        if self._source is not None:
            self._history[index].append(change)
        if structural or self._source is None:
            change(LiveWeights(self.layer(index)))

    @contextmanager
    def edited(self, index: int, change: Edit) -> Iterator[None]:
        """Change the values of one layer's tensors for the duration of the context.

        Those of a streamed layer change when it is read next, or at once while it is in memory.
        """
        if any(p.is_meta for p in self.layer(index).parameters()):
            self._history[index].append(change)
            try:
                yield
            finally:
                self._history[index].pop()
            return
        live = LiveWeights(self.layer(index))
        before = {name: live[name] for name in live}
        change(live)
        try:
            yield
        finally:
            for name, tensor in before.items():
                if live[name] is not tensor:
                    live[name] = tensor

    def set_layers(self, layers: dict[int, nn.Module]) -> None:
        """Replace the layer list of the model, renumbering the cache slots."""
        self.layers = dict(sorted(layers.items()))
        self._history = {i: self._history[i] for i in self.layers}
        for position, layer in enumerate(self.layers.values()):
            numbered: list[Any] = [m for m in layer.modules() if hasattr(m, "layer_idx")]
            for module in numbered:
                module.layer_idx = position
        parent, _, leaf = self.family.layers.rpartition(".")
        setattr(self.model.get_submodule(parent), leaf, nn.ModuleList(self.layers.values()))

    def rebase(self, index: int, tensors: dict[str, torch.Tensor]) -> None:
        """Make a layer's base tensors, when they are read again, these."""

        def change(weights: Weights) -> None:
            weights.clear()
            weights.update(tensors)

        self.changed |= {index}
        self._history[index] = [change]

    def move_mlp(self, giver: int, taker: int) -> None:
        """Move the MLP of a layer, with its norms, into a layer that has none; the giver must then be dropped.

        The taker's MLP axes become those of the giver, and their units are those of the giver.
        """
        names = self.parts(giver, "mlp")
        for name in names:
            setattr(self.layer(taker), name, getattr(self.layer(giver), name))
        for axis in [a for a in self.geometry.axes.values() if a.layer == giver and a.which == "mlp"]:
            new = f"layers.{taker}.{axis.kind}"
            moved = replace(axis, name=new, layer=taker)
            self.geometry = replace(self.geometry, axes={**self.geometry.axes, new: moved})
            self.alive[new] = self.alive.pop(axis.name)
        self.changed |= {taker}
        if self._source is not None:
            read, inside = self.reader(giver), tuple(f"{name}." for name in names)

            def change(weights: Weights) -> None:
                weights.update({n: t for n, t in read().items() if n.startswith(inside)})

            self._history[taker].append(change)

    def _layer_list(self) -> nn.ModuleList:
        layers: Any = self.model.get_submodule(self.family.layers)
        return layers
