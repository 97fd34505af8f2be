"""What a user asks of a job; the command line and the Python interface fill the same forms.

May import everything below `jobs`, and imports nothing heavy.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from sned.jobs.recipe import Recipe
    from sned.plans.budget import Budget
    from sned.training.healing import Healing

Switch = Literal["auto", "on", "off"]
DTypeName = Literal["auto", "bf16", "fp32", "fp16"]
DeviceName = Literal["auto", "cpu", "cuda"]
EVALUATION_TOKENS = 16_384
"""How many tokens quality is measured on unless told otherwise."""
TRAINING_TOKENS = 131_072
"""How many tokens a pruned model is trained on unless told otherwise."""
TRAINING_RATES = {"lora": 1e-3, "full": 1e-4, "transform": 1e-3}
"""The peak learning rate unless told otherwise, by what is trained."""

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
class TasksRequest:
    """Which tasks to set a model."""

    names: tuple[str, ...]
    """`choices`, names that lm-eval knows, and paths of YAML files in its format."""
    items: int | None = None
    """Only so many of each task; None: all of lm-eval's, and as many of `choices` as usual."""
    out: Path | None = None
    """Folder for the logs of single items."""
    cached: bool = False
    """Whether `choices` reads each context once and keeps its cache."""
    overwrite: bool = False


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
    speed: bool = True
    """Whether both models are raced."""


@dataclass(frozen=True, slots=True)
class HealRequest:
    """Train a pruned model."""

    pruned: Path
    """A folder that sned wrote."""
    load: LoadRequest
    """How to hold the model that it was pruned from, and learns from; `auto` is the dtype of the pruned one."""
    out: Path
    healing: Healing
    keep_zeros: bool | None = None
    """Whether zeros among the weights stay; None: if the plan was asked to make some."""
    recompute: bool = False
    """Whether layers run again on the way back, instead of keeping all that they computed."""
    shard: bool = False
    """Whether several processes hold the models together."""
    text: TextRequest = field(default_factory=TextRequest)
    evaluation: TextRequest = field(default_factory=TextRequest)
    allow_overlap: bool = False
    seed: int = 0
    overwrite: bool = False
    resume: bool = True
    command: str = ""


@dataclass(frozen=True, slots=True)
class RunRequest:
    """Carry out a recipe, as `resolve` returns it."""

    recipe: Recipe
    out: Path
    overwrite: bool = False
    resume: bool = True
    command: str = ""


@dataclass(frozen=True, slots=True)
class ClassifyRequest:
    """Make a classifier out of the first layers of a model."""

    load: LoadRequest
    data: str
    """A JSON-lines file of texts and their classes."""
    out: Path
    held_out: str | None = None
    """Another, to choose the depth by; None: a share of `data`."""
    held_out_share: float = 0.2
    test: str | None = None
    """Another, to judge by."""
    text: str = "text"
    label: str = "label"
    probe: Literal["solve", "train"] = "solve"
    layers: int | None = None
    """How many layers to keep; None: the fewest that do as well as any."""
    seq_len: int = 1024
    seed: int = 0
    overwrite: bool = False
    resume: bool = True
    command: str = ""
