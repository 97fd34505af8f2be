"""Running layer by layer gives what the model itself gives, and every activation is what it claims to be."""

from __future__ import annotations

import pytest
import torch
from kit.compare import TOLERANCE, assert_same_logits, logits, swept
from kit.tiny import FAMILY_NAMES, IDS, LAYERS, family_of, make_model, tokens

from sned.errors import NumericalError, PlanError
from sned.models.forward import LayerRunner
from sned.models.view import View
from sned.plans.ops import DropLayers
from sned.runtime import sweep as sweeps
from sned.runtime.sweep import Cost, Site, Sweep

every_family = pytest.mark.parametrize("name", FAMILY_NAMES)


def activations(view: View, *sites: Site, ids: torch.Tensor = IDS) -> list[torch.Tensor]:
    """Each site's activations over all ids, every site asked for by itself."""
    caught: dict[int, list[torch.Tensor]] = {}
    sweep = Sweep(view)
    for chunk in sweep.chunks(ids):
        for number, (value,) in sweep.activations(chunk, [(site,) for site in sites]):
            caught.setdefault(number, []).append(value.clone())
    return [torch.cat(caught[number]) for number in range(len(sites))]


@every_family
def test_layer_by_layer_is_the_forward_pass(name: str) -> None:
    model = make_model(name)
    view = View(model)
    assert_same_logits(swept(view), logits(model), exact=True)


@every_family
def test_a_runner_keeps_batches_of_several_shapes_apart(name: str) -> None:
    model = make_model(name)
    runner = LayerRunner(view := View(model))
    batches = [IDS, IDS[:1, :7], IDS[:, :9]]
    with torch.no_grad():
        states = [runner.enter(ids) for ids in batches]
        for i in view.layers:
            states = [runner.layer(i, state) for state in states]
        for ids, state in zip(batches, states, strict=True):
            assert_same_logits(runner.leave(ids, state), logits(model, ids), exact=True)


@every_family
def test_a_run_leaves_no_trace_in_the_model(name: str) -> None:
    model = make_model(name)
    before = logits(model)
    activations(View(model), Site("attn", 1), Site("mlp", 2), Site("resid", LAYERS))
    assert_same_logits(logits(model), before, exact=True)
    assert not any("forward" in vars(m) or m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@every_family
@pytest.mark.parametrize("layer", [0, 2, LAYERS - 1])
def test_a_layer_adds_its_attention_and_its_mlp_to_the_stream(name: str, layer: int) -> None:
    sites = [Site("resid", layer), Site("attn", layer), Site("mlp", layer), Site("resid", layer + 1)]
    before, attn, mlp, after = activations(View(make_model(name)), *sites)
    assert attn.abs().max() > 0.01
    assert mlp.abs().max() > 0.01
    torch.testing.assert_close(before + attn + mlp, after, **TOLERANCE)


@every_family
def test_the_residual_stream_is_the_input_of_each_layer(name: str) -> None:
    model = make_model(name)
    view = View(model)
    caught: list[torch.Tensor] = []
    for layer in view.layers.values():
        layer.register_forward_pre_hook(
            lambda _module, args, kwargs: caught.append((args[0] if args else kwargs["hidden_states"]).clone()),
            with_kwargs=True,
        )
    logits(model)
    streams = activations(View(make_model(name)), *(Site("resid", i) for i in range(LAYERS)))
    for stream, received in zip(streams, caught, strict=True):
        assert torch.equal(stream, received)


@every_family
def test_batches_do_not_change_activations(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ids, view = tokens(6, 12).ids, View(make_model(name))
    sites = [Site("resid", 1), Site("mlp", 3), Site("resid", LAYERS)]
    whole = activations(view, *sites, ids=ids)
    monkeypatch.setattr(sweeps, "BATCH_TOKENS", 24)
    for got, want in zip(activations(view, *sites, ids=ids), whole, strict=True):
        torch.testing.assert_close(got, want, **TOLERANCE)


def test_sites_that_are_wanted_together_come_together() -> None:
    view = View(make_model("llama"))
    sites = (Site("mlp", 0), Site("resid", 1), Site("resid", 3))
    apart = activations(view, *sites)
    sweep = Sweep(view)
    (chunk,) = sweep.chunks(IDS)
    ((number, together),) = sweep.activations(chunk, [sites])
    assert number == 0
    assert all(torch.equal(a, b) for a, b in zip(apart, together, strict=True))


def test_a_group_is_served_once_whatever_the_order_of_its_sites() -> None:
    view = View(make_model("falcon"))
    groups = [
        (Site("resid", 3), Site("attn", 1)),
        (Site("attn", 1),),
        (Site("resid", 1), Site("mlp", 1), Site("resid", 3)),
    ]
    sweep = Sweep(view)
    (chunk,) = sweep.chunks(IDS)
    served = dict(sweep.activations(chunk, groups))
    assert sorted(served) == [0, 1, 2]
    assert torch.equal(served[0][1], served[1][0])
    assert torch.equal(served[0][0], served[2][2])


def test_a_run_stops_at_the_last_layer_needed_and_counts_what_it_ran() -> None:
    view, ids = View(make_model("llama")), tokens(2, 8).ids

    def spent(*sites: Site) -> int:
        cost = Cost()
        sweep = Sweep(view, cost)
        for chunk in sweep.chunks(ids):
            list(sweep.activations(chunk, [sites]))
        return cost.forward_layer_tokens // ids.numel()

    assert spent(Site("resid", 0)) == 0
    assert spent(Site("resid", 2)) == 2
    assert spent(Site("mlp", 2)) == 3
    assert spent(Site("resid", LAYERS), Site("attn", 0)) == LAYERS


def test_a_site_of_a_layer_that_is_gone_is_an_error() -> None:
    view = View(make_model("llama"))
    DropLayers(layers=[2]).apply(view, {})
    with pytest.raises(PlanError, match="layer 2 was already removed"):
        activations(view, Site("resid", 2))
    assert len(activations(view, Site("resid", 3), Site("resid", LAYERS))) == 2


def test_base_indices_stay_when_layers_go() -> None:
    view = View(make_model("llama"))
    (want,) = activations(view, Site("resid", 1))
    DropLayers(layers=[1, 2]).apply(view, {})
    (got,) = activations(view, Site("resid", 3))
    assert torch.equal(got, want)


@every_family
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_layer_that_overflows_is_named(name: str, bad: float) -> None:
    model = make_model(name)
    view = View(model)
    weight = view.layer(2).get_parameter(f"{family_of(name).attn}.{family_of(name).o}.weight")
    weight.data[0, 0] = bad
    with pytest.raises(NumericalError, match="layer 2 returns NaN or infinity"):
        swept(view)
