"""What all jobs share: timing, messages kept for the report, text, and the folder of unfinished work.

May import everything below `jobs`.
"""

from __future__ import annotations

import json
import platform
import shutil
import time
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import torch

from sned import __version__
from sned.canon import digest
from sned.checkpoint.model import Model, load
from sned.checkpoint.packing import is_packed
from sned.data.overlap import require_disjoint
from sned.data.tokens import Tokens
from sned.errors import BudgetError, CheckpointError, ConfigError, NumericalError
from sned.progress import Progress
from sned.runtime.crew import ALONE
from sned.runtime.journal import Journal
from sned.runtime.sweep import Cost

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sned.jobs.request import LoadRequest, PlanRequest, TextRequest
    from sned.models.view import View
    from sned.runtime.crew import Crew


class Recorder(Progress):
    """Passes progress on, and keeps every message with its time for the log and the report."""

    def __init__(self, inner: Progress) -> None:
        self._inner = inner
        self.lines: list[dict[str, Any]] = []

    def task(self, label: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
        """Open a task."""
        self._keep("task", label)
        return self._inner.task(label, total)

    def note(self, text: str) -> None:
        """Pass on; what it says is out of date by the time anybody reads the log."""
        self._inner.note(text)

    def info(self, message: str) -> None:
        """Pass on and keep."""
        self._keep("info", message)
        self._inner.info(message)

    def warn(self, message: str) -> None:
        """Pass on and keep; a message that was already given is not repeated."""
        if message not in self.warnings:
            self._keep("warning", message)
            self._inner.warn(message)

    @property
    def warnings(self) -> list[str]:
        """All warnings so far."""
        return [line["message"] for line in self.lines if line["level"] == "warning"]

    def write(self, file: Path) -> None:
        """Write all messages as JSON lines."""
        file.write_text("".join(json.dumps(line) + "\n" for line in self.lines))

    def _keep(self, level: str, message: str) -> None:
        self.lines.append({"at": round(time.time(), 3), "level": level, "message": message})


@dataclass
class Session:
    """The bookkeeping of one job."""

    progress: Recorder
    cost: Cost = field(default_factory=Cost)
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time spent inside to a phase of the report."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - start


def open_model(request: LoadRequest, session: Session, *, to_run: bool = True) -> Model:
    """Load the model that a request names; if it is to be run, warn where that will be slow."""
    with session.phase("load"):
        model = load(
            request.model,
            dtype=request.dtype,
            device=request.device,
            stream=request.stream,
            trust_inferred=request.trust_inferred,
            progress=session.progress,
        )
    if to_run and runs_slowly(model.view):
        name = str(model.view.dtype).removeprefix("torch.")
        session.progress.warn(f"this CPU computes in {name} several times slower than in float32: try --dtype fp32")
    return model


def runs_slowly(view: View) -> bool:
    """Tell whether a model is in a half precision that its x86 CPU has no instructions for."""
    half = view.dtype in (torch.bfloat16, torch.float16)
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    return half and x86 and view.device.type == "cpu" and torch.backends.cpu.get_cpu_capability() in ("AVX2", "DEFAULT")


def free_memory(device: torch.device) -> int:
    """Return the bytes of memory that are free on a device."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available


def spare_source(model: Model, out: Path) -> None:
    """Refuse to write a result over the model it is made from.

    Raises:
        CheckpointError: the two are the same folder.
    """
    given = Path(model.source).expanduser()
    sources = [model.folder, given] if is_packed(given) else [model.folder]  # a packed one was loaded from our cache
    if out.expanduser().resolve() in [folder.resolve() for folder in sources]:
        raise CheckpointError(
            f"{out} is the model itself; replacing it would destroy what is being pruned.", hint="choose another --out"
        )


def read_text(model: Model, text: TextRequest, usual: int, *, seed: int, evaluation: bool = False) -> Tokens:
    """Tokenise what a request asks for; sequences never exceed the model's positions.

    Args:
        model: Whose tokenizer to use.
        text: The request.
        usual: How many tokens to take where the request does not say.
        seed: Of the choice of documents.
        evaluation: Whether the text is to judge by, not to calibrate on.

    Raises:
        CheckpointError: the model has no tokenizer, and the source needs one.
        DataError: the text is missing or too short.
    """
    limit = getattr(model.view.model.config, "max_position_embeddings", None) or text.seq_len
    ready = all(source.startswith(("tokens:", "random")) for source in text.sources)
    return Tokens.from_source(
        list(text.sources),
        None if ready else model.tokenizer,
        tokens=text.tokens or usual,
        seq_len=min(text.seq_len, limit),
        seed=seed,
        role="evaluation" if evaluation else "calibration",
        vocab_size=model.view.geometry.vocab,
    )


def check_disjoint(calibration: Tokens | None, evaluation: Tokens, session: Session, *, allow: bool) -> None:
    """Refuse evaluation text that was calibrated on, or say so where the user insists."""
    if calibration is None:
        return
    share = require_disjoint(calibration, evaluation, allow=allow)
    if share > 0.01:
        session.progress.warn(f"{share:.1%} of the evaluation text was also calibrated on: its figures flatter")


@contextmanager
def unfinished_work(out: Path, facts: dict[str, Any], *, resume: bool, crew: Crew = ALONE) -> Iterator[Journal]:
    """Give the journal of a job, kept beside its output until the job is done.

    Args:
        out: Where the job writes.
        resume: Whether to go on from what is there; else it is thrown away.
        facts: All that its results depend on; a resumed job must agree.
        crew: The processes of the job; only the one that leads keeps anything.

    Raises:
        ConfigError: unfinished work of another job is there; the differences are listed.
    """
    if not crew.leads:
        yield Journal()
        return
    out = out.expanduser().resolve()
    folder = out.with_name(f".{out.name}.work")
    if folder.exists() and not resume:
        shutil.rmtree(folder)
    known = {"sned": __version__, **facts}
    record = folder / "job.json"
    if resumed := record.exists():
        _require_same(json.loads(record.read_text()), known, folder)
    folder.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps(known))
    journal = Journal(folder)
    try:
        yield journal
    except BaseException as error:
        # what was done serves the same job only, and some errors it would meet again; what an earlier run has left
        # stays, since it did not end so, and memory may be short for a while
        hopeless = not resumed and isinstance(error, (BudgetError, ConfigError, NumericalError))
        if journal.is_empty or hopeless:
            shutil.rmtree(folder)
        raise
    shutil.rmtree(folder)


def _require_same(before: dict[str, Any], now: dict[str, Any], folder: Path) -> None:
    changed = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
    if changed:
        lines = "".join(f"\n    {k}: {_short(before.get(k))} then, {_short(now.get(k))} now" for k in changed)
        raise ConfigError(
            f"{folder} holds the unfinished work of another job:{lines}",
            hint="repeat that job, choose another --out, or start over with --no-resume",
        )


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:24]}... ({digest(text)[:8]})"


def job_facts(
    request: PlanRequest, model: Model, calibration: Tokens | None, options: dict[str, Any]
) -> dict[str, Any]:
    """Return all that the results of a planning job depend on, for a later run to compare."""
    return {
        "model": asdict(model.view.fingerprint),
        "dtype": str(model.view.dtype),
        "method": request.method,
        "budget": asdict(request.budget),
        "options": options,
        "calibration": None if calibration is None else calibration.digest,
        "seed": request.seed,
    }
