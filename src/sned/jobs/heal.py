"""Training a pruned model against the one it came from, into a new folder. May import everything below `jobs`."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sned.checkpoint.folders import atomic_folder, check_output
from sned.errors import CheckpointError, ConfigError, PlanError
from sned.evaluation.quality import Quality, measure_quality
from sned.jobs import compose
from sned.jobs.prune import write_output
from sned.jobs.request import EVALUATION_TOKENS, TRAINING_TOKENS
from sned.jobs.session import (
    Recorder,
    Session,
    check_disjoint,
    free_memory,
    open_model,
    read_text,
    spare_source,
    unfinished_work,
)
from sned.models.count import count
from sned.plans.plan import Plan, Stage, used_tensors
from sned.plans.store import find_plan, load_plan
from sned.runtime.context import Context
from sned.runtime.crew import ALONE, Crew
from sned.runtime.shares import shared
from sned.training.healing import heal as healing_ops

if TYPE_CHECKING:
    from sned.checkpoint.model import Model
    from sned.data.tokens import Tokens
    from sned.jobs.request import HealRequest, LoadRequest
    from sned.progress import Progress
    from sned.report.schema import Report
    from sned.runtime.journal import Journal

NOT_HEALED = "before training"


def heal(request: HealRequest, progress: Progress, crew: Crew = ALONE) -> Report | None:
    """Train a pruned model, and write it into a folder of its own with one more stage in its plan.

    All processes of a crew train; the one that leads writes, and has the report.

    Raises:
        CheckpointError: the folder is not one that sned wrote, or its base model cannot be found.
        SnedError: any other; the output is then whole or absent.
    """
    session = Session(Recorder(progress))
    request = replace(request, load=_held(request, crew))
    check_output(request.out, overwrite=request.overwrite)
    if request.out.expanduser().resolve() == request.pruned.expanduser().resolve():
        raise CheckpointError(f"{request.out} is the model to heal itself", hint="choose another --out")
    plan = _plan_of(request.pruned)
    if (keep_zeros := request.keep_zeros) is None:
        keep_zeros = any("sparsity" in stage.options for stage in plan.stages)
    request = replace(request, healing=replace(request.healing, keep_zeros=keep_zeros))
    dense = _base(request, plan, session)
    spare_source(dense, request.out)
    before = dense.with_view(dense.view.fork())
    with session.phase("apply"):
        plan.apply(before.view)
    text = read_text(dense, request.text, TRAINING_TOKENS, seed=request.seed)
    evaluation = read_text(dense, request.evaluation, EVALUATION_TOKENS, seed=request.seed, evaluation=True)
    check_disjoint(text, evaluation, session, allow=request.allow_overlap)
    facts: dict[str, Any] = {"plan": plan.digest, "dtype": str(dense.view.dtype), "text": text.digest}
    facts |= {"seed": request.seed} | asdict(request.healing)
    with unfinished_work(request.out, facts, resume=request.resume, crew=crew) as journal:
        healed = before.with_view(before.view.fork())
        with session.phase("train"):
            made = _train(request, plan, dense, healed, text, journal, session, crew)
        if made is None:
            return None
        known = compose.heading(
            dense,
            count(healed.view),
            command=request.command,
            method="heal",
            options=dict(made.stages[-1].options),
            seed=request.seed,
        )
        known |= {"calibration": compose.of_text(text)} | _judge(
            made, dense, before, healed, evaluation, journal, session
        )
        with atomic_folder(request.out, overwrite=request.overwrite) as folder:
            report = write_output(folder, made, dense, healed, session, known, name=Path(request.out).name)
            text.save(folder / "sned" / "calibration.safetensors")
            evaluation.save(folder / "sned" / "evaluation.safetensors")
            session.progress.write(folder / "sned" / "log.jsonl")
    return report


def _held(request: HealRequest, crew: Crew) -> LoadRequest:
    """Return how to hold the models: in shares they are read layer by layer; processes together decide alike.

    Raises:
        ConfigError: there is nobody to share with, or they are to be whole.
    """
    stream = request.load.stream
    if request.shard and crew.size == 1:
        raise ConfigError(
            "one process holds the models whole", hint="start several: torchrun --nproc-per-node 2 -m sned heal ..."
        )
    if request.shard and stream == "off":
        raise ConfigError("models in shares are read layer by layer", hint="leave out --stream off, or --shard")
    if crew.size > 1 and stream == "auto":
        stream = "on" if request.shard else "off"
    return replace(request.load, stream=stream)


def _plan_of(folder: Path) -> Plan:
    """Return the plan of a pruned model.

    Raises:
        CheckpointError: sned did not write this folder.
    """
    try:
        find_plan(folder)
    except PlanError:
        raise CheckpointError(
            f"{folder} is not a model that sned pruned: it has no sned/plan.json", hint="prune it first: sned prune"
        ) from None
    return load_plan(folder)


def _base(request: HealRequest, plan: Plan, session: Session) -> Model:
    """Load the model that a plan was made for.

    Raises:
        CheckpointError: it is not where it was.
    """
    load = request.load
    if load.dtype == "auto":
        load = replace(load, dtype=_dtype_of(request.pruned))
    try:
        return open_model(replace(load, model=load.model or plan.base.source), session)
    except CheckpointError as error:
        if load.model:
            raise
        raise CheckpointError(
            f"the model that {request.pruned} was pruned from, {plan.base.source}, cannot be read: {error.args[0]}",
            hint="say where it is: --base MODEL",
        ) from error


def _dtype_of(folder: Path) -> Any:
    from transformers import AutoConfig

    names = {"torch.bfloat16": "bf16", "torch.float32": "fp32", "torch.float16": "fp16"}
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    return names.get(str(config.dtype), "auto")


def _train(
    request: HealRequest,
    plan: Plan,
    dense: Model,
    healed: Model,
    text: Tokens,
    journal: Journal,
    session: Session,
    crew: Crew,
) -> Plan | None:
    """Train the view of a pruned model, and return its plan with the stage that does the same; None if others lead."""
    ctx = Context(healed.view, dense.view, text, request.seed, journal, session.progress, session.cost, crew=crew)
    ctx.tensors, ctx.ops = dict(plan.tensors), list(plan.ops)
    with shared(crew, dense.view, healed.view) if request.shard else nullcontext():
        for op in healing_ops(ctx, request.healing, free_memory(ctx.view.device), recompute=request.recompute):
            if crew.leads:
                op.apply(ctx.view, ctx.tensors)
                ctx.ops.append(op)
            else:
                ctx.tensors.clear()
    if not crew.leads:
        return None
    own = tuple(ctx.ops[len(plan.ops) :])
    options = {"seed": request.seed, **asdict(request.healing)}
    stage = Stage(method="heal", options=options, ops=own, scores=ctx.scores)
    tensors = {**plan.tensors, **used_tensors(own, ctx.tensors)}
    return plan.model_copy(update={"stages": (*plan.stages, stage), "tensors": tensors})


def _judge(
    plan: Plan, dense: Model, before: Model, healed: Model, evaluation: Tokens, journal: Journal, session: Session
) -> dict[str, Any]:
    """Measure the quality of the healed model beside the dense one, and what it was before."""
    key = [plan.digest, evaluation.digest]
    with session.phase("evaluate"):
        figures = journal.recall(
            "quality",
            key,
            lambda: asdict(measure_quality(healed.view, evaluation, dense=dense.view, progress=session.progress)),
        )
        nll = journal.recall(
            "before", key, lambda: measure_quality(before.view, evaluation, progress=session.progress).nll
        )
    removed = 1 - plan.pruned.params / plan.dense.params
    row = {"method": NOT_HEALED, "perplexity": compose.perplexity(nll), "removed": removed, "note": "the same cut"}
    rows = [] if row["perplexity"] is None else [row]
    return {"quality": compose.of_quality(Quality(**figures), evaluation), "baselines": rows}
