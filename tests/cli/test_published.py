"""Reading what the authors' own code wrote, and writing what it reads."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from kit.tiny import LAYERS, MLP, save_model_folder

from sned.plans.store import load_plan

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from .conftest import Outcome

BLOCKS = {"1": [["mha", 3]], "2": [["mlp", 1], ["mha", 3]], "3": [["mlp", 1], ["mha", 3], ["mlp", 3]]}


def widths(**changes: Any) -> dict[str, Any]:
    """A MultiPruner result: one attention gone, one MLP narrowed."""
    full = {str(layer): MLP for layer in range(LAYERS)}
    return {"pruned_attn_idx": [3], "pruned_mlp_idx": [], "pruned_mlp_width": full | {"2": 20}} | changes


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return save_model_folder(tmp_path / "llama", "llama")


@pytest.fixture
def write(tmp_path: Path) -> Callable[[object], Path]:
    def write(document: object) -> Path:
        file = tmp_path / "theirs.json"
        file.write_text(document if isinstance(document, str) else json.dumps(document))
        return file

    return write


def test_their_blocks_become_a_plan(
    sned: Callable[..., Outcome], llama: Path, write: Callable[[object], Path], tmp_path: Path
) -> None:
    got = sned("import", llama, write(BLOCKS), "-o", tmp_path / "plan")
    assert got.code == 0, got.err
    for text in ("remove the mlp of layer 1", "imported (file=theirs.json, format=blockpruner)", "Apply  sned apply"):
        assert text in got.out
    assert json.loads(sned("show", tmp_path / "plan", "--as", "blockpruner").out) == BLOCKS
    taken = sned("import", llama, write(BLOCKS), "--blocks", "2", "-o", tmp_path / "two", "--json").document
    assert [op["layer"] for op in taken["stages"][0]["ops"]] == [3, 1]
    assert taken["pruned"]["params"] < taken["dense"]["params"]


@pytest.mark.parametrize("flag", ["--reorder", "--no-reorder"])
def test_their_widths_become_a_plan_and_go_back(
    sned: Callable[..., Outcome], llama: Path, write: Callable[[object], Path], tmp_path: Path, flag: str
) -> None:
    out, by_magnitude = tmp_path / "plan", flag == "--reorder"
    assert sned("import", llama, write(widths()), flag, "-o", out).code == 0
    stage = load_plan(out).stages[0]
    assert stage.options == {"file": "theirs.json", "format": "multipruner", "reorder": by_magnitude}
    (units,) = [op.units for op in stage.ops if op.op == "keep"]
    assert (units == tuple(range(20))) is not by_magnitude
    back = sned("show", out, "--as", "multipruner").document
    assert back["pruned_mlp_width"] == widths()["pruned_mlp_width"]
    assert back["weight_reorder"] is by_magnitude
    again = tmp_path / "again"
    assert sned("import", llama, write(back), "-o", again).code == 0
    assert load_plan(again).ops == load_plan(out).ops


def test_a_base_that_has_moved_can_be_named(
    sned: Callable[..., Outcome], llama: Path, write: Callable[[object], Path], tmp_path: Path
) -> None:
    sned("import", llama, write(widths()), "-o", tmp_path / "plan")
    moved = llama.rename(tmp_path / "moved")
    lost = sned("show", tmp_path / "plan", "--as", "multipruner")
    assert (lost.code, lost.out) == (8, "")
    assert "--base MODEL" in lost.err
    found = sned("show", tmp_path / "plan", "--as", "multipruner", "--base", moved)
    assert found.document["pruned_attn_idx"] == [3]
    other = save_model_folder(tmp_path / "other", "qwen2")
    wrong = sned("show", tmp_path / "plan", "--as", "multipruner", "--base", other)
    assert wrong.code == 4
    assert "another model" in wrong.err


@pytest.mark.parametrize(
    ("document", "options", "message"),
    [
        ("{", (), "theirs.json is not readable JSON"),
        ([1], (), "neither a BlockPruner nor a MultiPruner result"),
        (widths(pruned_mlp_width={"0": 3}), (), "lists 1 layers, the model has 5"),
        (widths(pruned_attn_idx=[35]), (), "names layers 35; the model has 0-4"),
        (widths(pruned_mlp_width={str(i): 4096 for i in range(5)}), (), "is the file for another model?"),
        ({"1": [["mha", 9]]}, (), "step 1 names layers 9"),
        (BLOCKS, ("--blocks", "4"), "holds 1 to 3 removals, not 4"),
        (widths(), ("--blocks", "2"), "only a BlockPruner result can be taken in part"),
    ],
)
def test_a_file_that_does_not_fit_is_one_message(
    sned: Callable[..., Outcome],
    llama: Path,
    write: Callable[[object], Path],
    tmp_path: Path,
    document: object,
    options: tuple[str, ...],
    message: str,
) -> None:
    got = sned("import", llama, write(document), *options, "-o", tmp_path / "plan")
    assert (got.code, got.out) == (4, "")
    assert message in got.err
    assert not (tmp_path / "plan").exists()


def test_a_plan_that_their_files_cannot_say_is_refused(
    sned: Callable[..., Outcome], plan_folder: Callable[..., Path]
) -> None:
    got = sned("show", plan_folder(folded=True), "--as", "blockpruner")
    assert (got.code, got.out) == (4, "")
    assert "fold a linear map" in got.err
