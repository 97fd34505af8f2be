"""Proving that a saved checkpoint is the planned model: reload it in a fresh process and compare logits.

May import `models` and its neighbours in `checkpoint`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from sned.errors import VerificationError
from sned.models.forward import LayerRunner
from sned.progress import SILENT, Progress

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sned.models.view import View

WINDOWS, TOKENS = 2, 32
TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Largest logit error allowed, relative to the largest logit, by the dtype of the comparison."""
FP32_PARAMS = 2_000_000_000
"""Models up to this size are compared in float32, where rounding cannot hide a mistake."""


@dataclass(frozen=True, slots=True)
class Verification:
    """How far a reloaded checkpoint is from the planned model."""

    max_logit_error: float
    """Largest difference in logits, relative to the largest logit."""
    cached_decode_error: float
    """The same, between decoding with a cache and without, in the reloaded model."""
    dtype: str
    stock_class: bool


def verify(view: View, folder: Path, *, stock: bool, seed: int = 0, progress: Progress = SILENT) -> Verification:
    """Reload a folder with plain transformers in a fresh process and compare it with the view it was saved from.

    Raises:
        VerificationError: it does not load, or its logits differ, at once or when decoding with a cache.
    """
    dtype = torch.float32 if view.geometry.n_params <= FP32_PARAMS else view.dtype
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(view.geometry.vocab, (WINDOWS, TOKENS), generator=generator)
    with progress.task("verify", 2) as advance:
        expected = run_in(view, ids, dtype)
        advance(1)
        full, cached = _reload(folder, ids, dtype, stock=stock)
        advance(1)
    scale = float(expected.abs().max())
    error, cached_error = float((full - expected).abs().max()), float((cached - full).abs().max())
    limit = TOLERANCE[dtype] * scale
    for value, what in ((error, "reloaded"), (cached_error, "decoded with a cache")):
        if not value <= limit:
            raise VerificationError(
                f"the saved checkpoint, {what}, does not reproduce the planned model: logits differ by "
                f"{value:.3g} (allowed {limit:.3g}). Nothing was kept.",
                hint="this is a bug in sned; please report the model type and the plan",
            )
    return Verification(error / scale, cached_error / scale, str(dtype).removeprefix("torch."), stock)


@torch.no_grad()
def run_in(view: View, ids: torch.Tensor, dtype: torch.dtype, *, head: bool = True) -> torch.Tensor:
    """Return in float32 what a view makes of ids `[windows, tokens]` when it computes in `dtype`.

    Its logits `[windows, tokens, vocab]`, or without its head what that receives, `[windows, tokens, hidden]`.
    """
    twin = view.fork()
    with _recast(twin, dtype):
        runner = LayerRunner(twin)
        hidden = runner.enter(ids.to(twin.device))
        for index in twin.active:
            with twin.materialised(index) as layer, _recast_module(layer, dtype):
                hidden = runner.layer(index, hidden)
        finish = runner.leave if head else runner.before_head
        return finish(ids.to(twin.device), hidden).float().cpu()


@contextmanager
def _recast(view: View, dtype: torch.dtype) -> Iterator[None]:
    """Hold all parameters outside the layers in another dtype for a while; buffers stay as they are."""
    path = f"{view.family.layers}."
    params = {n: p for n, p in view.model.named_parameters() if not n.startswith(path)}
    with _in_dtype(list(params.values()), dtype):
        yield


@contextmanager
def _recast_module(module: torch.nn.Module, dtype: torch.dtype) -> Iterator[None]:
    with _in_dtype(list(module.parameters()), dtype):
        yield


@contextmanager
def _in_dtype(params: list[torch.nn.Parameter], dtype: torch.dtype) -> Iterator[None]:
    before = [param.data for param in params]
    for param in params:
        param.data = param.data.to(dtype)
    try:
        yield
    finally:
        for param, data in zip(params, before, strict=True):
            param.data = data


def _reload(folder: Path, ids: torch.Tensor, dtype: torch.dtype, *, stock: bool) -> tuple[torch.Tensor, torch.Tensor]:
    out = run_bare("bare_check.py", folder, {"ids": ids}, dtype, "stock" if stock else "remote")
    return out["full"], out["cached"]


def run_bare(
    script: str, folder: Path, inputs: dict[str, torch.Tensor], dtype: torch.dtype, *words: str
) -> dict[str, torch.Tensor]:
    """Return what a script beside this file makes of a checkpoint, in a fresh process that never imports sned.

    Raises:
        VerificationError: it fails.
    """
    from safetensors.torch import load_file, save_file

    with tempfile.TemporaryDirectory(prefix="sned-verify-") as scratch:
        given, made = Path(scratch, "in.safetensors"), Path(scratch, "out.safetensors")
        save_file(inputs, given)
        name = str(dtype).removeprefix("torch.")
        place = Path(__file__).with_name(script)
        command = [sys.executable, "-P", str(place), str(folder), str(given), str(made), name, *words]
        quiet = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        child = start(command, {**os.environ, **quiet, "OMP_WAIT_POLICY": "PASSIVE"})
        if child.returncode:
            reason = (child.stderr.strip().splitlines() or ["no message"])[-1]
            raise VerificationError(
                f"the saved checkpoint does not load in a fresh process: {reason}. Nothing was kept.",
                hint="this is a bug in sned; please report the model type and the plan",
            )
        return load_file(made)


def start(command: list[str], env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a command in a fresh process to its end."""
    return subprocess.run(command, capture_output=True, text=True, check=False, env=env)
