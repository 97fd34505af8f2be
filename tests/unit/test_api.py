"""The Python interface on a tiny model: nothing it returns or writes surprises."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from kit.compare import assert_differ, assert_same_logits, logits
from kit.tiny import save_model_folder, tokens

import sned
from sned.checkpoint import save as saving
from sned.errors import CheckpointError, ConfigError, NumericalError, PlanError, VerificationError
from sned.plans.ops import DropLayers


@pytest.fixture
def model(tmp_path: Path) -> sned.Model:
    return sned.load(str(save_model_folder(tmp_path / "dense", "llama")))


@sned.method(paper="", prunes="depth")
def first_ones(ctx: sned.Context, *, layers: int = 2):
    """Drop the first layers after the very first."""
    yield DropLayers(layers=tuple(range(1, 1 + layers)))


def test_planning_and_applying_leave_the_model_as_it_is(model: sned.Model) -> None:
    before = logits(model.view.model)
    plan = sned.plan(model, "uidl", tokens(), layers=2)
    pruned = sned.apply(plan, model)
    assert_same_logits(logits(model.view.model), before, exact=True)
    assert_differ(logits(pruned.view.model), before)
    assert len(pruned.view.layers) == len(model.view.layers) - 2


def test_a_method_of_ones_own_needs_no_registration(model: sned.Model) -> None:
    assert sned.plan(model, first_ones).summary() == "remove layers 1-2"
    assert sned.plan(model, first_ones, layers=1).summary() == "remove layers 1"


def test_blocks_are_a_budget(model: sned.Model) -> None:
    plan = sned.plan(model, "blockpruner", tokens(), blocks=2, search="racing")
    assert len(plan.ops) == 2
    assert plan.stages[0].options["blocks"] == 2
    with pytest.raises(ConfigError, match="--layers and --blocks are given together"):
        sned.plan(model, "blockpruner", tokens(), layers=2, blocks=2)
    with pytest.raises(ConfigError, match="use --blocks N or --remove 25%"):
        sned.plan(model, "blockpruner", tokens(), layers=2)


def test_saved_and_loaded_is_the_same(model: sned.Model, tmp_path: Path) -> None:
    pruned = sned.apply(sned.plan(model, first_ones), model)
    sned.save(pruned, tmp_path / "out")
    assert_same_logits(logits(sned.load(str(tmp_path / "out")).view.model), logits(pruned.view.model))
    with pytest.raises(CheckpointError, match="--overwrite"):
        sned.save(pruned, tmp_path / "out")


def test_a_plan_is_for_one_model(model: sned.Model, tmp_path: Path) -> None:
    other = sned.load(str(save_model_folder(tmp_path / "other", "llama", seed=5)))
    with pytest.raises(PlanError, match="weights"):
        sned.apply(sned.plan(model, first_ones), other)


def test_a_checkpoint_that_computes_something_else_is_not_kept(
    model: sned.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = saving.tensors_of

    def wrong(view):
        for name, tensor in original(view):
            yield name, tensor * 1.5 if name.endswith("layers.1.mlp.down_proj.weight") else tensor

    monkeypatch.setattr(saving, "tensors_of", wrong)
    with pytest.raises(VerificationError, match="does not reproduce"):
        sned.save(model, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["dense"]


@pytest.mark.parametrize("stream", ["off", "on"])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, stream: str) -> None:
    from safetensors.torch import load_file, save_file

    folder = save_model_folder(tmp_path / "sick", "llama")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.2.mlp.up_proj.weight"][0, 0] = torch.nan
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(NumericalError, match=r"layers\.2\.mlp\.up_proj|layer 2"):
        sned.plan(sned.load(str(folder), stream=stream), "uidl", tokens(), layers=1)
