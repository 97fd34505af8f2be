"""A recipe made complete: everything checked and written out that can be known before a model is loaded.

May import everything below `jobs`.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from sned.data.readers import existing_file
from sned.data.sources import parse_sources
from sned.errors import BudgetError, ConfigError, DataError
from sned.jobs import tasks
from sned.jobs.recipe import EvalStage, HealStage, PruneStage, Recipe, Stage, Text, TextChange, TextSources
from sned.jobs.request import EVALUATION_TOKENS, TRAINING_RATES, TRAINING_TOKENS, TasksRequest
from sned.registry import did_you_mean
from sned.runtime.method import find_method
from sned.runtime.planner import check_kind
from sned.training.healing import low_rank

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

    from sned.data.sources import Role
    from sned.jobs.request import PruneRequest, TextRequest
    from sned.plans.budget import Budget
    from sned.runtime.method import Method


def resolve(recipe: Recipe) -> Recipe:
    """Return a recipe with all defaults written out, checked as far as that takes no model.

    Raises:
        BudgetError: so many zeros leave nothing.
        ConfigError: a method, an option, a source or a task is not as it should be, or stages do not go together.
        DataError: a file of text is missing.
    """
    with located("stages.1.prune"):
        first, method = _pruning(recipe.pruning)
    usual: dict[Role, int] = {"calibration": method.calibration_tokens, "evaluation": EVALUATION_TOKENS}
    texts: dict[Role, Text] = {role: recipe.text(role, recipe.pruning, tokens) for role, tokens in usual.items()}
    for role, text in texts.items():
        with located(role):
            _check_text(text, role)
    stages = [Stage(prune=first)]
    for number, stage in enumerate(recipe.stages[1:], start=2):
        with located(f"stages.{number}.{stage.kind}"):
            stages.append(_later(recipe, stage, texts))
    return recipe.model_copy(update={**texts, "stages": stages})


def of_prune(request: PruneRequest, method: Method, options: Mapping[str, Any]) -> Recipe:
    """Return the recipe that asks for the same as a request to prune, all defaults written out.

    Args:
        request: What was asked for, and was checked.
        method: The one it names.
        options: All of the method's own.
    """
    budget = check_kind(method, request.budget, options)
    load = request.load
    return Recipe.model_construct(
        model=load.model,
        out=str(request.out),
        dtype=load.dtype,
        device=load.device,
        stream=load.stream,
        trust_inferred=load.trust_inferred,
        seed=request.seed,
        calibration=_text_of(request.calibration, method.calibration_tokens),
        evaluation=_text_of(request.evaluation, EVALUATION_TOKENS),
        allow_overlap=request.allow_overlap,
        stages=[Stage.model_construct(prune=_told(method, budget, list(request.baselines), request.speed, options))],
    )


@contextmanager
def located(where: str) -> Iterator[None]:
    """Let errors from inside begin with the place that they come from."""
    try:
        yield
    except (BudgetError, ConfigError, DataError) as error:
        raise type(error)(f"{where}: {error.args[0]}", hint=error.hint) from error


def tasks_of(body: EvalStage) -> TasksRequest:
    """Return the tasks that a stage sets, as the job takes them."""
    return TasksRequest(tuple(body.tasks), body.task_items, cached=body.cached)


def _pruning(body: PruneStage) -> tuple[PruneStage, Method]:
    """Return a stage that prunes, complete, and its method."""
    method = find_method(body.method)
    own = [option.name for option in method.options]
    for key in body.options:
        if key not in own:
            hint = did_you_mean(key, [*own, *PruneStage.model_fields])
            raise ConfigError(
                f"{key} is no key of this stage and no option of {method.name}; {hint}",
                hint=f"`sned methods {method.name}` lists the options",
            )
    options = method.parse(body.options)
    if body.remove is None and body.remove_of is not None:
        raise ConfigError("remove_of says nothing without remove", hint="leave it out, or add remove: 25%")
    budget = check_kind(method, body.budget, options)
    for name in body.baselines:
        find_method(name)
    return _told(method, budget, body.baselines, body.speed, options), method


def _told(method: Method, budget: Budget, baselines: list[str], speed: bool, options: Mapping[str, Any]) -> PruneStage:
    return PruneStage.model_construct(
        method=method.name, **budget.as_options(), baselines=baselines, speed=speed, **options
    )


def _later(recipe: Recipe, stage: Stage, texts: Mapping[Role, Text]) -> Stage:
    """Return a stage after the first, complete; it says of its texts what differs from those of the first."""
    body = stage.body
    if isinstance(body, HealStage):
        return stage.model_copy(update={"heal": _healing(recipe, body, texts)})
    if isinstance(body, EvalStage):
        return stage.model_copy(update={"eval": _judging(recipe, body, texts)})
    return stage


def _healing(recipe: Recipe, body: HealStage, texts: Mapping[Role, Text]) -> HealStage:
    update: dict[str, Any] = {"lr": TRAINING_RATES[body.train] if body.lr is None else body.lr}
    update["rank"], update["alpha"] = low_rank(body.train, body.rank, body.alpha)
    usual: dict[Role, int] = {"calibration": TRAINING_TOKENS, "evaluation": EVALUATION_TOKENS}
    for role, tokens in usual.items():
        text = recipe.text(role, body, tokens)
        _check_text(text, role)
        update[role] = None if text == texts[role] else TextChange(**text.model_dump())
    return body.model_copy(update=update)


def _judging(recipe: Recipe, body: EvalStage, texts: Mapping[Role, Text]) -> EvalStage:
    for number, name in enumerate(body.tasks):
        if not name.strip() or name in body.tasks[:number]:
            raise ConfigError(f"{name} is named twice" if name.strip() else "a task has no name")
    tasks.refuse_streamed(tasks_of(body), streamed=recipe.stream == "on")
    text = recipe.text("evaluation", body)
    _check_text(text, "evaluation")
    same = text.sources == texts["evaluation"].sources
    return body.model_copy(update={"evaluation": None if same else TextSources(sources=text.sources)})


def _check_text(text: Text, role: Role) -> None:
    for source in parse_sources(text.sources, role):
        if source.scheme in ("file", "tokens"):
            existing_file(source.args[0])


def _text_of(text: TextRequest, usual: int) -> Text:
    return Text.model_construct(sources=list(text.sources), tokens=text.tokens or usual, seq_len=text.seq_len)
