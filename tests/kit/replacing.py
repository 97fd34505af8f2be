"""Planning with ReplaceMe, and what its maps are checked against."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from kit.planning import plan_on
from kit.tiny import DENSE_NAMES, family_of, tokens
from sned.runtime.sweep import Site, Sweep

if TYPE_CHECKING:
    from sned.models.view import View
    from sned.plans.plan import Plan

FOLDABLE = [name for name in DENSE_NAMES if not family_of(name).mlp_post]
"""Families in which nothing stands between an MLP and the stream."""
MANY = tokens(40, 16, seed=3)
"""Twenty tokens per feature: enough for a map without a ridge."""


def replaceme(view: View, **given: Any) -> Plan:
    """Plan with ReplaceMe, unless asked otherwise without a probe."""
    return plan_on(view, "replaceme", **{"probe": 0, **given})


def the_map(plan: Plan) -> torch.Tensor:
    """Return the only map of a plan, in float64."""
    (tensor,) = plan.tensors.values()
    return tensor.double()


def cuts_of(plan: Plan) -> list[tuple[int, int]]:
    """Return the chosen cuts, as the scores tell them."""
    return [(cut["start"], cut["end"]) for cut in plan.stages[0].scores["cuts"]]


def states(view: View, *sites: Site) -> list[torch.Tensor]:
    """Activations of the many tokens, `[tokens, hidden]` in float64."""
    sweep, out = Sweep(view), []
    for chunk in sweep.chunks(MANY.ids):
        out += [activations for _, activations in sweep.activations(chunk, [sites])]
    return [torch.cat([batch[i] for batch in out]).flatten(0, 1).double() for i in range(len(sites))]
