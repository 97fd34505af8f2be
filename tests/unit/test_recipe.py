"""Recipes: what a file means, how it is completed and written, and what is said of one that is wrong."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from kit.planning import budget_for

from sned.cli import heal as command
from sned.errors import BudgetError, ConfigError, DataError
from sned.jobs.plan import validate
from sned.jobs.recipe import HealStage, PruneStage, Recipe, document
from sned.jobs.recipe_file import read_recipe, write_recipe
from sned.jobs.request import LoadRequest, PruneRequest, TextRequest
from sned.jobs.resolve import of_prune
from sned.plans.budget import Budget
from sned.runtime.method import all_methods

if TYPE_CHECKING:
    from collections.abc import Callable

EXAMPLE = Path(__file__).parents[2] / "examples" / "recipe.yaml"
PLAIN = """
model: demo
out: runs/small
stages:
  - prune: {method: streamline, layers: 6}
  - heal: {train: full}
  - eval:
  - report:
"""


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., Recipe]:
    """Write a recipe and read it."""

    def run(text: str = PLAIN, *settings: str, **given: Any) -> Recipe:
        file = tmp_path / "recipe.yaml"
        file.write_text(text)
        return read_recipe(file, settings, **given)

    return run


def test_defaults_are_written_out(read: Callable[..., Recipe]) -> None:
    told = document(read())
    prune, heal, judged, report = (next(iter(stage.values())) for stage in told["stages"])
    assert (told["seed"], told["dtype"], told["allow_overlap"]) == (0, "auto", False)
    assert told["calibration"] == {"sources": ["builtin"], "tokens": 131_072, "seq_len": 1024}, "streamline's own"
    assert told["evaluation"]["tokens"] == 16_384
    assert (prune["layers"], prune["replacement"], prune["baselines"]) == (6, "layer", [])
    assert {"blocks", "remove", "remove_of", "sparsity"}.isdisjoint(prune)
    assert (heal["lr"], heal["loss"]) == (1e-4, "kl"), "the rate is that of full training"
    assert {"rank", "alpha"}.isdisjoint(heal), "which has no low-rank updates"
    updates = document(read(PLAIN, "heal.train=lora"))["stages"][1]["heal"]
    assert (updates["lr"], updates["rank"], updates["alpha"]) == (1e-3, 16, 32.0)
    assert "calibration" not in heal, "as much as streamline takes"
    assert judged == {"tasks": ["choices"], "task_items": None, "cached": False}
    assert report == {}


def test_a_stage_takes_the_text_that_it_names_or_the_usual_amount_of_the_recipes(read: Callable[..., Recipe]) -> None:
    text = """
model: demo
calibration: {seq_len: 256}
stages:
  - prune: {method: uidl, layers: 2, calibration: {tokens: 4096}, evaluation: {sources: [random]}}
  - heal: {calibration: {sources: [builtin:pydoc]}}
  - eval: {evaluation: {sources: [builtin:pydoc]}}
"""
    told = document(read(text))
    assert told["calibration"] == {"sources": ["builtin"], "tokens": 4096, "seq_len": 256}
    assert told["evaluation"]["sources"] == ["random"]
    assert "calibration" not in told["stages"][0]["prune"]
    heal = told["stages"][1]["heal"]
    assert heal["calibration"] == {"sources": ["builtin:pydoc"], "tokens": 131_072, "seq_len": 256}
    assert heal["evaluation"] == {"sources": ["builtin"], "tokens": 16_384, "seq_len": 1024}
    assert told["stages"][2]["eval"]["evaluation"] == {"sources": ["builtin:pydoc"]}


@pytest.mark.parametrize("method", all_methods(), ids=lambda method: method.name)
def test_what_is_written_reads_back_for_every_method(method: Any, tmp_path: Path) -> None:
    text = {"model": "1e5", "stages": [{"prune": {"method": method.name, **budget_for(method).as_options()}}]}
    (tmp_path / "short.yaml").write_text(json.dumps(text))
    whole = read_recipe(tmp_path / "short.yaml")
    write_recipe(whole, tmp_path / "whole.yaml")
    assert read_recipe(tmp_path / "whole.yaml") == whole
    assert yaml.safe_load((tmp_path / "whole.yaml").read_text()) == document(whole), "for any reader of YAML"
    keys = {option.name for option in method.options}
    assert keys <= whole.pruning.options.keys()
    assert keys.isdisjoint(PruneStage.model_fields)


def test_a_request_to_prune_and_its_recipe_ask_for_the_same(tmp_path: Path) -> None:
    request = PruneRequest(
        LoadRequest("demo", "fp32", "cpu", "off"),
        "wanda",
        Budget(sparsity=0.5),
        tmp_path / "out",
        {"allocate": "owl:multiple=3"},
        TextRequest(("builtin:c4*2", "builtin:pydoc"), None, 64),
        seed=3,
        evaluation=TextRequest(tokens=128),
        baselines=("magnitude",),
    )
    made = of_prune(request, *validate(request))
    write_recipe(made, tmp_path / "recipe.yaml")
    again = read_recipe(tmp_path / "recipe.yaml")
    assert again == made
    assert again.load == request.load
    assert again.pruning.budget == request.budget
    assert again.text("calibration", again.pruning).request() == TextRequest(
        ("builtin:c4*2", "builtin:pydoc"), 65_536, 64
    )
    assert (again.seed, again.pruning.baselines) == (3, ["magnitude"])
    assert again.pruning.options["allocate"] == "owl:multiple=3"


def test_healing_has_the_defaults_of_the_command() -> None:
    typed = {name: p.default for name, p in inspect.signature(command.heal).parameters.items()}
    for name, field in HealStage.model_fields.items():
        if name not in ("calibration", "evaluation"):
            assert field.default == typed[name], name


def test_the_example_is_a_recipe() -> None:
    recipe = read_recipe(EXAMPLE)
    assert [stage.kind for stage in recipe.stages] == ["prune", "heal", "eval", "report"]


def test_so_is_the_one_in_the_readme(read: Callable[..., Recipe]) -> None:
    text = (EXAMPLE.parents[1] / "README.md").read_text(encoding="utf-8").partition("```yaml\n")[2].partition("```")[0]
    assert read(text).pruning.baselines == ["random"]


@pytest.mark.parametrize(
    ("setting", "where", "value"),
    [
        ("seed=1", ("seed",), 1),
        ("stream=off", ("stream",), "off"),
        ("trust-inferred=true", ("trust_inferred",), True),
        ("model=1e5x", ("model",), "1e5x"),
        ("evaluation.tokens=128", ("evaluation", "tokens"), 128),
        ("calibration.sources=[random]", ("calibration", "sources"), ["random"]),
        ("prune.layers=4", ("stages", 0, "prune", "layers"), 4),
        ("prune.span=13:19", ("stages", 0, "prune", "span"), "13:19"),
        ("prune.lr=1e-3", ("stages", 0, "prune", "lr"), 0.001),
        ("heal.batch=8", ("stages", 1, "heal", "batch"), 8),
        ("heal.lr=1e-5", ("stages", 1, "heal", "lr"), 1e-5),
        ("stages.2.heal.last=3", ("stages", 1, "heal", "last"), 3),
        ("heal.calibration.tokens=64", ("stages", 1, "heal", "calibration", "tokens"), 64),
        ("eval.task_items=9", ("stages", 2, "eval", "task_items"), 9),
    ],
)
def test_settings_change_one_value(
    read: Callable[..., Recipe], setting: str, where: tuple[Any, ...], value: Any
) -> None:
    found: Any = document(read(PLAIN, setting))
    for part in where:
        found = found[part]
    assert found == value


def test_a_budget_is_replaced_by_another(read: Callable[..., Recipe]) -> None:
    recipe = read(PLAIN, "prune.layers=null", "prune.remove=25%", "prune.remove_of=body")
    assert recipe.pruning.budget == Budget(remove=0.25, remove_of="body")
    assert read(PLAIN, "prune.layers=null", "prune.remove=0.3").pruning.budget == Budget(remove=0.3)


def test_the_place_of_the_result_can_be_named_apart(read: Callable[..., Recipe]) -> None:
    assert read(PLAIN, out=Path("elsewhere")).out == "elsewhere"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("sed=1", "recipe.yaml: sed: there is no such key here; did you mean seed?"),
        ("seed=one", "recipe.yaml: seed: Input should be a valid integer, not 'one'"),
        ("seed=-1", "recipe.yaml: seed: "),
        ("model=", "recipe.yaml: model: "),
        ("dtype=int8", "recipe.yaml: dtype: "),
        ("calibration.token=5", "recipe.yaml: calibration.token: there is no such key here; did you mean tokens?"),
        ("calibration.seq_len=1", "recipe.yaml: calibration.seq_len: "),
        ("calibration.sources=builtin", "recipe.yaml: calibration.sources: Input should be a valid list"),
        ("calibration.sources=[c4]", "recipe.yaml: calibration: 'c4' is not a source"),
        ("prune.methd=uidl", "recipe.yaml: stages.1.prune: methd is no key of this stage"),
        ("prune.replacment=mlp", "did you mean replacement"),
        ("prune.layer=3", "no option of streamline; did you mean layers"),
        ("prune.method=streamlin", "recipe.yaml: stages.1.prune: there is no method 'streamlin'"),
        ("prune.baselines=[randm]", "recipe.yaml: stages.1.prune: there is no method 'randm'"),
        ("prune.epochs=many", "recipe.yaml: stages.1.prune: streamline: epochs='many'"),
        ("prune.layers=0", "recipe.yaml: stages.1.prune.layers: "),
        ("prune.layers=six", "recipe.yaml: stages.1.prune.layers: Input should be a valid integer, not 'six'"),
        ("prune.remove=25%", "--layers and --remove are given together"),
        ("prune.remove=25", "stages.1.prune.remove: remove 25 means 2500% of the parameters; write 25% or 0.25"),
        ("prune.remove=[1]", "stages.1.prune.remove: a share is written 25% or 0.25"),
        ("prune.remove_of=body", "remove_of says nothing without remove"),
        ("prune={method: wanda, layers: 2}", "wanda takes no budget of layers"),
        ("prune={method: uidl}", "recipe.yaml: stages.1.prune: no budget is given"),
        ("prune={layers: 2}", "recipe.yaml: stages.1.prune.method: Field required"),
        ("prune=uidl", "recipe.yaml: stages.1.prune: keys and values are needed, not 'uidl'"),
        ("heal.rnk=8", "recipe.yaml: stages.2.heal.rnk: there is no such key here; did you mean rank"),
        ("heal.rank=8", "recipe.yaml: stages.2.heal: train full has no rank"),
        ("heal.lr=0", "recipe.yaml: stages.2.heal.lr: "),
        ("heal.train=half", "recipe.yaml: stages.2.heal.train: "),
        ("heal.calibration.sources=[wiki]", "recipe.yaml: stages.2.heal: 'wiki' is not a source"),
        ("eval.tasks=[choices, choices]", "recipe.yaml: stages.3.eval: choices is named twice"),
        ("eval.tasks=[]", "recipe.yaml: stages.3.eval.tasks: "),
        ("eval.evaluation.tokens=5", "stages.3.eval.evaluation.tokens: there is no such key here"),
        ("report.page=1", "recipe.yaml: stages.4.report.page: there is no such key here"),
        ("stages=[]", "recipe.yaml: stages: "),
        ("stages.1=report", "recipe.yaml: stages.1: a stage is a key with what it is told"),
        ("stages.2.eval=", "recipe.yaml: stages.2: a stage is one of prune, heal, eval, report, and here are 2 keys"),
        ("stages.2={heel: {}}", "recipe.yaml: stages.2.heel: there is no such key here; did you mean heal"),
        ("stages.1={heal: {}}", "the first stage must be prune, and it is heal"),
        ("stages.2={prune: {method: uidl, layers: 1}}", "there is one prune stage only"),
        ("stages.4={heal: {}}", "heal comes too late: the order is prune, heal, eval, report"),
        ("stages.4={eval: {}}", "there is one eval stage only"),
        ("stages.7.heal=", "there is no stages.7 in the recipe"),
        ("seed.x=1", "there is no seed.x in the recipe"),
        ("seed", "--set seed is not key=value"),
        ("eval.tasks=[", "--set eval.tasks=[, line 1"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(read: Callable[..., Recipe], setting: str, message: str) -> None:
    text = PLAIN if not setting.startswith("seed.x") else PLAIN + "seed: 1\n"
    with pytest.raises(ConfigError) as caught:
        read(text, setting)
    assert message in str(caught.value)


def test_every_problem_is_listed(read: Callable[..., Recipe]) -> None:
    with pytest.raises(ConfigError) as caught:
        read(PLAIN, "seed=x", "heal.rank=0")
    assert "\n    seed: " in str(caught.value)
    assert "\n    stages.2.heal.rank: " in str(caught.value)


def test_a_kind_of_stage_must_be_told_from_its_likes(read: Callable[..., Recipe]) -> None:
    with pytest.raises(ConfigError, match=r"--set stages.2.heal.rank=8 or --set stages.3.heal.rank=8"):
        read(PLAIN.replace("- eval:", "- heal: {}"), "heal.rank=8")
    with pytest.raises(ConfigError, match="has no stages heal"):
        read(PLAIN.replace("heal: {train: full}", "report:"), "heal.rank=8")


def test_zeros_out_of_reach_and_missing_text_have_their_own_kind(read: Callable[..., Recipe]) -> None:
    with pytest.raises(BudgetError, match=r"stages.1.prune: --sparsity 1 is out of reach"):
        read(PLAIN, "prune={method: wanda, sparsity: 100%}")
    with pytest.raises(DataError, match=r"stages.2.heal: not/there.txt does not exist"):
        read(PLAIN, "heal.calibration.sources=['file:not/there.txt']")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: demo\nmodel: again\n", "line 2, column 1: the key model stands twice"),
        ("model: [", "recipe.yaml, line"),
        ("- prune\n", "holds no keys"),
        ("", "holds no keys"),
    ],
)
def test_what_is_no_recipe_at_all(read: Callable[..., Recipe], text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(text)
    assert message in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(ConfigError, match="recipe"):
            read_recipe(path)
