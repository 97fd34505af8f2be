"""What training takes is known before it begins, and a refusal names what would fit."""

from __future__ import annotations

import re

import pytest
import torch
from kit.planted import streamed_view
from kit.tiny import LAYERS, make_model

from sned.errors import ConfigError
from sned.models.view import View
from sned.training import memory
from sned.training.masters import all_matrices, all_parameters

LENGTH = 16


@pytest.fixture
def view() -> View:
    return View(make_model("llama"))


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral"])
def test_what_layers_keep_is_what_the_whole_model_keeps(name: str) -> None:
    """The tensors that a whole forward pass saves for its gradient, beside those of the layers counted alone."""
    view, seen = View(make_model(name)), dict[int, int]()

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    ids = torch.zeros(64, LENGTH, dtype=torch.int64)
    embedded = view.model.get_input_embeddings()(ids).detach().requires_grad_()
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = view.model.base_model(inputs_embeds=embedded, use_cache=False)
    counted = sum(memory.needs(view, {0: []}, None, LENGTH).layers.values())
    assert counted == pytest.approx(sum(seen.values()), rel=0.1)
    assert out.last_hidden_state.shape[0] == 64  # alive until here, or the storages would be counted twice


def test_numbers_take_twenty_bytes_and_low_rank_ones_are_few(view: View) -> None:
    names = all_parameters(view, [2])
    nothing = memory.needs(view, {2: []}, None, LENGTH).total
    full = memory.needs(view, names, None, LENGTH).total - nothing
    assert full == 20 * sum(p.numel() for p in view.layer(2).parameters())
    matrices = all_matrices(view, [2])
    rank = memory.needs(view, matrices, 1, LENGTH).total - nothing
    shapes = [view.layer(2).get_parameter(name).shape for name in matrices[2]]
    assert rank == sum(20 * sum(shape) + 2 * 4 * shape.numel() for shape in shapes)


@pytest.mark.parametrize(("dtype", "elsewhere"), [(torch.float32, 8), (torch.bfloat16, 0)])
def test_several_processes_divide_what_numbers_take(dtype: torch.dtype, elsewhere: int) -> None:
    """What the model runs with, and its gradient, every process has; in float32 that is the number itself."""
    view = View(make_model("llama").to(dtype))
    names, n = all_parameters(view, [2]), sum(p.numel() for p in view.layer(2).parameters())
    nothing = memory.needs(view, {2: []}, None, LENGTH).total
    one, four = (memory.needs(view, names, None, LENGTH, processes).total - nothing for processes in (1, 4))
    assert one - four == pytest.approx(n * (20 - elsewhere) * 3 / 4, abs=len(names[2]))


def test_what_runs_again_keeps_what_enters_each_layer_and_what_one_computes(view: View) -> None:
    matrices = all_matrices(view, view.layers)
    kept, again = (memory.needs(view, matrices, 2, LENGTH, recompute=recompute) for recompute in (False, True))
    entering = 64 * LENGTH * view.geometry.hidden * 4
    numbers = 20 * sum(2 * sum(view.layer(0).get_parameter(name).shape) for name in matrices[0])
    assert again.layers == dict.fromkeys(view.layers, entering + numbers)
    one = kept.layers[0] - numbers  # what one layer computes, and the matrices that it runs with
    assert again.rest - kept.rest == one
    assert memory.needs(streamed_view("llama"), matrices, 2, LENGTH) == again


@pytest.mark.parametrize("streamed", [False, True])
def test_gates_too_take_less_of_a_model_that_is_read_layer_by_layer(streamed: bool) -> None:
    """What enters each layer, beside what the one computes that runs again."""
    view = streamed_view("llama") if streamed else View(make_model("llama"))
    need = memory.memory_for_gates(view, 0, LENGTH) - memory.needs(view, {0: []}, None, LENGTH).rest
    entering = LAYERS * 64 * LENGTH * view.geometry.hidden * 4
    assert (need <= entering) is streamed


def test_only_layers_after_the_first_trained_one_count(view: View) -> None:
    assert list(memory.needs(view, {3: []}, None, LENGTH).layers) == [3, 4]


def test_a_refusal_names_as_many_layers_as_fit(view: View) -> None:
    names = all_parameters(view, range(LAYERS))
    need = memory.needs(view, names, None, LENGTH)
    free = need.rest + round(2.5 * max(need.layers.values()))
    with pytest.raises(ConfigError, match=r"5 of 5 layers needs about") as refused:
        memory.require_memory(view, names, None, LENGTH, free)
    assert "--train lora" in str(refused.value)
    least = memory.needs(view, names, None, LENGTH, recompute=True).total
    assert f"--recompute takes {least / 1e9:.1f} GB" in str(refused.value)
    last = re.search(r"--last (\d) fits", str(refused.value))
    assert last is not None
    count = int(last[1])
    memory.require_memory(view, all_parameters(view, range(LAYERS - count, LAYERS)), None, LENGTH, free)
    with pytest.raises(ConfigError):
        memory.require_memory(view, all_parameters(view, range(LAYERS - count - 1, LAYERS)), None, LENGTH, free)


def test_where_nothing_fits_no_number_is_named(view: View) -> None:
    with pytest.raises(ConfigError) as refused:
        memory.require_memory(view, all_matrices(view, [4]), 8, 2048, 10)
    assert "--last" not in str(refused.value)
    assert "--seq-len 1024 takes less" in str(refused.value)
