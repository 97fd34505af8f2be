"""Sparse kernels: which matrices they take, and that a machine without them is told so."""

from __future__ import annotations

import pytest
import torch
from kit.tiny import make_model

from sned.errors import ConfigError
from sned.evaluation import semi_structured
from sned.evaluation.semi_structured import convert, fits, require_kernels
from sned.models.view import View
from sned.score.masks import n_of_m


def two_of_four(rows: int, columns: int) -> torch.Tensor:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))
    return weight.masked_fill(n_of_m(weight.abs(), 2, 4), 0.0)


@pytest.mark.parametrize(
    ("rows", "columns", "fit"), [(32, 64, True), (96, 128, True), (31, 64, False), (32, 96, False)]
)
def test_sizes_that_kernels_take(rows: int, columns: int, fit: bool) -> None:
    assert fits(two_of_four(rows, columns)) is fit


def test_one_run_too_full_is_enough_to_be_left_out() -> None:
    weight = two_of_four(32, 64)
    weight[5, 8:11] = 1.0
    assert not fits(weight)
    assert fits(torch.zeros(32, 64))


def test_a_processor_has_no_such_kernels() -> None:
    with pytest.raises(ConfigError, match=r"on the cpu, where zeros make nothing faster\n.*NVIDIA"):
        convert(View(make_model("llama")))


def test_old_hardware_and_wide_weights_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla T4")
    for capability, message in (
        ((7, 5), "Tesla T4 has no sparse kernels"),
        ((8, 0), "16-bit weights, not torch.float32"),
    ):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, c=capability: c)
        with pytest.raises(ConfigError, match=message):
            require_kernels(torch.device("cuda"), torch.float32)
    require_kernels(torch.device("cuda"), torch.bfloat16)


def test_matrices_that_fit_are_converted_and_others_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    view = View(make_model("llama"))
    block = view.layers[1]
    for name in ("mlp.up_proj", "self_attn.o_proj"):
        linear = block.get_submodule(name)
        linear.weight = torch.nn.Parameter(two_of_four(*linear.weight.shape))
    made: list[torch.Size] = []

    def stand_in(weight: torch.Tensor) -> torch.Tensor:
        made.append(weight.shape)
        return weight.clone()

    monkeypatch.setattr(semi_structured, "require_kernels", lambda *_: None)
    monkeypatch.setattr(semi_structured, "ROWS", 16)  # so that tiny matrices fit
    monkeypatch.setattr(semi_structured, "COLUMNS", 16)
    monkeypatch.setattr(torch.sparse, "to_sparse_semi_structured", stand_in)
    done = convert(view)
    assert sorted(made) == sorted(
        block.get_submodule(name).weight.shape for name in ("mlp.up_proj", "self_attn.o_proj")
    )
    assert (done.converted, done.left) == (2, 7 * len(view.layers) - 2)


def test_a_model_without_the_pattern_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(semi_structured, "require_kernels", lambda *_: None)
    with pytest.raises(ConfigError, match=r"none of the 35 matrices keeps to 2:4"):
        convert(View(make_model("llama")))
