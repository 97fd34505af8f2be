"""A recipe carried out, stage by stage, each into a folder of its own that stays until the whole job is done.

A folder is named by the digest of all that its content depends on, so that what is there is right: a run that was
killed goes on, and of a recipe that was changed only what follows from the change is done again. May import everything
below `jobs`.
"""

from __future__ import annotations

import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sned import __version__
from sned.canon import digest
from sned.checkpoint.folders import check_output
from sned.data.sources import parse_sources
from sned.errors import CheckpointError
from sned.jobs import tasks
from sned.jobs.conclude import conclude
from sned.jobs.recipe import EvalStage, HealStage, PruneStage, told_of
from sned.jobs.resolve import tasks_of
from sned.jobs.session import Recorder, Session
from sned.jobs.stages import complete_report, heal_stage, prune_stage, set_tasks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sned.data.sources import Role
    from sned.evaluation.harness import Harness
    from sned.jobs.recipe import Body, Recipe
    from sned.jobs.request import RunRequest
    from sned.progress import Progress
    from sned.report.schema import Report


_HELD = {"recompute"}
"""What says how a model is held while it is trained, and changes no bit of what comes out."""


@dataclass(frozen=True, slots=True)
class Step:
    """A stage of a recipe and the folder that holds its result once it is done."""

    number: int
    kind: str
    body: Body
    key: str
    """The digest of all that the result depends on."""
    folder: Path

    @property
    def makes_model(self) -> bool:
        """Whether the folder is a checkpoint."""
        return self.kind in ("prune", "heal")


def run(request: RunRequest, progress: Progress) -> Report:
    """Carry out a recipe: what is done stays, what is not goes on, and the last model becomes the result.

    Raises:
        CheckpointError: the output is taken, or is the model itself.
        SnedError: any other; stages that were done are kept beside the output.
    """
    recipe, out = request.recipe, request.out.expanduser().resolve()
    check_output(out, overwrite=request.overwrite)
    if out == Path(recipe.model).expanduser().resolve():
        raise CheckpointError(f"{request.out} is the model itself", hint="choose another --out")
    home = out.with_name(f".{out.name}.run")
    if not request.resume:
        shutil.rmtree(home, ignore_errors=True)
    steps = steps_of(recipe, home)
    try:
        harness = _prepare(steps, recipe, progress)
        for step in steps:
            stage = f"stage {step.number} of {len(steps)}, {step.kind}"
            if step.folder.is_dir():
                progress.info(f"{stage}, was done before")
                continue
            progress.info(stage)
            _carry_out(step, steps, request, harness, progress)
        report = _conclude(steps, request, out)
    except BaseException:
        with suppress(OSError):
            home.rmdir()  # if a refusal left nothing in it
        raise
    shutil.rmtree(home, ignore_errors=True)
    return report


def steps_of(recipe: Recipe, home: Path) -> list[Step]:
    """Return the steps of a recipe that was resolved; each depends on what made the model before it."""
    key = digest([__version__, recipe.model, _state(recipe.model), recipe.dtype, recipe.seed, recipe.allow_overlap])
    steps: list[Step] = []
    for number, stage in enumerate(recipe.stages, start=1):
        told = {name: value for name, value in told_of(stage.body).items() if name not in _HELD}
        own = digest([key, stage.kind, told, _texts(recipe, stage.body)])
        step = Step(number, stage.kind, stage.body, own, home / f"{number}-{stage.kind}-{own[:12]}")
        steps.append(step)
        key = own if step.makes_model else key
    return steps


def _texts(recipe: Recipe, body: Body) -> list[Any]:
    """Return what identifies the text that a stage looks at, files by their size and time."""
    roles: Sequence[Role] = ("evaluation",) if isinstance(body, EvalStage) else ("calibration", "evaluation")
    found: list[Any] = []
    for role in roles if isinstance(body, PruneStage | HealStage | EvalStage) else ():
        text = recipe.text(role, body)
        sources = parse_sources(text.sources, role)
        files = [_state(one.args[0]) for one in sources if one.scheme in ("file", "tokens")]
        sizes = None if isinstance(body, EvalStage) else [text.tokens, text.seq_len]
        found.append([[[one.spec, one.weight] for one in sources], sizes, files])
    return found


def _state(name: str) -> list[Any]:
    """Return what tells a file, or those of a folder, from what they were; nothing for what is no path."""
    path = Path(name).expanduser()
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return [[file.name, (s := file.stat()).st_size, s.st_mtime_ns] for file in files if file.is_file()]


def _prepare(steps: Sequence[Step], recipe: Recipe, progress: Progress) -> Harness | None:
    """Read the tasks that are still to be set, so that what is wrong with them shows before the work."""
    for step in steps:
        if isinstance(step.body, EvalStage) and not step.folder.is_dir():
            return tasks.prepare(tasks_of(step.body), recipe.load, Session(Recorder(progress)))
    return None


def _carry_out(
    step: Step, steps: Sequence[Step], request: RunRequest, harness: Harness | None, progress: Progress
) -> None:
    recipe, body, command = request.recipe, step.body, request.command
    if isinstance(body, PruneStage):
        prune_stage(recipe, body, step.folder, command, progress)
        return
    before = [one for one in steps[: step.number - 1] if one.makes_model][-1].folder
    if isinstance(body, HealStage):
        heal_stage(recipe, body, before, step.folder, command, progress)
    elif isinstance(body, EvalStage):
        set_tasks(recipe, body, before, step.folder, harness, progress)
    else:
        complete_report(recipe, before, step.folder, progress)


def _conclude(steps: Sequence[Step], request: RunRequest, out: Path) -> Report:
    models = [step.folder for step in steps if step.makes_model]
    others = [step.folder for step in steps if not step.makes_model]
    return conclude(models, others, request, out)
