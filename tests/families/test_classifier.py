"""A classifier is the planned one when stock classes load it, of every family that has such a class."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from kit.compare import assert_same_logits
from kit.tiny import FAMILY_NAMES, HIDDEN, save_model_folder
from transformers import AutoModelForSequenceClassification

from sned.checkpoint.classifier import require_classifiable, save_classifier
from sned.checkpoint.model import load
from sned.errors import UnsupportedModelError
from sned.models import surgery
from sned.runtime.journal import Journal
from sned.runtime.probing import last_states

if TYPE_CHECKING:
    from pathlib import Path

TEXTS = [[5, 9, 40], [7], [11, 3, 90, 8, 20, 33], [60, 61]]
KEPT = 3


@pytest.mark.parametrize("name", [name for name in FAMILY_NAMES if name != "granite"])
def test_stock_classes_load_what_was_planned(name: str, tmp_path: Path) -> None:
    dense = save_model_folder(tmp_path / "dense", name)
    model = load(str(dense))
    states = last_states(model.view, TEXTS, Journal(), label="read")
    head = torch.randn(2, HIDDEN, generator=torch.Generator().manual_seed(3))
    cut = model.with_view(model.view.fork())
    surgery.drop_layers(cut.view, range(KEPT, 5))
    (out := tmp_path / "out").mkdir()
    save_classifier(cut, head, ["no", "yes"], out)
    loaded, notes = AutoModelForSequenceClassification.from_pretrained(out, output_loading_info=True)
    assert not notes["missing_keys"]
    assert not notes["unexpected_keys"]
    assert loaded.config.id2label == {0: "no", 1: "yes"}
    with torch.no_grad():
        alone = torch.cat([loaded.eval()(torch.tensor([text])).logits for text in TEXTS])
    assert_same_logits(alone, states[KEPT - 1] @ head.T)


@pytest.mark.parametrize("name", ["llama", "opt", "gemma3_text"])
def test_a_streamed_model_has_the_same_states(name: str, tmp_path: Path) -> None:
    folder = str(save_model_folder(tmp_path / "dense", name))
    loaded, streamed = (
        last_states(load(folder, stream=how).view, TEXTS, Journal(), label="read") for how in ("off", "on")
    )
    assert torch.equal(loaded, streamed)


def test_what_no_stock_class_holds_is_refused(tmp_path: Path) -> None:
    granite = load(str(save_model_folder(tmp_path / "granite", "granite")))
    with pytest.raises(UnsupportedModelError, match="granite"):
        require_classifiable(granite.view)
    uneven = load(str(save_model_folder(tmp_path / "llama", "llama")))
    surgery.drop_sublayer(uneven.view, 1, "attn")
    with pytest.raises(UnsupportedModelError, match="not alike"):
        require_classifiable(uneven.view)
