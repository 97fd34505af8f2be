"""Plans on disk: what is written is what is read, and anything else is refused with a reason."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sned.errors import PlanError
from sned.plans.ops import DropLayers, Fold, Keep
from sned.plans.plan import FORMAT, Base, Plan, Size, Stage, used_tensors
from sned.plans.store import PLAN_FILE, TENSOR_FILE, load_plan, save_plan

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

BASE = Base(source="here", model_type="llama", geometry="9f3c", weights="b1e0", n_layers=8, hidden=4, n_params=1000)
MAP = torch.arange(16.0).view(4, 4)


def make(*, layers: str = "3-4", tensor: torch.Tensor | None = MAP, **changes: Any) -> Plan:
    ops = (DropLayers(layers=layers),) if tensor is None else (Fold(layer=2, tensor="map"), DropLayers(layers=layers))
    size = Size(params=1000, body_params=800, flops_per_token=2000, kv_bytes_per_token=64)
    stage = Stage(method="replaceme", options={"layers": 2}, ops=ops, scores={"cuts": [{"start": 3, "end": 5}]})
    parts = {
        "base": BASE,
        "stages": (stage,),
        "dense": size,
        "pruned": size.model_copy(update={"params": 800}),
        "provenance": {"seconds": 1.5},
        "tensors": {} if tensor is None else {"map": tensor},
    }
    return Plan(**parts | changes)


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    file = folder / PLAN_FILE
    document = json.loads(file.read_text())
    change(document)
    file.write_text(json.dumps(document))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_plan(make(), tmp_path)
    return tmp_path


class TestRoundTrip:
    @pytest.mark.parametrize("tensor", [MAP, None, MAP.bfloat16(), MAP.T, MAP.half()[1:, 1:]])
    def test_what_is_written_is_what_is_read(self, tensor: torch.Tensor | None, tmp_path: Path) -> None:
        plan = make(tensor=tensor)
        save_plan(plan, tmp_path)
        loaded = load_plan(tmp_path)
        assert loaded.model_dump() == plan.model_dump()
        assert loaded.digest == plan.digest
        for name, kept in loaded.tensors.items():
            assert torch.equal(kept, plan.tensors[name])
            assert kept.dtype == plan.tensors[name].dtype
        assert (tmp_path / TENSOR_FILE).exists() is (tensor is not None)

    def test_a_plan_is_found_where_sned_puts_it(self, folder: Path) -> None:
        digest = load_plan(folder).digest
        assert load_plan(folder / PLAN_FILE).digest == digest
        (folder / "out" / "sned").mkdir(parents=True)
        save_plan(make(), folder / "out" / "sned")
        assert load_plan(folder / "out").digest == digest

    def test_the_file_is_for_people_too(self, folder: Path) -> None:
        document = json.loads((folder / PLAN_FILE).read_text())
        assert document["format"] == FORMAT
        assert document["stages"][0]["ops"][1] == {"op": "drop_layers", "layers": "3-4"}
        assert document["base"]["source"] == "here"

    def test_saving_again_replaces(self, folder: Path) -> None:
        save_plan(make(layers="5-6"), folder)
        assert load_plan(folder).ops[1] == DropLayers(layers=[5, 6])


class TestDigest:
    def test_it_names_what_the_plan_does(self) -> None:
        digests = {
            make().digest,
            make(layers="3-5").digest,
            make(tensor=None).digest,
            make(tensor=MAP + 1).digest,
            make(tensor=MAP.bfloat16()).digest,
            make(base=BASE.model_copy(update={"weights": "ffff"})).digest,
            make(stages=make().stages * 2).digest,
        }
        assert len(digests) == 7

    def test_it_does_not_depend_on_where_when_or_why(self) -> None:
        plan = make()
        stage = plan.stages[0].model_copy(update={"scores": {}})
        elsewhere = BASE.model_copy(update={"source": "there"})
        assert make(base=elsewhere, provenance={}, stages=(stage,)).digest == plan.digest

    def test_options_are_part_of_it(self) -> None:
        stage = make().stages[0].model_copy(update={"options": {"layers": 2, "ridge": 0.1}})
        assert make(stages=(stage,)).digest != make().digest


class TestDamage:
    def test_no_plan(self, tmp_path: Path) -> None:
        with pytest.raises(PlanError, match=f"no plan at {tmp_path}"):
            load_plan(tmp_path)
        with pytest.raises(PlanError, match="no plan at"):
            load_plan(tmp_path / "missing")

    @pytest.mark.parametrize("text", ["", "{", "not json", '{"format": 1', "\x00"])
    def test_not_json(self, text: str, folder: Path) -> None:
        (folder / PLAN_FILE).write_text(text)
        with pytest.raises(PlanError, match="not readable JSON"):
            load_plan(folder)

    def test_not_text(self, folder: Path) -> None:
        (folder / PLAN_FILE).write_bytes(b"\xff\xfe{}")
        with pytest.raises(PlanError, match="not readable JSON"):
            load_plan(folder)

    @pytest.mark.parametrize("text", ["[]", "3", "{}", '{"format": "1"}', '{"format": null}'])
    def test_not_a_plan(self, text: str, folder: Path) -> None:
        (folder / PLAN_FILE).write_text(text)
        with pytest.raises(PlanError, match="is not a plan"):
            load_plan(folder)

    @pytest.mark.parametrize("number", [0, -1])
    def test_a_format_that_never_was(self, number: int, folder: Path) -> None:
        edit(folder, lambda document: document.update(format=number))
        with pytest.raises(PlanError, match="format"):
            load_plan(folder)

    def test_from_a_newer_sned(self, folder: Path) -> None:
        edit(folder, lambda document: document.update(format=FORMAT + 1, new_field=1))
        with pytest.raises(PlanError, match="written by a newer sned") as caught:
            load_plan(folder)
        assert caught.value.hint == "upgrade sned"

    def test_an_unknown_op(self, folder: Path) -> None:
        edit(folder, lambda document: document["stages"][0]["ops"].append({"op": "rotate"}))
        with pytest.raises(PlanError, match=r"stages.0.ops.2: unknown op rotate; a newer sned may have written it"):
            load_plan(folder)

    def test_every_problem_is_listed(self, folder: Path) -> None:
        def change(document: dict[str, Any]) -> None:
            document["base"]["n_layers"] = "eight"
            document["colour"] = "red"
            document["stages"][0]["ops"][1]["layers"] = "4-3"

        edit(folder, change)
        with pytest.raises(PlanError) as caught:
            load_plan(folder)
        for place in ("base.n_layers", "colour", "layers"):
            assert place in str(caught.value)

    @pytest.mark.parametrize(
        "change",
        [
            lambda document: document["stages"][0]["ops"][1].update(layers="3-5"),
            lambda document: document["stages"][0]["options"].update(ridge=1),
            lambda document: document["base"].update(weights="ffff"),
            lambda document: document.update(digest="0" * 64),
            lambda document: document.pop("digest"),
        ],
    )
    def test_changed_by_hand(self, change: Callable[[dict[str, Any]], None], folder: Path) -> None:
        edit(folder, change)
        with pytest.raises(PlanError, match="was changed after it was written"):
            load_plan(folder)

    def test_without_its_tensors(self, folder: Path) -> None:
        (folder / TENSOR_FILE).unlink()
        with pytest.raises(PlanError, match=f"{TENSOR_FILE}, which the plan needs, cannot be read"):
            load_plan(folder)

    def test_with_broken_tensors(self, folder: Path) -> None:
        (folder / TENSOR_FILE).write_bytes((folder / TENSOR_FILE).read_bytes()[:-3])
        with pytest.raises(PlanError, match="cannot be read"):
            load_plan(folder)

    def test_with_other_tensors(self, folder: Path) -> None:
        save_file({"map": MAP + 1}, folder / TENSOR_FILE)
        with pytest.raises(PlanError, match="the tensor 'map' is not the one the plan was written with"):
            load_plan(folder)
        save_file({"else": MAP}, folder / TENSOR_FILE)
        with pytest.raises(PlanError, match="lacks the tensor 'map'"):
            load_plan(folder)

    def test_tensors_that_no_op_needs_are_left_alone(self, folder: Path) -> None:
        save_file(load_file(folder / TENSOR_FILE) | {"extra": MAP}, folder / TENSOR_FILE)
        assert load_plan(folder).tensors.keys() == {"map"}


class TestComposition:
    def test_then_appends(self) -> None:
        first, second = make(), make(layers="6", tensor=None)
        both = first.then(second)
        assert both.ops == (*first.ops, *second.ops)
        assert both.tensors.keys() == {"map"}
        assert both.dense == first.dense
        assert both.pruned == second.pruned
        assert both.summary() == "fold a linear map into the MLP of layer 2; remove layers 3-4; remove layers 6"

    def test_plans_for_different_models_do_not_compose(self) -> None:
        other = make(base=BASE.model_copy(update={"model_type": "qwen2", "n_layers": 9}))
        with pytest.raises(PlanError) as caught:
            make().then(other)
        assert "model type: llama / qwen2" in str(caught.value)
        assert "layers: 8 / 9" in str(caught.value)

    def test_an_empty_plan_says_so(self) -> None:
        assert make(stages=()).summary() == "nothing"

    def test_only_tensors_in_use_are_kept(self) -> None:
        ops = [Keep(axis="layers.0.mlp.hidden", units=[0]), Fold(layer=1, tensor="b"), Fold(layer=2, tensor="a")]
        assert list(used_tensors(ops, {"a": MAP, "b": MAP, "c": MAP})) == ["b", "a"]
