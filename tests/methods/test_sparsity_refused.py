"""What pruning of single weights refuses, and in which words."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kit.planning import plan_on
from kit.planted import layers_of
from kit.sparse import ALLOCATORS, OF_WEIGHTS, TEXT, Way, count_zeros, pruned
from kit.tiny import make_model

from sned.errors import BudgetError, ConfigError, DataError, NumericalError, SnedError
from sned.models.view import View

REFUSED: list[tuple[type[SnedError], str, dict[str, Any]]] = [
    (ConfigError, "step=row lets rows differ", {"method": "magnitude", "allocate": "neuroal:step=row"}),
    (ConfigError, "step=both lets rows differ", {"method": "wanda", "pattern": "2:4", "allocate": "neuroal:step=both"}),
    (ConfigError, "not owl", {"method": "magnitude", "pattern": "global", "allocate": "owl"}),
    (ConfigError, "variant goes with", {"method": "wanda", "pattern": "matrix", "variant": True}),
    (ConfigError, "variant goes with", {"method": "wanda", "pattern": "2:4", "variant": True}),
    (BudgetError, "at most 0.99 of a matrix", {"method": "wanda", "sparsity": 0.995, "allocate": "owl"}),
    (BudgetError, "at most 0.99 of a matrix", {"method": "wanda", "sparsity": 0.995, "allocate": "alphapruning"}),
    (ConfigError, "sets 0.5 of the weights to zero, not 0.6", {"method": "wanda", "pattern": "2:4", "sparsity": 0.6}),
    (ConfigError, "layers.0.attn.q has 32 columns", {"method": "wanda", "pattern": "3:6"}),
    (ConfigError, "layers.0.mlp.down has 48 columns", {"method": "sparsegpt", "pattern": "16:32"}),
    (ConfigError, "keeps 4 of every 4", {"method": "wanda", "pattern": "4:4", "sparsity": 0.0}),
    (ConfigError, "keeps 0 of every 4", {"method": "wanda", "pattern": "0:4"}),
    (ConfigError, "is none of row, matrix, nor n:m", {"method": "wanda", "pattern": "global"}),
    (ConfigError, "there is no allocator 'owls'", {"method": "wanda", "allocate": "owls"}),
    (ConfigError, "owl has no option 'spred'", {"method": "wanda", "allocate": "owl:spred=1"}),
    (ConfigError, "spread='2'", {"method": "wanda", "allocate": "owl:spread=2"}),
    (ConfigError, "refine='sparsegpt'", {"method": "wanda", "refine": "sparsegpt"}),
    (BudgetError, "at least 0 and less than 1", {"method": "wanda", "sparsity": 1.0}),
    (DataError, "needs calibration text", {"method": "wanda", "tokens": None}),
    (DataError, "needs calibration text", {"method": "magnitude", "tokens": None, "update": True}),
    (DataError, "needs calibration text", {"method": "magnitude", "tokens": None, "allocate": "neuroal"}),
]


@pytest.mark.parametrize(("kind", "message", "given"), REFUSED, ids=[str(i) for i in range(len(REFUSED))])
def test_what_does_not_go_together_is_refused(kind: type[SnedError], message: str, given: dict[str, Any]) -> None:
    view = View(make_model("llama"))
    with pytest.raises(kind, match=message):
        plan_on(view, **{"sparsity": 0.5, **given})
    assert count_zeros(view)[0] == 0


def test_without_text_weights_alone_decide() -> None:
    for allocate in ("uniform", "alphapruning"):
        assert pruned("llama", Way("magnitude", allocate), tokens=None)


BROKEN = {
    "a weight": ("mlp.up_proj.weight", torch.nan, r"layers?[ .]2\b"),
    "an infinite weight": ("mlp.up_proj.weight", torch.inf, r"layers?[ .]2\b"),
    "an activation": ("input_layernorm.weight", 1e38, r"layer 2\b"),
}


@pytest.mark.parametrize("allocate", ALLOCATORS[:-1])
@pytest.mark.parametrize("broken", BROKEN)
@pytest.mark.parametrize("method", OF_WEIGHTS)
def test_what_is_not_finite_is_named(method: str, broken: str, allocate: str) -> None:
    param, value, message = BROKEN[broken]
    model = make_model("llama")
    layers_of(model)[2].get_parameter(param).data[5] = value
    reads_text = method != "magnitude" or allocate not in ("uniform", "alphapruning")
    if broken == "an activation" and not reads_text:
        pytest.skip("it looks at weights alone")
    with pytest.raises(NumericalError, match=message):
        plan_on(View(model), method, allocate=allocate, sparsity=0.5, tokens=TEXT)


@pytest.mark.parametrize(
    "given", [{}, {"pattern": "global"}, {"pattern": "2:4"}, {"allocate": "alphapruning"}], ids=str
)
def test_where_weights_alone_decide_the_matrix_is_named(given: dict[str, Any]) -> None:
    model = make_model("gpt2")
    layers_of(model)[3].attn.c_attn.weight.data[4, 40] = torch.nan
    with pytest.raises(NumericalError, match=r"^layers\.3\.attn\.k holds NaN"):
        plan_on(View(model), "magnitude", sparsity=0.5, **given)
