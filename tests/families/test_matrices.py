"""The matrices of a layer: named and cut out alike in every family, and read by what they say they are read by."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import torch
from kit.compare import assert_differ, assert_same_logits, logits, swept
from kit.planted import streamed_view
from kit.tiny import DENSE_NAMES, FAMILY_NAMES, HEADS, HIDDEN, IDS, LAYERS, family_of, make_model

from sned.errors import PlanError
from sned.models.matrices import all_matrices, by_row, matrices, reader_of
from sned.models.view import View
from sned.plans.ops import DropLayers, DropSublayer, Keep, Op, Replace

if TYPE_CHECKING:
    from collections.abc import Iterable

    from transformers import PreTrainedModel

    from sned.models.matrices import Matrix

every_dense_family = pytest.mark.parametrize("name", DENSE_NAMES)
GATED = [name for name in DENSE_NAMES if family_of(name).gate]
CAUGHT = [name for name in DENSE_NAMES if name != "gemma2"]
"""Families whose attention can be caught at work; the one that is left out has the projections of gemma."""
UNEVEN: list[Op] = [DropLayers(layers=[0]), DropSublayer(layer=1, which="mlp"), DropSublayer(layer=3, which="attn")]


def roles(name: str) -> str:
    return "q k v o gate up down" if name in GATED else "q k v o up down"


def unbiased(name: str) -> PreTrainedModel:
    """A model without biases in its linear modules, so that a row of zeros computes zero."""
    model = make_model(name)
    view = View(model)
    for matrix in all_matrices(view):
        bias = view.layer(matrix.layer).get_submodule(matrix.module).bias
        if isinstance(bias, torch.Tensor):
            bias.data.zero_()
    return model


def find(view: View, layer: int, role: str) -> Matrix:
    (found,) = (matrix for matrix in matrices(view, layer) if matrix.role == role)
    return found


def stored(view: View, matrix: Matrix) -> torch.Tensor:
    return view.layer(matrix.layer).get_parameter(matrix.param).data


def scale(view: View, matrix: Matrix, rows: Any, factor: float = 0.0) -> None:
    """Multiply rows of a matrix where they lie."""
    values = matrix.read(stored(view, matrix)).clone()
    values[rows] *= factor
    matrix.write(stored(view, matrix), values)


@torch.no_grad()
def received(view: View) -> dict[tuple[int, str], torch.Tensor]:
    """What every module that holds a matrix receives, `[tokens, columns]`, in the order in which they run."""
    caught: dict[tuple[int, str], torch.Tensor] = {}

    def catch(key: tuple[int, str], _module: Any, args: tuple[torch.Tensor]) -> None:
        caught[key] = args[0].flatten(0, -2).clone()

    handles = [
        view.layer(layer).get_submodule(module).register_forward_pre_hook(partial(catch, (layer, module)))
        for layer, module in {(matrix.layer, matrix.module) for matrix in all_matrices(view)}
    ]
    view.model(IDS, use_cache=False)
    for handle in handles:
        handle.remove()
    return caught


@every_dense_family
def test_they_have_the_names_and_sizes_of_the_field(name: str) -> None:
    view = View(make_model(name))
    width, groups = view.geometry.head_dim, view.axis("layers.0.attn.group").size
    heads, keys, wide = (
        (HEADS * width, HIDDEN),
        (groups * width, HIDDEN),
        (view.axis("layers.0.mlp.hidden").size, HIDDEN),
    )
    sizes = {"q": heads, "k": keys, "v": keys, "o": heads[::-1], **({"gate": wide} if name in GATED else {})}
    sizes |= {"up": wide, "down": wide[::-1]}
    assert " ".join(sizes) == roles(name)
    found = all_matrices(view)
    assert [m.name for m in found] == [
        f"layers.{i}.{'attn' if role in 'qkvo' else 'mlp'}.{role}" for i in range(LAYERS) for role in sizes
    ]
    for matrix in found:
        assert (matrix.rows, matrix.columns) == sizes[matrix.role]
        assert matrix.read(stored(view, matrix)).shape == sizes[matrix.role]
        assert matrix.size == matrix.rows * matrix.columns
    held = {(m.layer, m.param) for m in found}
    assert sum(m.size for m in found) == sum(view.layer(i).get_parameter(p).numel() for i, p in held)
    others = [p for i in view.layers for n, p in view.layer(i).named_parameters() if (i, n) not in held]
    assert all(param.dim() == 1 for param in others)


@every_dense_family
@pytest.mark.parametrize("dtype", [torch.float32, torch.bool])
def test_every_weight_has_one_place(name: str, dtype: torch.dtype) -> None:
    """What is written is read again after all the others were written, and fills what is stored."""
    view, generator = View(make_model(name)), torch.Generator().manual_seed(0)
    found = matrices(view, 1)
    values = {m: torch.rand(m.rows, m.columns, generator=generator) + 0.5 for m in found}
    tensors = {m.param: torch.zeros(stored(view, m).shape, dtype=dtype) for m in found}
    for matrix, value in values.items():
        matrix.write(tensors[matrix.param], value if dtype == torch.float32 else value > 1)
    for matrix, value in values.items():
        assert torch.equal(matrix.read(tensors[matrix.param]), value if dtype == torch.float32 else value > 1)
    filled = sum(int(tensor.count_nonzero()) for tensor in tensors.values())
    assert filled == sum(int((v > (0 if dtype == torch.float32 else 1)).sum()) for v in values.values())


@every_dense_family
def test_they_multiply_what_their_module_receives(name: str) -> None:
    view = View(unbiased(name))
    inputs = received(view)
    for matrix in matrices(view, 1):
        states = inputs[1, matrix.module]
        out = view.layer(1).get_submodule(matrix.module)(states)
        want = matrix.read(out if matrix.transposed else out.T)
        torch.testing.assert_close(matrix.read(stored(view, matrix)) @ states.T, want, atol=1e-5, rtol=1e-5)


def attended(view: View, monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """The queries, keys and values `[windows, heads, tokens, width]` that the attention of layer 1 works with."""
    calls: list[tuple[torch.Tensor, ...]] = []
    attention = torch.nn.functional.scaled_dot_product_attention

    def spy(*args: torch.Tensor, **given: Any) -> torch.Tensor:
        calls.append(args[:3] or tuple(given[key] for key in ("query", "key", "value")))
        return attention(*args, **given)

    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
        logits(view.model)
    assert len(calls) == LAYERS
    return dict(zip("qkv", calls[1], strict=True))


@pytest.mark.parametrize("name", CAUGHT)
def test_heads_lie_where_the_attention_finds_them(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    view = View(unbiased(name))
    dense, width = attended(view, monkeypatch), view.geometry.head_dim
    for role in "qkv":
        units = find(view, 1, role).rows // width
        for unit in {0, units - 1}:
            planted = View(unbiased(name))
            scale(planted, find(planted, 1, role), slice(unit * width, (unit + 1) * width))
            found = attended(planted, monkeypatch)
            for other in set("qkv") - {role}:
                assert torch.equal(found[other], dense[other])
            copies = found[role].shape[1] // units
            silent = [i for i, head in enumerate(found[role].unbind(1)) if not head.any()]
            assert silent == list(range(unit * copies, (unit + 1) * copies))


@every_dense_family
def test_values_of_a_group_are_what_its_gate_silences(name: str) -> None:
    view = View(unbiased(name))
    axis, width = view.axis("layers.1.attn.group"), view.geometry.head_dim
    for group in range(axis.size):
        planted = View(unbiased(name))
        scale(planted, find(planted, 1, "v"), slice(group * width, (group + 1) * width))
        others = [unit for unit in range(axis.size) if unit != group]
        op = Keep(axis=axis.name, units=others) if others else DropSublayer(layer=1, which="attn")
        with op.trial(view, {}):
            assert_same_logits(logits(planted.model), swept(view))
        assert_differ(logits(planted.model), logits(view.model))


@pytest.mark.parametrize("name", GATED)
def test_a_gate_is_not_an_up(name: str) -> None:
    """What the MLP's output projection reads is linear in one of them alone."""
    seen = {}
    for role in (None, "up", "gate"):
        view = View(unbiased(name))
        if role:
            scale(view, find(view, 1, role), slice(None), 2.0)
        seen[role] = received(view)[1, find(view, 1, "down").module]
    assert torch.equal(seen["up"], 2 * seen[None])
    assert_differ(seen["gate"], 2 * seen[None])


def left(units: Iterable[int], block: int) -> list[int]:
    return [unit * block + i for unit in units for i in range(block)]


@every_dense_family
def test_after_cuts_they_are_what_is_left(name: str) -> None:
    view, streamed, base = View(make_model(name)), streamed_view(name), View(make_model(name))
    groups, width = view.axis("layers.2.attn.group").size, view.geometry.head_dim
    units, channels = [groups - 1], range(3, 40, 2)
    for each in (view, streamed):
        DropLayers(layers=[0]).apply(each, {})
        Keep(axis="layers.2.attn.group", units=units).apply(each, {})
        Keep(axis="layers.2.mlp.hidden", units=channels).apply(each, {})
    queries, keys = left(units, width * HEADS // groups), left(units, width)
    rows = {"q": queries, "k": keys, "v": keys, "gate": channels, "up": channels}
    columns = {"o": queries, "down": channels}
    for matrix, before in zip(matrices(view, 2), matrices(base, 2), strict=True):
        want = before.read(stored(base, before))
        want = want[list(rows.get(matrix.role, range(len(want))))]
        want = want[:, list(columns.get(matrix.role, range(want.shape[1])))]
        assert matrix.name == before.name
        assert (matrix.rows, matrix.columns) == want.shape
        assert torch.equal(matrix.read(stored(view, matrix)), want)
    assert all_matrices(streamed) == all_matrices(view)
    assert all_matrices(View(view.model)) == [replace(m, layer=m.layer - 1) for m in all_matrices(view)]


@every_dense_family
def test_what_is_gone_has_none(name: str) -> None:
    view = View(make_model(name))
    for op in [*UNEVEN, Replace(layers=[4], tensor="map")]:
        op.apply(view, {"map": torch.eye(HIDDEN)})
    mlp = roles(name).removeprefix("q k v o ")
    want = {1: "q k v o", 2: roles(name), 3: mlp, 4: ""}
    assert {i: " ".join(m.role for m in matrices(view, i)) for i in view.layers} == want
    with pytest.raises(PlanError, match="layer 0 was already removed"):
        matrices(view, 0)


@pytest.mark.parametrize("name", sorted(set(FAMILY_NAMES) - set(DENSE_NAMES)))
def test_experts_are_matrices_of_their_own(name: str) -> None:
    """Every weight of the stacked experts belongs to one matrix; the router's belong to none."""
    view = View(make_model(name))
    layer = next(i for i in view.layers if any(m.expert is not None for m in matrices(view, i)))
    block, own = view.layer(layer), [m for m in matrices(view, layer) if m.expert is not None]
    assert len({m.name for m in own}) == len(own)
    for param in {m.param for m in own}:
        stored = torch.zeros(block.get_parameter(param).shape)
        for number, matrix in enumerate(m for m in own if m.param == param):
            assert matrix.read(stored).shape == (matrix.rows, matrix.columns)
            assert not matrix.read(stored).any(), "two matrices share a weight"
            matrix.write(stored, torch.full((matrix.rows, matrix.columns), float(number + 1)))
        assert stored.all(), "a weight belongs to no matrix"
    assert not any("router" in m.param or m.param.endswith("gate.weight") for m in own)


def some_rows(matrix: Matrix) -> torch.Tensor:
    """A few rows, the first and the last among them, marked with 1."""
    marked = torch.zeros(matrix.rows, dtype=torch.float64)
    marked[[0, matrix.rows // 2 + 1, matrix.rows - 1]] = 1.0
    return marked


@every_dense_family
@pytest.mark.parametrize("trimmed", [False, True])
def test_a_row_is_read_where_it_says_and_nowhere_else(name: str, trimmed: bool) -> None:
    """Values through all query heads of their group, channels of an MLP one by one."""

    def fresh() -> View:
        view = View(unbiased(name))
        if trimmed:
            Keep(axis="layers.1.attn.group", units=[view.axis("layers.1.attn.group").size - 1]).apply(view, {})
            Keep(axis="layers.1.mlp.hidden", units=range(3, 40, 2)).apply(view, {})
        return view

    dense = received(fresh())
    for role in roles(name).split():
        if role not in ("v", "gate", "up"):
            continue
        view = fresh()
        matrix = find(view, 1, role)
        reader = reader_of(view, matrix)
        assert reader == (1, find(view, 1, "o" if role == "v" else "down").module)
        scale(view, matrix, some_rows(matrix).bool())
        planted = received(view)[reader]
        changed = (planted != dense[reader]).any(0)
        assert torch.equal(by_row(view, matrix, changed.double()), some_rows(matrix))
        assert not planted[:, changed].any()


def first_to_notice(view: View, matrix: Matrix, dense: dict[tuple[int, str], torch.Tensor]) -> set[tuple[int, str]]:
    """What receives something else once a matrix is zero: the first, and what reads the same as that."""
    scale(view, matrix, slice(None))
    noticed = [key for key, states in received(view).items() if not torch.equal(states, dense[key])]
    return {key for key, states in dense.items() if noticed and torch.equal(states, dense[noticed[0]])}


@every_dense_family
def test_the_reader_is_the_first_to_notice(name: str) -> None:
    """In layers that are whole, and in ones without attention or MLP; nothing reads the last rows but the head."""

    def fresh() -> View:
        view = View(make_model(name))
        for op in UNEVEN:
            op.apply(view, {})
        return view

    view = fresh()
    dense, unread = received(view), []
    for matrix in [m for m in all_matrices(view) if m.layer == 2 or m.role in ("o", "down")]:
        reader = reader_of(view, matrix)
        if matrix.role in ("q", "k"):
            assert reader is None
            continue
        noticed = first_to_notice(fresh(), matrix, dense)
        assert (reader in noticed) if noticed else reader is None, matrix.name
        unread += [] if noticed else [matrix.name]
    assert unread == (["layers.4.attn.o"] if view.parallel else []) + ["layers.4.mlp.down"]


@pytest.mark.parametrize("name", ["llama", "phi", "gpt2"])
def test_a_linear_map_reads_no_rows(name: str) -> None:
    view = View(make_model(name))
    Replace(layers=[2], tensor="map").apply(view, {"map": torch.eye(HIDDEN)})
    assert reader_of(view, find(view, 1, "down")) is None
    assert reader_of(view, find(view, 0, "down")) == (1, find(view, 1, "q").module)


@every_dense_family
def test_rows_that_write_to_the_stream_are_read_channel_by_channel(name: str) -> None:
    view = View(make_model(name))
    for matrix in (find(view, 1, "o"), find(view, 1, "down")):
        reader = reader_of(view, matrix)
        (columns,) = {m.columns for m in all_matrices(view) if (m.layer, m.module) == reader}
        assert by_row(view, matrix, torch.arange(columns)).tolist() == list(range(matrix.rows))
