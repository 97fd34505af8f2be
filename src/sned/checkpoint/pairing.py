"""Regrouping what is left of cut layers into ordinary ones, for saving only: the model computes the same.

A layer that kept its attention alone, directly followed by one that kept its MLP alone, is an ordinary layer in two
pieces. May import `models`.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from sned.models.surgery import drop_layers

if TYPE_CHECKING:
    from sned.models.view import View


def paired(view: View) -> View:
    """Return a fork in which every lone attention directly followed by a lone MLP makes one layer.

    The layer is that of the attention, whose place in the config it keeps, and takes over the MLP with its norms.
    Returns the view itself where nothing can be paired.
    """
    pairs = _pairs(view)
    if not pairs:
        return view
    fork = view.fork()
    for first, second in pairs:
        fork.move_mlp(second, first)
    drop_layers(fork, [second for _, second in pairs])
    return fork


def _pairs(view: View) -> list[tuple[int, int]]:
    """Return the neighbours that make one layer; none shares a layer with another, and none makes way for more."""
    if view.family.experts or view.parallel:
        return []
    kept = {i: (view.has_branch(i, "attn"), view.has_branch(i, "mlp")) for i in view.layers}
    return [(a, b) for a, b in pairwise(kept) if kept[a] == (True, False) and kept[b] == (False, True)]
