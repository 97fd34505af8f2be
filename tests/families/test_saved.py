"""What is saved is what was planned: for every family, in a process that never imports sned, and for `sned.load`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from kit.compare import assert_same_logits, logits, swept
from kit.tiny import DENSE_NAMES, FAMILY_NAMES, IDS, save_model_folder, stand_ins
from safetensors.torch import load_file, save_file

from sned.checkpoint.model import Model, load
from sned.checkpoint.save import save_model
from sned.errors import UnsupportedModelError
from sned.models import surgery

if TYPE_CHECKING:
    import torch

    from sned.models.view import View

STRANGER = Path(__file__).parents[1] / "kit" / "stranger.py"


def shorter(view: View) -> None:
    surgery.drop_layers(view, [0, 2])


def mapped(view: View) -> None:
    """Something of every kind stands for a layer, and one is left."""
    for layer, (spec, tensor) in enumerate(stand_ins(2).items()):
        surgery.replace(view, [layer], spec, tensor)


def uneven(view: View) -> None:
    surgery.drop_sublayer(view, 0, "attn")
    surgery.keep(view, view.axis("layers.1.attn.group"), [view.axis("layers.1.attn.group").size - 1])
    if not view.family.experts:
        surgery.keep(view, view.axis("layers.1.mlp.hidden"), range(3, 20))
        surgery.drop_sublayer(view, 2, "mlp")
    surgery.drop_layers(view, [3])


def narrower(view: View) -> None:
    for axis in [a for a in view.geometry.axes.values() if a.kind == "mlp.hidden"]:
        surgery.keep(view, axis, range(8, 40))


def saved(tmp_path: Path, change, names: list[str]) -> dict[Path, tuple[Model, bool]]:
    """Prune and save every family; return the models in memory and whether stock classes hold them, by folder."""
    out: dict[Path, tuple[Model, bool]] = {}
    for name in names:
        folder = tmp_path / name.replace("/", "-") / "pruned"
        folder.mkdir(parents=True)
        model = load(str(save_model_folder(folder.with_name("dense"), name)))
        change(model.view)
        out[folder] = (model, save_model(model, folder).stock)
    return out


def strangers_view(tmp_path: Path, folders: list[Path]) -> dict[str, torch.Tensor]:
    save_file({"ids": IDS}, tmp_path / "ids.safetensors")
    out = tmp_path / "out.safetensors"
    command = [sys.executable, "-P", str(STRANGER), str(tmp_path / "ids.safetensors"), str(out), *map(str, folders)]
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return load_file(out)


@pytest.mark.parametrize("change", [shorter, mapped, uneven, narrower])
def test_reloaded_equals_in_memory(tmp_path: Path, change) -> None:
    models = saved(tmp_path, change, FAMILY_NAMES)
    computed = strangers_view(tmp_path, list(models))
    for folder, (model, stock) in models.items():
        want = logits(model.view.model)
        assert_same_logits(computed[f"{folder}:full"], want)
        assert_same_logits(computed[f"{folder}:cached"], want)
        assert_same_logits(logits(load(str(folder)).view.model), want)
        assert stock == (not (folder / "modeling_sned.py").exists())
        if change in (shorter, narrower):
            assert stock or model.view.family.experts, folder
        if change in (mapped, uneven):
            assert not stock


def test_what_transformers_saves_again_still_loads(tmp_path: Path) -> None:
    """The file that builds the layers goes along, and so does what it reads."""
    again: dict[Path, torch.Tensor] = {}
    for folder in saved(tmp_path, uneven, FAMILY_NAMES):
        model = load(str(folder)).view.model
        again[folder.with_name("again")] = logits(model)
        model.save_pretrained(folder.with_name("again"))
    computed = strangers_view(tmp_path, list(again))
    for folder, want in again.items():
        assert_same_logits(computed[f"{folder}:full"], want)
        assert_same_logits(computed[f"{folder}:cached"], want)
        assert_same_logits(logits(load(str(folder)).view.model), want)


@pytest.mark.parametrize("name", DENSE_NAMES)
def test_streamed_from_disk_computes_and_saves_the_same(tmp_path: Path, name: str) -> None:
    source = save_model_folder(tmp_path / "dense", name, max_shard_size="60kB")
    loaded, streamed = (load(str(source), stream=mode) for mode in ("off", "on"))
    assert streamed.view.fingerprint == loaded.view.fingerprint
    assert_same_logits(swept(streamed.view), swept(loaded.view), exact=True)
    written = []
    for model in (loaded, streamed):
        shorter(model.view)
        folder = tmp_path / f"streamed-{model.streamed}"
        folder.mkdir()
        save_model(model, folder)
        written.append({f.name: f.read_bytes() for f in sorted(folder.iterdir())})
    assert written[0] == written[1]


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe"])
def test_experts_cannot_be_streamed_and_the_user_is_told(tmp_path: Path, name: str) -> None:
    source = save_model_folder(tmp_path / "dense", name)
    with pytest.raises(UnsupportedModelError, match="--stream off"):
        load(str(source), stream="on")
