"""What a user asks of a job; the command line and the Python interface fill the same forms.

May import everything below `jobs`, and imports nothing heavy.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from sned.plans.budget import Budget

Switch = Literal["auto", "on", "off"]
DTypeName = Literal["auto", "bf16", "fp32", "fp16"]
DeviceName = Literal["auto", "cpu", "cuda"]
EVALUATION_TOKENS = 16_384
"""How many tokens quality is measured on unless told otherwise."""

PROMPTS = (
    "The capital of France is",
    "To bake bread at home, you need",
    "Once upon a time, a small robot",
)


@dataclass(frozen=True, slots=True)
class LoadRequest:
    """Which model, and how to hold it."""

    model: str
    dtype: DTypeName = "auto"
    device: DeviceName = "auto"
    stream: Switch = "auto"
    trust_inferred: bool = False


@dataclass(frozen=True, slots=True)
class TextRequest:
    """Which tokens to look at."""

    sources: tuple[str, ...] = ("builtin",)
    tokens: int | None = None
    """How many; None: as many as the method usually looks at, or as quality is usually measured on."""
    seq_len: int = 1024


@dataclass(frozen=True, slots=True)
class ProfilesRequest:
    """Which allocators to hold side by side."""

    sparsity: float
    """Share of zeros in all layers together."""
    allocators: tuple[str, ...] = ()
    """As ``--allocate`` takes them; none stands for all that are installed."""


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """Plan with one method."""

    load: LoadRequest
    method: str
    budget: Budget
    out: Path
    options: Mapping[str, Any] = field(default_factory=dict)
    calibration: TextRequest = field(default_factory=TextRequest)
    seed: int = 0
    overwrite: bool = False
    resume: bool = True
    command: str = ""


@dataclass(frozen=True, slots=True)
class PruneRequest(PlanRequest):
    """Plan, apply, save, verify, evaluate and report."""

    evaluation: TextRequest = field(default_factory=TextRequest)
    allow_overlap: bool = False
    baselines: tuple[str, ...] = ()
    """Methods planned and evaluated beside the one asked for, at the same budget, without saving them."""
    prompts: tuple[str, ...] = PROMPTS
