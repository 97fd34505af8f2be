"""What commands print: tables for people, one JSON document for programs."""

from __future__ import annotations

import json
import shlex
import sys
from typing import TYPE_CHECKING, Any

import pytest

from sned.errors import ConfigError
from sned.report.schema import Report

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sned.jobs.request import PruneRequest

    from .conftest import Outcome

PRUNE = ["prune", "demo", "-m", "uidl", "--layers", "2", "-o", "out"]
SPEED = {"prefill_tokens_per_s": 100.0, "decode_tokens_per_s": 10.0}
MEASURED = {
    "quality": {
        "protocol": {"source": "builtin:wiki", "tokens": 1024, "seq_len": 256, "digest": "d"},
        "dense": {"perplexity": 10.0, "nll": 2.3},
        "pruned": {"perplexity": 15.0, "nll": 2.7},
        "kl": 0.4,
        "top1_agreement": 0.7,
    },
    "speed": {"dense": SPEED, "pruned": SPEED, "prefill_ratio": 1.25, "decode_ratio": 1.5, "protocol": "two rounds"},
}


@pytest.fixture
def pruning(monkeypatch: pytest.MonkeyPatch, report: Callable[..., Report]) -> list[PruneRequest]:
    """Let `prune` measure nothing, chatter, and return a report; the requests it got."""
    seen: list[PruneRequest] = []

    def run(request: PruneRequest, progress: Any, crew: Any) -> Report:
        seen.append(request)
        print("a library that talks")
        progress.info("loading")
        with progress.task("calibrate", 10) as advance:
            advance(10)
        progress.warn("few tokens")
        return report(**MEASURED, warnings=["few tokens"])

    monkeypatch.setattr("sned.jobs.prune.prune", run)
    return seen


def test_prune_shows_before_and_after_and_where_it_went(
    sned: Callable[..., Outcome], pruning: list[PruneRequest]
) -> None:
    got = sned(*PRUNE)
    assert got.code == 0
    for text in ("−25.0%", "×1.50", "Model   out", "out/sned/report.html", 'from_pretrained("out"'):
        assert text in got.out
    assert "calibrate" in got.err
    assert got.err.count("few tokens") == 1
    assert "few tokens" not in got.out, "a warning that was shown is not repeated"


def test_json_is_alone_on_stdout(sned: Callable[..., Outcome], pruning: list[PruneRequest]) -> None:
    got = sned(*PRUNE, "--json")
    assert Report.model_validate(got.document).model.params.pruned == 3000
    for text in ("a library that talks", "calibrate", "few tokens"):
        assert text in got.err
    assert sys.stdout is not sys.stderr, "stdout is given back"


def test_quiet_leaves_warnings_and_the_result(sned: Callable[..., Outcome], pruning: list[PruneRequest]) -> None:
    got = sned(*PRUNE, "--quiet")
    assert got.err == "warning: few tokens\n"
    assert "−25.0%" in got.out


def test_the_request_says_what_was_typed(sned: Callable[..., Outcome], pruning: list[PruneRequest]) -> None:
    typed = [*PRUNE, "--calib", "builtin:c4*2", "--calib", "builtin:pydoc", "--calib-tokens", "64", "--seq-len", "32"]
    typed += ["--seed", "3", "--eval-tokens", "128", "--baseline", "random", "--baseline", "deepest", "--no-resume"]
    sned(*typed)
    request = pruning[0]
    assert request.calibration.sources == ("builtin:c4*2", "builtin:pydoc")
    assert (request.calibration.tokens, request.calibration.seq_len, request.seed) == (64, 32, 3)
    assert (request.evaluation.tokens, request.evaluation.seq_len) == (128, 32)
    assert request.baselines == ("random", "deepest")
    assert request.resume is False
    assert shlex.split(request.command) == ["sned", *typed]


def test_prune_takes_a_share(sned: Callable[..., Outcome], pruning: list[PruneRequest]) -> None:
    sned(*PRUNE[:4], "--remove", "25%", "--remove-of", "body", "-o", "out")
    assert (pruning[0].budget.remove, pruning[0].budget.remove_of, pruning[0].budget.layers) == (0.25, "body", None)
    assert pruning[0].calibration.tokens is None, "as many as the method is used to"


def test_prune_takes_blocks(sned: Callable[..., Outcome], pruning: list[PruneRequest]) -> None:
    sned("prune", "demo", "-m", "blockpruner", "--blocks", "12", "--search", "racing", "-o", "out")
    assert pruning[0].budget.as_options() == {"blocks": 12}
    assert pruning[0].options == {"search": "racing"}


@pytest.mark.parametrize("json_too", [False, True])
def test_dry_run_starts_nothing(
    sned: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, pruning: list[PruneRequest], json_too: bool
) -> None:
    forecast = {
        "model": "demo",
        "method": "uidl",
        "options": {},
        "steps": ["load", "plan"],
        "remove": {"what": "blocks", "count": 12, "of": 60},
        "trials": 654,
        "calibration_tokens": 65_536,
        "evaluation_tokens": 0,
        "streamed": False,
        "memory_bytes": 5_000_000,
        "memory_available_bytes": 9_000_000_000,
        "seconds": 75.0,
    }
    monkeypatch.setattr("sned.jobs.forecast.dry_run", lambda *_: forecast)
    got = sned(*PRUNE, "--dry-run", *(["--json"] if json_too else []))
    assert (got.code, pruning) == (0, [])
    if json_too:
        assert got.document == forecast
    else:
        for text in ("12 of 60 attentions and MLPs", "about 654 trials", "5.00\u202fMB", "1\u202fmin 15\u202fs"):
            assert text in got.out


def test_demo_may_be_repeated_but_replaces_nothing_else(
    sned: Callable[..., Outcome],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    report: Callable[..., Report],
) -> None:
    seen: list[tuple[str, bool]] = []

    def run(out: Path, overwrite: bool, progress: Any) -> Report:
        seen.append((str(out), overwrite))
        return report()

    monkeypatch.setattr("sned.jobs.demo.demo", run)
    monkeypatch.chdir(tmp_path)
    sned("demo")
    (tmp_path / "runs/demo/sned").mkdir(parents=True)
    (tmp_path / "runs/demo/sned/report.json").touch()
    sned("demo")
    sned("demo", "-o", "other")
    assert seen == [("runs/demo", False), ("runs/demo", True), ("other", False)]


def test_eval_and_bench_compare(
    sned: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, report: Callable[..., Report]
) -> None:
    monkeypatch.setattr("sned.jobs.evaluate.evaluate", lambda *_: report(quality=MEASURED["quality"]))
    monkeypatch.setattr("sned.jobs.bench.bench", lambda *_, **__: report(speed=MEASURED["speed"]))
    beside = sned("eval", "out", "--against", "base")
    assert "KL from the base" in beside.out
    assert "builtin:wiki" in beside.out
    assert "×1.50" in sned("bench", "out", "--against", "base").out
    assert sned("bench", "out", "--json").document["speed"]["decode_ratio"] == 1.5


def test_show_tells_what_a_plan_does(sned: Callable[..., Outcome], plan_folder: Callable[..., Path]) -> None:
    got = sned("show", plan_folder(folded=True))
    assert got.code == 0
    for text in ("someone/tiny", "uidl", "remove layers 4-6", "fold a linear map into the MLP of layer 3", "−24.0%"):
        assert text in got.out
    attention, mlp = (line.split()[1] for line in got.out.splitlines() if line.startswith(("attention", "MLP")))
    assert attention == "████···█████"
    assert mlp == "███◆···█████"
    assert "0.125" in got.out, "the score of the chosen cut"
    assert all(line == line.rstrip() for line in got.out.splitlines())


def test_show_breaks_the_picture_of_a_deep_model(
    sned: Callable[..., Outcome], plan_folder: Callable[..., Path]
) -> None:
    got = sned("show", plan_folder(depth=126, layers=range(70, 90)))
    rows = [line.split()[1] for line in got.out.splitlines() if line.startswith("attention")]
    assert [len(row) for row in rows] == [60, 60, 6]
    assert "".join(rows).count("·") == 20


def test_show_json_is_the_plan(sned: Callable[..., Outcome], plan_folder: Callable[..., Path]) -> None:
    folder = plan_folder()
    shown = sned("show", folder, "--json").document
    stored = json.loads((folder / "plan.json").read_text())
    assert shown["digest"] == stored["digest"]
    assert shown["stages"] == stored["stages"]
    assert [layer["state"] for layer in shown["layers"][3:8]] == ["kept", "removed", "removed", "removed", "kept"]


def test_diff_names_the_layers_that_differ(sned: Callable[..., Outcome], plan_folder: Callable[..., Path]) -> None:
    first, second = plan_folder("a"), plan_folder("b", layers=range(5, 8), method="shortgpt")
    got = sned("diff", first, second)
    assert got.code == 0
    changes = [line.split() for line in got.out.splitlines()]
    assert ["4", "removed", "kept"] in changes
    assert ["7", "kept", "removed"] in changes
    assert "different models" not in got.out
    document = sned("diff", first, second, "--json").document
    assert document["same"] is False
    assert document["layers"][0] == {"layers": "4", "first": "removed", "second": "kept"}


def test_diff_of_a_plan_with_itself(sned: Callable[..., Outcome], plan_folder: Callable[..., Path]) -> None:
    folder = plan_folder()
    assert "the same plan" in sned("diff", folder, folder).out
    assert sned("diff", folder, folder, "--json").document["same"] is True


def test_diff_shows_options_that_differ(sned: Callable[..., Outcome], plan_folder: Callable[..., Path]) -> None:
    got = sned("diff", plan_folder("a", positions="all"), plan_folder("b", positions="last"))
    assert ["positions", "all", "last"] in [line.split() for line in got.out.splitlines()]
    assert "treat every layer alike" in got.out


def test_diff_of_plans_for_different_models(sned: Callable[..., Outcome], plan_folder: Callable[..., Path]) -> None:
    got = sned("diff", plan_folder("a"), plan_folder("b", depth=20))
    assert got.code == 0
    assert "layers: 12 / 20" in got.out
    assert "cannot be compared one by one" in got.out


def test_methods_lists_all(sned: Callable[..., Outcome]) -> None:
    got = sned("methods")
    for name in ("replaceme", "uidl", "shortgpt", "random", "deepest", "arXiv:2505.02819"):
        assert name in got.out
    names = [method["name"] for method in sned("methods", "--json").document["methods"]]
    assert names == sorted(names)


def test_methods_explains_one(sned: Callable[..., Outcome]) -> None:
    got = sned("methods", "replaceme")
    for text in ("ReplaceMe: Network", "Departures", "--estimator", "lstsq | cosine | mse", "--[no-]standalone"):
        assert text in got.out
    assert "sned prune demo -m replaceme --layers 6" in got.out
    document = sned("methods", "replaceme", "--json").document
    assert {"name": "maps", "type": "number", "default": 1}.items() <= document["options"][4].items()


def test_methods_tells_budgets_and_tokens(sned: Callable[..., Outcome]) -> None:
    got = sned("methods", "blockpruner")
    for text in ("--blocks N or --remove 25%", "16,384 tokens unless told otherwise", "-m blockpruner --blocks 12"):
        assert text in got.out
    assert sned("methods", "random").out.count("tokens") == 0
    document = sned("methods", "blockpruner", "--json").document
    assert (document["budget"], document["calibration_tokens"]) == (["blocks", "remove"], 16_384)


def test_plan_shows_what_it_decided(
    sned: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, made_plan: Callable[..., Any]
) -> None:
    monkeypatch.setattr("sned.jobs.plan.plan", lambda *_: made_plan())
    got = sned("plan", *PRUNE[1:])
    assert "remove layers 4-6" in got.out
    assert "sned apply demo out -o OUT" in got.out
    assert sned("plan", *PRUNE[1:], "--json").document["summary"] == "remove layers 4-6"


def test_an_error_leaves_stdout_empty_even_with_json(
    sned: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        print("talk")
        raise ConfigError("no")

    monkeypatch.setattr("sned.jobs.prune.prune", fail)
    got = sned(*PRUNE, "--json")
    assert (got.code, got.out) == (2, "")
    assert got.err.startswith("talk\n")
