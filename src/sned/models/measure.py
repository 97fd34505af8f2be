"""What a view knows of its model before anything is cut: its geometry, and a fingerprint of its weights.

May import its neighbours in `models`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from sned.canon import digest, sample_indices
from sned.models.geometry import Geometry, build_axes, n_kv_groups

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn
    from transformers import PreTrainedModel

    from sned.models.family import Family
    from sned.models.weights import LayerSource

N_FINGERPRINT_SAMPLES = 4


def measure(model: PreTrainedModel, family: Family, layers: Mapping[int, nn.Module]) -> Geometry:
    """Return the geometry of a model, whether its weights are present or on meta."""
    config: Any = model.config
    heads, groups = int(config.num_attention_heads), n_kv_groups(config)
    head_dim = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    experts = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)
    axes = [a for i, m in layers.items() for a in build_axes(m, i, family, heads // groups, head_dim)]
    return Geometry(
        model_type=config.model_type,
        n_layers=len(layers),
        hidden=int(config.hidden_size),
        n_heads=heads,
        n_kv_groups=groups,
        head_dim=head_dim,
        vocab=int(config.vocab_size),
        n_params=sum(p.numel() for p in model.parameters()),
        layer_shapes=tuple({n: tuple(p.shape) for n, p in m.named_parameters()} for m in layers.values()),
        active_expert_ratio=config.num_experts_per_tok / experts if family.experts and experts else 1.0,
        axes={axis.name: axis for axis in axes},
    )


def sample_weights(layers: Mapping[int, nn.Module], source: LayerSource | None) -> str:
    """Digest a few elements of every layer parameter, in bfloat16 so that the dtype to run in is immaterial."""
    samples: list[float] = []
    for i, layer in layers.items():
        for name, param in sorted(layer.named_parameters()):
            if source is not None:
                values = source.sample(i, name, N_FINGERPRINT_SAMPLES)
            else:
                where = sample_indices(param.numel(), N_FINGERPRINT_SAMPLES)
                values = param.detach().flatten()[torch.tensor(where, device=param.device)]
            samples += values.to("cpu", torch.bfloat16).float().nan_to_num(nan=-1e30).tolist()
    return digest(samples)
