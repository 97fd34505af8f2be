"""How large the weights are that compute each unit of an axis. May import `models`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from sned.models.weights import LiveWeights

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sned.models.geometry import Axis, Slot
    from sned.models.view import View


def units_by_magnitude(view: View, names: Iterable[str]) -> dict[str, list[int]]:
    """Return the present units of some axes, largest first; ties go to the first. Each layer is read once."""
    axes = [view.axis(name) for name in names]
    orders: dict[str, list[int]] = {}
    for layer in sorted({axis.layer for axis in axes}):
        with view.materialised(layer) as module:
            for axis in (a for a in axes if a.layer == layer):
                alive = view.alive[axis.name]
                orders[axis.name] = [alive[i] for i in largest_first(unit_magnitudes(axis, LiveWeights(module)))]
    return orders


def unit_magnitudes(axis: Axis, weights: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return the L1 norm of the weights that compute each unit still in `weights`, `[units]`, float64.

    A channel has the rows of gate and up. A KV group has the mean over its query rows of the norms of that row and
    of the key and value rows it works with. Biases, norms, and the projection that reads the units do not count.

    Args:
        axis: The axis, in base coordinates.
        weights: The tensors of its layer, by layer-relative name; units that were cut are absent.
    """
    reader = next(slot for slot in axis.slots if slot.param == f"{axis.taps[0]}.weight")
    n_units = weights[reader.param].shape[reader.dim] // reader.block
    total = torch.zeros(n_units, dtype=torch.float64)
    for slot in axis.slots:
        weight = weights[slot.param]
        if slot.param == reader.param or weight.dim() != 2:
            continue
        owned = _owned(axis, slot, weight.detach().abs(), n_units)
        total += sum(part.mean(1) for part in owned.split(_parts(slot, axis.tap_block), 1))
    return total


def unit_sums(axis: Axis, scores: Mapping[str, torch.Tensor], n_units: int) -> torch.Tensor:
    """Return the sum of the scores of all weights that belong to each unit, its readers' included, `[units]`, float64.

    Args:
        axis: The axis, in base coordinates.
        scores: Of each weight of a layer's matrices, as they are stored, by layer-relative name.
        n_units: How many units are still there.
    """
    slots = [slot for slot in axis.slots if slot.param in scores]
    return torch.stack([_owned(axis, slot, scores[slot.param], n_units).sum(1) for slot in slots]).sum(0)


def _owned(axis: Axis, slot: Slot, weight: torch.Tensor, n_units: int) -> torch.Tensor:
    """Return the sums over the rows, or columns, of a matrix that each unit owns, `[units, block]`."""
    rows = weight.sum(1 - slot.dim, dtype=torch.float64).cpu()
    # an offset counts units that precede the slot, of which as large a share is gone
    start = slot.offset * n_units // axis.size
    return rows[start : start + n_units * slot.block].view(n_units, slot.block)


def largest_first(scores: torch.Tensor) -> list[int]:
    """Return positions by descending score; ties keep their order."""
    return torch.sort(scores, descending=True, stable=True).indices.tolist()


def _parts(slot: Slot, n_query_rows: int) -> list[int]:
    """Return how the rows of one unit divide: a block wider than the queries holds its keys and values too."""
    extra = slot.block - n_query_rows
    return [n_query_rows, extra // 2, extra // 2] if extra > 0 else [slot.block]
