"""Allocators side by side: the shares are those of a plan, and rows and lines show them for any depth."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from kit.planning import plan_on
from kit.sparse import ALLOCATORS, TEXT, shortened, weights_of
from kit.tiny import make_model

from sned.jobs.profiles import profiles
from sned.jobs.request import ProfilesRequest
from sned.jobs.session import Recorder, Session
from sned.models import surgery
from sned.models.view import View
from sned.progress import Progress
from sned.report import profiles as words
from sned.report import profiles_picture as picture
from sned.report.scan_picture import render
from sned.runtime import allocator as module
from sned.runtime.allocator import Task, allocator
from sned.runtime.context import Context
from sned.runtime.quotas import Shares, by_layer

DEPTHS = [2, 5, 30, 41, 100]


def side_by_side(view: View, *allocators: str, sparsity: float = 0.55) -> dict[str, Any]:
    session = Session(Recorder(Progress()))
    return profiles(view, TEXT, ProfilesRequest(sparsity, allocators), 0, session)["allocators"]


def planned(view: View, allocate: str, sparsity: float = 0.55) -> list[float]:
    """The share of zeros that a plan makes of every layer."""
    layers = list(view.layers)
    plan = plan_on(view, "wanda", allocate=allocate, sparsity=sparsity, tokens=TEXT)
    rows = plan.stages[0].scores["sparsity"]
    of_layers = [[row for row in rows if row["matrix"].startswith(f"layers.{layer}.")] for layer in layers]
    return [sum(row["zeros"] for row in of) / sum(row["of"] for row in of) for of in of_layers]


class TestShares:
    @pytest.mark.parametrize("name", ["llama", "gpt2", "phi3", "mixtral"])
    def test_they_are_those_of_a_plan(self, name: str) -> None:
        found = side_by_side(View(make_model(name)), *ALLOCATORS)
        assert list(found) == ALLOCATORS
        for allocate, profile in found.items():
            assert profile["layers"] == planned(View(make_model(name)), allocate), allocate

    def test_a_shortened_model_has_a_share_for_each_layer_left(self) -> None:
        assert side_by_side(shortened("llama"), "owl")["owl"]["layers"] == planned(shortened("llama"), "owl")

    def test_a_layer_without_matrices_has_none(self) -> None:
        view = View(make_model("llama"))
        surgery.replace(view, [2], "linear", torch.eye(32))
        shares = side_by_side(view, "uniform", "owl")
        assert [[share is None for share in profile["layers"]].index(True) for profile in shares.values()] == [2, 2]

    def test_the_model_stays_as_it_is(self) -> None:
        view = View(make_model("llama"))
        before = weights_of(view)
        side_by_side(view)
        assert all(torch.equal(weight, before[matrix]) for matrix, weight in weights_of(view).items())
        assert not view.changed

    def test_an_allocator_of_somebody_else_has_its_chance_from_the_seed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        @allocator(paper="")
        def chance(ctx: Context, task: Task, *, spread: float = 0.2) -> Shares:
            drawn = torch.rand(len(task.layers), generator=ctx.generator) * spread + task.sparsity - spread / 2
            ctx.scores["allocation"] = {"evidence": "dice"}
            return by_layer(task.matrices, dict(zip(task.layers, drawn.tolist(), strict=True)))

        monkeypatch.setattr(module, "find", lambda _kind, _name: chance)
        monkeypatch.setattr(module, "entries", lambda _group: {"chance": None})
        view = View(make_model("llama"))
        first = side_by_side(view)
        assert list(first) == ["chance"]
        assert first["chance"]["evidence"] == {"evidence": "dice"}
        assert first["chance"]["layers"] == planned(View(make_model("llama")), "chance")
        twice = side_by_side(view, "chance", "chance:", "chance:spread=0.1")
        assert list(twice) == ["chance", "chance:spread=0.1"]
        assert twice["chance"] == first["chance"]


def fabricated(depth: int, *more: str) -> dict[str, Any]:
    """A scan of so many layers with three allocators, and others of these names."""
    rising = [0.5 + 0.2 * (i / (depth - 1) - 0.5) for i in range(depth)]
    shares = {"neuroal": rising, "owl": rising[::-1], "uniform": [0.5] * depth} | dict.fromkeys(more, rising)
    made = {name: {"options": "spread=0.1", "layers": row, "evidence": None} for name, row in shares.items()}
    made["owl"]["evidence"] = {"evidence": "outliers, percent"}
    layer = {"influence": 0.1, "attention": 0.1, "mlp": 0.1, "relative": 0.1}
    return {
        "sned": "0",
        "model": {"source": "tiny", "family": "llama", "layers": depth, "dtype": "float32"},
        "calibration": {"source": "builtin", "tokens": 64, "seq_len": 16},
        "layers": [layer | {"layer": i} for i in range(depth)],
        "distance": {"angular": [[None if n == 0 else 0.1 * n for n in range(depth - s + 1)] for s in range(depth)]},
        "best_cuts": [],
        "profiles": {"sparsity": 0.5, "method": "wanda", "pattern": "row", "allocators": made},
    }


class TestWords:
    def test_rows_that_read_alike_are_one(self) -> None:
        scan = fabricated(5)
        assert [len(row) for row in words.rows(scan)] == [4] * 5
        for profile in scan["profiles"]["allocators"].values():
            profile["layers"] = [0.5, 0.50001, 0.4, None, 0.4]
        assert words.rows(scan) == [("0–1", *["50.0%"] * 3), ("2, 4", *["40.0%"] * 3), ("3", *["–"] * 3)]

    def test_the_ends_are_named(self) -> None:
        scan = fabricated(5)
        assert words.extremes(scan, "neuroal") == ("40.0% (0)", "60.0% (4)")
        assert words.extremes(scan, "uniform") == ("50.0%", "50.0%")

    @pytest.mark.parametrize("evidence", [None, [], "x", {}, {"evidence": 3}])
    def test_what_an_allocator_left_may_be_anything(self, evidence: Any) -> None:
        assert words.basis({"evidence": evidence}) == ""
        assert words.basis(fabricated(5)["profiles"]["allocators"]["owl"]) == "outliers, percent"


class TestPicture:
    @pytest.mark.parametrize("depth", DEPTHS)
    def test_every_allocator_is_named_at_its_line(self, depth: int) -> None:
        found = fabricated(depth, "owl:multiple=3")["profiles"]["allocators"]
        drawn = picture.lines({name: profile["layers"] for name, profile in found.items()}, 0.5)
        assert all(f">{name}</text>" in drawn for name in found)
        assert drawn == picture.lines({name: profile["layers"] for name, profile in found.items()}, 0.5)

    @pytest.mark.parametrize("shares", [[0.5, 0.5], [None, 0.3, 0.7], [0.2, 0.8, None], [0.500001, 0.499999]])
    def test_any_shares_can_be_drawn(self, shares: list[float | None]) -> None:
        assert "nan" not in picture.lines({"owl": shares}, 0.5).lower()
        assert ">uniform</text>" in picture.lines({"owl": shares}, 0.5), "the reference"

    def test_long_names_are_cut_short(self) -> None:
        name = "neuroal:step=both,reference=local,every=true,windows=4"
        assert ">neuroal:step=both,reference=local,e…</text>" in picture.lines({name: [0.4, 0.6]}, 0.5)

    def test_the_page_quotes_names_safely(self) -> None:
        page = render(fabricated(5, "<b>&:x=<i>"))
        assert "<b>&" not in page
        assert "&lt;b&gt;&amp;:x=&lt;i&gt;" in page
        assert page.count("<svg") == 3
        scan = fabricated(5) | {"profiles": None}
        assert "Shares of zeros" not in render(scan)


@pytest.mark.parametrize("wanted", [[5.0], [3.0, 3.0, 3.0], [0.0, 90.0, 91.0, 100.0], [100.0] * 5, [50.0, 0.0, 49.0]])
def test_labels_stand_apart_in_the_order_of_the_lines(wanted: list[float]) -> None:
    placed = picture.apart(wanted, 20, 100)
    order = sorted(range(len(wanted)), key=lambda i: (wanted[i], i))
    found = [placed[i] for i in order]
    assert all(b - a >= 20 - 1e-9 for a, b in pairwise(found))
    assert min(found) >= 0
    assert max(found) <= 100
    assert picture.apart([10, 50, 90], 20, 100) == [10, 50, 90], "what is apart stays where it is"
