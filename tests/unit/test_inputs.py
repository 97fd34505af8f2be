"""What matrices receive: sums against torch over all tokens at once, and shared where the inputs are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from kit.planning import small_batches
from kit.planted import layers_of, streamed_view
from kit.tiny import DENSE_NAMES, FAMILY_NAMES, make_model, tokens

from sned.errors import NumericalError
from sned.models.matrices import matrices
from sned.models.view import View
from sned.plans.ops import DropLayers, SetWeight
from sned.runtime.inputs import Inputs, add_gram, gather
from sned.runtime.lockstep import Stream
from sned.runtime.sweep import Cost

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sned.runtime.inputs import Needs

TEXT = tokens(6, 16, seed=3)
ONE_NORM = ["falcon/multi_query", "phi"]
"""Families whose attention and MLP read the very same tensor."""
either = pytest.mark.parametrize("needs", ["norms", "gram"])
EXPERT_NAMES = sorted(set(FAMILY_NAMES) - set(DENSE_NAMES))
every_dense_family = pytest.mark.parametrize("name", DENSE_NAMES)


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def close(got: torch.Tensor, want: torch.Tensor) -> None:
    torch.testing.assert_close(got.double(), want.double(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("columns", [1, 2, 3, 4, 5, 7, 8, 13, 64])
def test_strips_make_the_upper_triangle(columns: int) -> None:
    states, gram = draw(columns, 40, columns), torch.zeros(columns, columns)
    for batch in states.split([25, 15]):
        add_gram(gram, batch)
    close(gram.triu(), (states.T.double() @ states.double()).triu())


@either
@pytest.mark.parametrize("columns", [1, 6, 9])
def test_sums_over_batches_are_those_over_all_tokens(columns: int, needs: Needs) -> None:
    """Batches differ in size and in mean: what they differ by is part of the variance."""
    batches = [draw(1, 3, 5, columns) + 2, draw(2, 1, 7, columns) - 3, draw(3, 11, columns) * 4]
    sums = Inputs(columns, needs)
    for batch in batches:
        sums.add(batch)
    every = torch.cat([batch.flatten(0, -2) for batch in batches]).double()
    assert sums.tokens == len(every) == 33
    close(sums.mean, every.mean(0))
    close(sums.variance, every.var(0, correction=0))
    close(sums.norm, every.square().mean(0).sqrt())
    close(sums.squares, every.square().mean(0))
    if needs == "gram":
        close(sums.gram, every.T @ every / len(every))
        assert torch.equal(sums.gram, sums.gram.T)
    else:
        with pytest.raises(ValueError, match="no products"):
            _ = sums.gram


@either
def test_a_channel_that_never_moves_has_no_variance(needs: Needs) -> None:
    sums = Inputs(3, needs)
    sums.add(torch.tensor([0.0, 1000.1, -7.0]).expand(50, 3))
    assert (sums.variance >= 0).all()
    torch.testing.assert_close(sums.variance, torch.zeros(3), atol=1e-6 * 1000.1**2, rtol=0)


@either
def test_narrow_states_are_summed_in_float32(needs: Needs) -> None:
    """In float16 the squares of these would be infinite, and their sum would stop growing."""
    states = (300 + draw(0, 5000, 4)).half()
    sums = Inputs(4, needs)
    sums.add(states)
    torch.testing.assert_close(sums.norm.double(), states.double().square().mean(0).sqrt(), atol=0, rtol=1e-5)
    torch.testing.assert_close(sums.mean.double(), states.double().mean(0), atol=0, rtol=1e-5)


@torch.no_grad()
def recorded(view: View, layer: int) -> dict[str, torch.Tensor]:
    """What the modules of a layer receive when the model runs by itself, `[tokens, columns]`."""
    caught: dict[str, torch.Tensor] = {}
    handles = [
        view.layer(layer)
        .get_submodule(module)
        .register_forward_pre_hook(lambda _, args, module=module: caught.update({module: args[0].flatten(0, -2) + 0.0}))
        for module in {matrix.module for matrix in matrices(view, layer)}
    ]
    view.model(TEXT.ids, use_cache=False)
    for handle in handles:
        handle.remove()
    return caught


def gathered(view: View, layer: int, needs: Needs = "norms", **given: bool) -> dict[str, Inputs]:
    return gather(Stream(view, TEXT.ids, Cost()), layer, matrices(view, layer), needs, **given)


@every_dense_family
def test_every_matrix_gets_the_sums_of_what_its_module_receives(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    small_batches(monkeypatch)
    view = View(make_model(name))
    for layer in (0, 3):
        want = recorded(view, layer)
        found = gathered(view, layer, "gram")
        assert found.keys() == {matrix.module for matrix in matrices(view, layer)} == want.keys()
        for module, states in want.items():
            assert found[module].tokens == TEXT.n_tokens
            torch.testing.assert_close(found[module].gram, states.T @ states / len(states), atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(found[module].mean, states.mean(0), atol=1e-4, rtol=1e-4)


@every_dense_family
def test_what_is_the_same_is_summed_once_and_nothing_else(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    small_batches(monkeypatch)
    view = View(make_model(name))
    want, found = recorded(view, 2), gathered(view, 2)
    for one, mine in want.items():
        for other, theirs in want.items():
            same = mine.shape == theirs.shape and torch.equal(mine, theirs)
            assert (found[one] is found[other]) == same, f"{one} and {other}"
    module = {matrix.role: matrix.module for matrix in matrices(view, 2)}
    assert found[module["q"]] is found[module["k"]] is found[module["v"]]
    assert found[module.get("gate", module["up"])] is found[module["up"]]
    assert (found[module["q"]] is found[module["up"]]) == (name in ONE_NORM)
    assert len({id(sums) for sums in found.values()}) == (3 if name in ONE_NORM else 4)


@every_dense_family
def test_a_streamed_model_gives_the_same_bits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    small_batches(monkeypatch)
    loaded, streamed = gathered(View(make_model(name)), 2, "gram"), gathered(streamed_view(name), 2, "gram")
    assert loaded.keys() == streamed.keys()
    for module, sums in loaded.items():
        assert torch.equal(sums.gram, streamed[module].gram)
        assert torch.equal(sums.mean, streamed[module].mean)


@pytest.mark.parametrize("make", [lambda: View(make_model("llama")), lambda: streamed_view("llama")])
@pytest.mark.parametrize("stay", [True, False])
def test_a_stream_that_stays_sees_how_a_layer_was_changed(make, stay: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that moves on takes along what the layer computed before."""
    small_batches(monkeypatch)
    view, changed = make(), View(make_model("llama"))
    op = SetWeight(layer=1, param="mlp.down_proj.weight", tensor="w")
    tensors = {"w": 0.5 * changed.layer(1).get_parameter(op.param).detach()}
    stream = Stream(view, TEXT.ids, Cost())
    first = gather(stream, 1, matrices(view, 1), "norms", stay=stay)
    op.apply(view, tensors)
    then = gather(stream, 2, matrices(view, 2), "norms")
    if stay:
        op.apply(changed, tensors)
    for module, states in recorded(changed, 2).items():
        close(then[module].squares, states.double().square().mean(0))
    assert first["mlp.down_proj"].tokens == then["mlp.down_proj"].tokens == TEXT.n_tokens


@pytest.mark.parametrize("stay", [True, False])
def test_layers_that_are_gone_are_passed(stay: bool) -> None:
    view = View(make_model("llama"))
    DropLayers(layers=[0, 2]).apply(view, {})
    stream = Stream(view, TEXT.ids, Cost())
    gather(stream, 1, matrices(view, 1), "norms", stay=stay)
    for module, states in recorded(view, 3).items():
        close(gather(stream, 3, matrices(view, 3), "norms")[module].squares, states.double().square().mean(0))


def test_every_batch_runs_once_through_a_layer_and_not_at_all_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    small_batches(monkeypatch)
    view, cost, told = View(make_model("llama")), Cost(), []
    stream = Stream(view, TEXT.ids, cost)
    for layer in range(3):
        gather(stream, layer, matrices(view, layer), "norms", told.append, stay=False)
    assert cost.forward_layer_tokens == 3 * TEXT.n_tokens
    assert told == [32] * 9
    gather(stream, 3, matrices(view, 3), "gram", told.append)
    gather(stream, 4, matrices(view, 4), "gram", told.append)
    assert cost.forward_layer_tokens == 6 * TEXT.n_tokens, "layer 3 ran once to look, and once to pass"
    spent = cost.forward_layer_tokens
    assert gather(stream, 4, matrices(view, 4), "nothing") == {}
    assert cost.forward_layer_tokens == spent


def sick(value: float, *, undone: bool) -> View:
    """Let one channel that the MLP of layer 2 writes be too large; undone again, or not, by what reads it."""
    model = make_model("llama")
    mlp = layers_of(model)[2].mlp
    mlp.up_proj.weight.data[5] *= value
    if undone:
        mlp.down_proj.weight.data[:, 5] = 0
    return View(model)


@either
def test_what_is_too_large_to_sum_up_names_the_module_and_the_layer(needs: Needs) -> None:
    with pytest.raises(NumericalError, match=r"what mlp\.down_proj of layer 2 receives holds NaN or infinity"):
        gathered(sick(1e25, undone=True), 2, needs)


def test_a_layer_that_returns_infinity_is_named() -> None:
    view = sick(torch.inf, undone=False)
    assert gathered(view, 1)
    with pytest.raises(NumericalError, match=r"what mlp\.down_proj of layer 2 receives holds NaN or infinity"):
        gathered(view, 2)
    with pytest.raises(NumericalError, match="layer 2 returns NaN or infinity"):
        gather(Stream(view, TEXT.ids, Cost()), 2, matrices(view, 2), "norms", stay=False)


def test_hooks_are_gone_afterwards() -> None:
    view = View(make_model("llama"))

    def hooks() -> Iterator[int]:
        return (len(module._forward_pre_hooks) for module in view.model.modules())

    gathered(view, 1)
    batches = Stream(view, TEXT.ids, Cost()).inputs(1, ["mlp.down_proj"], stay=True)
    next(batches)
    assert sum(hooks()) == 1
    batches.close()
    assert sum(hooks()) == 0


@pytest.mark.parametrize("name", EXPERT_NAMES)
def test_an_expert_receives_the_tokens_that_are_sent_to_it(name: str) -> None:
    """What the experts module adds up, expert by expert, is what its down projections make of their inputs."""
    view = View(make_model(name))
    stream = Stream(view, TEXT.ids, Cost())
    own = [m for m in matrices(view, 0) if m.expert is not None]
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    module = view.layer(0).get_submodule(own[0].module)
    handle = module.register_forward_pre_hook(lambda _module, args: seen.append((args[0], args[1])))
    found = gather(stream, 0, own, "gram")
    handle.remove()
    for expert in {m.expert for m in own}:
        gate, up, down = (next(m for m in own if m.expert == expert and m.role == r) for r in ("gate", "up", "down"))
        sent = [states[[expert in row for row in picked.tolist()]] for states, picked in seen]
        tokens_of = torch.cat(sent).double()
        assert found[gate.reads] is found[up.reads]
        assert found[gate.reads].tokens == found[down.reads].tokens == len(tokens_of) > 0
        close(found[gate.reads].gram, tokens_of.T @ tokens_of / len(tokens_of))
        weights = [m.read(view.layer(0).get_parameter(m.param).detach()).double() for m in (gate, up)]
        entering = module.act_fn(tokens_of @ weights[0].T) * (tokens_of @ weights[1].T)
        close(found[down.reads].norm, entering.square().mean(0).sqrt())


def test_where_no_token_came_by_magnitudes_decide() -> None:
    for needs in ("norms", "gram"):
        sums = Inputs(3, needs)
        assert sums.norm.tolist() == [1.0, 1.0, 1.0]
    assert torch.equal(sums.gram, torch.eye(3))
