"""What a recipe is: a whole job of several stages, as strict models. `recipe_file` reads it, `resolve` completes it.

May import everything below `jobs`.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from sned.errors import ConfigError
from sned.jobs.request import DeviceName, DTypeName, LoadRequest, Switch, TextRequest
from sned.plans.budget import Budget, parse_share, parse_sparsity
from sned.registry import did_you_mean
from sned.training.healing import Trained
from sned.training.tasks import ModelLoss

if TYPE_CHECKING:
    from sned.data.sources import Role

KINDS = ("prune", "heal", "eval", "report")
"""The kinds of stages, in the order in which they stand."""
UNKNOWN = "unknown_key"
"""Type of the error of a key that nothing reads; its context names the `key`."""


def problem(kind: str, text: str, **context: Any) -> PydanticCustomError:
    """Return an error of validation whose message is `text` as it stands."""
    return PydanticCustomError(kind, "{text}", {"text": text, **context})  # type: ignore[arg-type]


def _share(value: Any, read: Any) -> float:
    """Read a share as text or as a number, by the rules of the command line."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise problem("share", "a share is written 25% or 0.25")
    try:
        return read(value if isinstance(value, str) else f"{Decimal(str(value)):f}")
    except ConfigError as error:
        raise problem("share", f"{error.args[0]}{f'; {error.hint}' if error.hint else ''}") from None


Count = Annotated[int, Field(ge=1)]
Windowed = Annotated[int, Field(ge=2)]
Sources = Annotated[list[str], Field(min_length=1)]
Removed = Annotated[float, BeforeValidator(partial(_share, read=partial(parse_share, name="remove")))]
Zeros = Annotated[float, BeforeValidator(partial(_share, read=parse_sparsity))]


class _Strict(BaseModel):
    """Takes what it names, as the type that it names, and nothing else."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown(cls, given: Any) -> Any:
        if isinstance(given, Mapping) and cls.model_config.get("extra") == "forbid":
            for key in given:
                if key not in cls.model_fields:
                    hint = did_you_mean(str(key), cls.model_fields)
                    raise problem(UNKNOWN, f"there is no such key here; {hint}", key=str(key))
        return given


class Text(_Strict):
    """Which tokens to look at; without a number, as many as the stage usually takes."""

    sources: Sources = ["builtin"]
    tokens: Windowed | None = None
    seq_len: Windowed = 1024

    def request(self) -> TextRequest:
        """Return it as jobs take it."""
        return TextRequest(tuple(self.sources), self.tokens, self.seq_len)


class TextChange(_Strict):
    """What a stage says of its text, where that differs from the recipe's."""

    sources: Sources | None = None
    tokens: Windowed | None = None
    seq_len: Windowed | None = None


class TextSources(_Strict):
    """Where a stage takes text from that it cuts itself."""

    sources: Sources | None = None


class _Stage(_Strict):
    """A stage; what it says of its own text goes before what the recipe says."""

    unsaid: ClassVar[frozenset[str]] = frozenset({"calibration", "evaluation"})
    """Keys that are not written down where they are None."""
    calibration: TextChange | None = None
    evaluation: TextChange | None = None


class PruneStage(_Stage):
    """Plan with a method, apply, save, verify and judge. Keys without a field are the method's own options."""

    model_config = ConfigDict(extra="allow")
    unsaid = _Stage.unsaid | {"layers", "blocks", "remove", "remove_of", "sparsity"}

    method: str
    layers: Count | None = None
    blocks: Count | None = None
    remove: Removed | None = None
    remove_of: Literal["all", "body"] | None = None
    sparsity: Zeros | None = None
    baselines: list[str] = []
    speed: bool = True

    @property
    def budget(self) -> Budget:
        """How much to remove.

        Raises:
            BudgetError: so many zeros leave nothing.
            ConfigError: more than one kind is given.
        """
        return Budget(self.layers, self.remove, self.remove_of or "all", self.blocks, self.sparsity)

    @property
    def options(self) -> dict[str, Any]:
        """The method's own options, unchecked."""
        return dict(self.model_extra or {})


class HealStage(_Stage):
    """Train what the stages before left; the names and defaults are those of `sned heal`."""

    unsaid = _Stage.unsaid | {"rank", "alpha"}

    train: Trained = "lora"
    loss: ModelLoss = "kl"
    last: Count | None = None
    rank: Count | None = None
    alpha: Annotated[float, Field(gt=0)] | None = None
    lr: Annotated[float, Field(gt=0)] | None = None
    epochs: Count = 1
    batch: Count = 4
    first_share: Annotated[float, Field(ge=0, le=1)] = 1.0
    keep_zeros: bool | None = None
    recompute: bool = False


class EvalStage(_Strict):
    """Set tasks to the final model, and to its base beside it."""

    unsaid: ClassVar[frozenset[str]] = frozenset({"evaluation"})

    tasks: Annotated[list[str], Field(min_length=1)] = ["choices"]
    task_items: Count | None = None
    cached: bool = False
    evaluation: TextSources | None = None


class ReportStage(_Strict):
    """Measure speed and write samples of the final model, where its own stage did not, for the report."""

    unsaid: ClassVar[frozenset[str]] = frozenset()


Body = PruneStage | HealStage | EvalStage | ReportStage


class Stage(_Strict):
    """One step of the job: a single key, its kind, with what that kind is told."""

    prune: PruneStage | None = None
    heal: HealStage | None = None
    eval: EvalStage | None = None
    report: ReportStage | None = None

    @model_validator(mode="before")
    @classmethod
    def _exactly_one(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            raise problem("stage", "a stage is a key with what it is told, such as - heal: {rank: 8}")
        if len(given) != 1:
            raise problem("stage", f"a stage is one of {', '.join(KINDS)}, and here are {len(given)} keys")
        return {kind: {} if told is None else told for kind, told in given.items()}  # `- report:` says nothing more

    @property
    def kind(self) -> str:
        """Which of the four it is."""
        return next(kind for kind in KINDS if getattr(self, kind) is not None)

    @property
    def body(self) -> Body:
        """What it is told."""
        return getattr(self, self.kind)


class Recipe(_Strict):
    """The whole job."""

    model: Annotated[str, Field(min_length=1)]
    out: str | None = None
    dtype: DTypeName = "auto"
    device: DeviceName = "auto"
    stream: Switch = "auto"
    trust_inferred: bool = False
    seed: Annotated[int, Field(ge=0)] = 0
    calibration: Text = Text()
    evaluation: Text = Text()
    allow_overlap: bool = False
    stages: Annotated[list[Stage], Field(min_length=1)]

    @model_validator(mode="after")
    def _in_order(self) -> Recipe:
        kinds = [stage.kind for stage in self.stages]
        if kinds[0] != "prune":
            raise problem("order", f"the first stage must be prune, and it is {kinds[0]}")
        if kinds.count("prune") > 1:
            raise problem("order", "there is one prune stage only: run another recipe on the result of this one")
        for once in ("eval", "report"):
            if kinds.count(once) > 1:
                raise problem("order", f"there is one {once} stage only, since it tells of the final model")
        if kinds != sorted(kinds, key=KINDS.index):
            wrong = next(b for a, b in pairwise(kinds) if KINDS.index(a) > KINDS.index(b))
            raise problem("order", f"{wrong} comes too late: the order is {', '.join(KINDS)}")
        return self

    @property
    def load(self) -> LoadRequest:
        """How to hold the base model."""
        return LoadRequest(self.model, self.dtype, self.device, self.stream, self.trust_inferred)

    @property
    def pruning(self) -> PruneStage:
        """The stage that prunes."""
        first = self.stages[0].prune
        assert first is not None  # noqa: S101 - the order of the stages is checked
        return first

    def text(self, role: Role, body: Body, usual: int | None = None) -> Text:
        """Return the text of a stage, `usual` tokens of it where neither stage nor recipe says how many."""
        base: Text = getattr(self, role)
        change = getattr(body, role, None)
        said = {} if change is None else change.model_dump(exclude_none=True)
        whole = base.model_copy(update=said)
        return whole if whole.tokens is not None else whole.model_copy(update={"tokens": usual})


def document(recipe: Recipe) -> dict[str, Any]:
    """Return a recipe as plain data, as its file says it."""
    told = recipe.model_dump(mode="json", exclude={"stages"})
    return told | {"stages": [{stage.kind: told_of(stage.body)} for stage in recipe.stages]}


def told_of(body: Body) -> dict[str, Any]:
    """Return what a stage is told as plain data, without what it does not say."""
    told = body.model_dump(mode="json")
    texts = {key: told.pop(key) for key in ("calibration", "evaluation") if key in told}
    return {key: value for key, value in (told | texts).items() if value is not None or key not in body.unsaid}
