"""Looking at a model: `inspect` adds up on every family, `scan` finds the layer that does nothing."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from kit.planted import idle_layers
from kit.tiny import DENSE_NAMES, FAMILY_NAMES, LAYERS, family_of, make_model, make_tokenizer, save_model_folder

from sned.jobs import inspect as inspections
from sned.jobs.scan import best_cuts
from sned.models import surgery
from sned.models.count import count
from sned.models.view import View

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from .conftest import Outcome

TOKENS = ["--calib", "random", "--calib-tokens", "64", "--seq-len", "16"]


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return save_model_folder(tmp_path / "llama", "llama")


@pytest.mark.parametrize("name", FAMILY_NAMES)
def test_the_parts_add_up_to_the_whole(name: str) -> None:
    view = View(make_model(name))
    whole, parts = count(view), inspections.parts(view)
    assert sum(part["params"] for part in parts.values()) == whole.params
    assert sum(part["flops_per_token"] for part in parts.values()) == whole.flops_per_token
    assert sum(part["kv_bytes_per_token"] for part in parts.values()) == whole.kv_bytes_per_token
    assert "other" not in parts, "every parameter of a known family belongs to a named part"
    assert all(parts[part]["params"] > 0 for part in ("embeddings", "attention", "mlp", "norms"))


def test_the_parts_of_a_pruned_model_add_up() -> None:
    view = View(make_model("gemma2"))
    surgery.replace(view, [1, 2], "linear", torch.eye(32))
    surgery.drop_sublayer(view, 3, "attn")
    whole, parts = count(view), inspections.parts(view)
    for name in ("params", "flops_per_token", "kv_bytes_per_token"):
        assert sum(part[name] for part in parts.values()) == getattr(whole, name)
    assert parts["other"]["params"] == 32 * 32


@pytest.mark.parametrize("name", DENSE_NAMES)
def test_what_is_called_prunable_is(name: str) -> None:
    rows = {row["what"]: row["possible"] for row in inspections.prunable(View(make_model(name)))}
    fold = View(make_model(name))
    assert rows["linear map folded into an MLP"] is (fold.fold_obstacle(2) is None)
    for part, which in (("attention of single layers", "attn"), ("MLP of single layers", "mlp")):
        assert rows[part]
        surgery.drop_sublayer(View(make_model(name)), 1, which)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [name for name in FAMILY_NAMES if family_of(name).experts])
def test_experts_are_inspected_and_refused_with_a_reason(
    sned: Callable[..., Outcome], tmp_path: Path, name: str
) -> None:
    got = sned("inspect", save_model_folder(tmp_path / "model", name), "--json")
    assert got.code == 0, got.err
    rows = {row["what"]: row for row in got.document["prunable"]}
    assert rows["whole layers"]["possible"]
    assert not rows["MLP channels"]["possible"]
    assert "mixture of experts" in rows["MLP channels"]["note"]


def test_inspect_shows_sizes_and_parts(sned: Callable[..., Outcome], llama: Path) -> None:
    got = sned("inspect", llama)
    assert got.code == 0
    for text in ("llama", "4 heads in 2 KV groups, 8 wide", "embeddings", "attention", "MLP", "whole layers"):
        assert text in got.out
    document = sned("inspect", llama, "--json").document
    assert document["sizes"] | {"layers": LAYERS, "hidden": 32, "mlp": [48]} == document["sizes"]
    assert document["memory_bytes"].keys() == {"loaded", "streamed"}
    assert document["total"]["params"] == sum(part["params"] for part in document["parts"].values())


def test_inspect_of_an_unknown_architecture_shows_the_guess(
    sned: Callable[..., Outcome], llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sned.models import families, infer

    rows = {kind: row for kind, row in families.FAMILIES.items() if kind != "llama"}
    for module in (infer, inspections):
        monkeypatch.setattr(module, "FAMILIES", rows)
    refused = sned("inspect", llama)
    assert refused.code == 3
    assert "--trust-inferred" in refused.err
    assert "guessed: Family(" in sned("inspect", llama, "--trust-inferred").out


def test_inspect_names_what_is_missing(sned: Callable[..., Outcome], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    got = sned("inspect", tmp_path)
    assert got.code == 8
    assert str(tmp_path) in got.err


def test_scan_finds_the_layer_that_does_nothing(sned: Callable[..., Outcome], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    idle_layers(make_model("llama"), [2]).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    found = sned("scan", folder, *TOKENS, "--json").document
    influence = [layer["influence"] for layer in found["layers"]]
    assert influence.index(min(influence)) == 2
    assert found["layers"][2]["attention"] == pytest.approx(0, abs=1e-6)
    assert found["layers"][2]["relative"] == pytest.approx(0, abs=1e-6)
    assert found["best_cuts"][0] | {"layers": 1, "start": 2, "end": 3} == found["best_cuts"][0]
    distance = found["distance"]["cosine"]
    assert [distance[layer][1] for layer in range(LAYERS)] == pytest.approx(influence, abs=1e-5)
    assert [len(row) for row in distance] == list(range(LAYERS + 1, 1, -1))
    assert found["cost"]["forward_layer_tokens"] == 64 * LAYERS, "one pass over the tokens"
    assert found["profiles"] is None


@pytest.mark.parametrize("name", ["gemma2", "phi", "gpt2", "mixtral"])
def test_scan_measures_every_part_of_other_families(sned: Callable[..., Outcome], tmp_path: Path, name: str) -> None:
    found = sned("scan", save_model_folder(tmp_path / "model", name), *TOKENS, "--json").document
    assert all(layer[part] > 0 for layer in found["layers"] for part in ("influence", "attention", "mlp", "relative"))


def test_scan_streamed_is_scan_loaded(sned: Callable[..., Outcome], llama: Path) -> None:
    loaded, streamed = (sned("scan", llama, *TOKENS, "--stream", how, "--json").document for how in ("off", "on"))
    assert loaded["layers"] == streamed["layers"]


def test_scan_writes_a_page_that_stands_alone(sned: Callable[..., Outcome], llama: Path, tmp_path: Path) -> None:
    out = tmp_path / "scan"
    shown = sned("scan", llama, *TOKENS, "-o", out)
    assert shown.code == 0
    assert "influence" in shown.out
    stored: dict[str, Any] = json.loads((out / "scan.json").read_text())
    assert stored["calibration"]["tokens"] == 64
    page = (out / "scan.html").read_text()
    assert page.count("<svg") == 2
    assert "http" not in page.replace("http://www.w3.org", "")
    assert sorted(path.name for path in out.iterdir()) == ["scan.html", "scan.json"]
    assert sned("scan", llama, *TOKENS, "-o", out).code == 8
    assert sned("scan", llama, *TOKENS, "-o", out, "--overwrite").code == 0


def test_scan_shows_the_shares_that_planning_with_each_allocator_gives(
    sned: Callable[..., Outcome], llama: Path, tmp_path: Path
) -> None:
    out = tmp_path / "scan"
    shown = sned("scan", llama, *TOKENS, "--sparsity", "55%", "-o", out)
    assert shown.code == 0, shown.err
    found = json.loads((out / "scan.json").read_text())["profiles"]
    assert (found["sparsity"], found["method"], found["pattern"]) == (0.55, "wanda", "row")
    assert list(found["allocators"]) == ["alphapruning", "neuroal", "owl", "uniform"]
    assert found["allocators"]["owl"]["options"] == "multiple=5.0,spread=0.08,windows=none"
    assert found["allocators"]["owl"]["evidence"]["evidence"] == "outliers, percent"
    assert found["allocators"]["uniform"]["evidence"] is None
    table = shown.out.partition("55% in all")[2]
    for name, profile in found["allocators"].items():
        plan = tmp_path / name
        assert (
            sned("plan", llama, *TOKENS, "-m", "wanda", "--allocate", name, "--sparsity", "55%", "-o", plan).code == 0
        )
        rows = json.loads((plan / "plan.json").read_text())["stages"][0]["scores"]["sparsity"]
        of_layers = [[row for row in rows if row["matrix"].startswith(f"layers.{n}.")] for n in range(LAYERS)]
        assert profile["layers"] == [sum(r["zeros"] for r in of) / sum(r["of"] for r in of) for of in of_layers]
        assert all(f"{100 * share:.1f}%" in table for share in profile["layers"])
    page = (out / "scan.html").read_text()
    assert page.count("<svg") == 3
    assert ">neuroal</text>" in page


def test_scan_shows_the_allocators_that_are_named(sned: Callable[..., Outcome], llama: Path) -> None:
    named = ["uniform", "owl", "owl:multiple=2,spread=0.1"]
    given = [*TOKENS, "--sparsity", "0.5", *(word for name in named for word in ("--allocate", name))]
    found = sned("scan", llama, *given, "--json").document
    assert list(found["profiles"]["allocators"]) == named
    first, second = (found["profiles"]["allocators"][name] for name in named[1:])
    assert first["layers"] != second["layers"]
    assert second["options"] == "multiple=2.0,spread=0.1,windows=none"
    assert found["cost"]["forward_layer_tokens"] > 64 * LAYERS
    assert "multiple=2" in sned("scan", llama, *given).out


@pytest.mark.parametrize(
    ("given", "code", "words"),
    [
        (["--allocate", "owl"], 2, "without --sparsity"),
        (["--sparsity", "50%", "--allocate", "owll"], 2, "did you mean owl?"),
        (["--sparsity", "50%", "--allocate", "owl:spread=2"], 2, "owl: spread='2'"),
        (["--sparsity", "50"], 2, "write 50% or 0.5"),
        (["--sparsity", "1"], 5, "less than 1"),
        (["--sparsity", "99.5%"], 5, "at most 0.99"),
    ],
)
def test_scan_refuses_shares_that_cannot_be(
    sned: Callable[..., Outcome], llama: Path, tmp_path: Path, given: list[str], code: int, words: str
) -> None:
    got = sned("scan", llama, *TOKENS, *given, "-o", tmp_path / "scan")
    assert (got.code, got.out) == (code, "")
    assert words in got.err
    assert not (tmp_path / "scan").exists()


def test_best_cuts_keep_the_first_and_the_last_layer() -> None:
    depth = 5
    angular = [[abs(e - s) / 10 for e in range(depth + 1)] for s in range(depth + 1)]
    angular[0][1] = angular[4][5] = 0.0
    angular[2][4] = 0.01
    assert [(cut["start"], cut["end"]) for cut in best_cuts(angular, depth)] == [(1, 2), (2, 4), (1, 4)]
