"""What `--dry-run` says of a search: how much is to go, and how often the text will be run through."""

from __future__ import annotations

from typing import Any

import pytest
from kit.tiny import LAYERS, make_model, save_model_folder

from sned.jobs.forecast import dry_run, memory_needed, sweeps, to_remove, trials
from sned.jobs.request import LoadRequest, PlanRequest, PruneRequest, TextRequest
from sned.models.view import View
from sned.plans.budget import Budget
from sned.progress import SILENT
from sned.runtime.method import Method, all_methods, find_method
from sned.runtime.trials import HELD_BYTES
from sned.training.memory import memory_for_gates

TEXT = TextRequest(("random",), 64, 16)


@pytest.mark.parametrize(
    ("method", "budget", "given", "expected"),
    [
        ("uidl", Budget(layers=2), {}, 0),
        ("blockpruner", Budget(blocks=3), {}, 10 + 9 + 8),
        ("blockpruner", Budget(blocks=2), {"types": "mlp"}, 5 + 4),
        ("blockpruner", Budget(blocks=4), {"stock": True}, 9 + 7),
        ("blockpruner", Budget(blocks=4), {"one_shot": True}, 10),
        ("influence", Budget(layers=2), {"metric": "cosine"}, 0),
        ("influence", Budget(layers=2), {}, 3),
        ("influence", Budget(blocks=2), {"metric": "loo", "units": "both", "min_start": 0}, 8),
        ("influence", Budget(layers=2), {"metric": "shapley"}, 8),
        ("influence", Budget(layers=2), {"metric": "shapley", "min_start": 0, "permutations": 2}, 2 * 3 // 3 + 2),
        ("influence", Budget(layers=2), {"metric": "shapley", "permutations": 2, "bounded": False}, 2 * 2 + 2),
        ("taylorsearch", Budget(remove=0.1), {"mlp_group": 8, "proposals": 3}, 4 * 3 * 7),
        ("taylorsearch", Budget(remove=0.01), {"kinds": "heads"}, 2 * 2),
        ("taylorsearch", Budget(remove=0.01), {"kinds": "heads", "whole_blocks": False}, 2),
        ("laco", Budget(layers=2), {}, 2),
        ("laco", Budget(layers=3), {}, 2 + 2),
        ("laco", Budget(layers=3), {"merge": 2}, 3 + 3 + 3),
        ("laco", Budget(layers=3), {"merge": 2, "threshold": 0.5}, 3),
    ],
)
def test_trials_are_counted(method: str, budget: Budget, given: dict[str, Any], expected: int) -> None:
    found = find_method(method)
    assert trials(View(make_model("llama")), found, budget, found.parse(given)) == expected


def test_a_larger_share_takes_more_trials() -> None:
    view, method = View(make_model("llama")), find_method("blockpruner")
    counted = [trials(view, method, Budget(remove=share), method.parse({})) for share in (0.05, 0.2, 0.5)]
    assert counted == sorted(set(counted))
    assert counted[-1] <= sum(range(2 * LAYERS + 1))


def test_experts_have_no_removable_mlp() -> None:
    view, method = View(make_model("mixtral")), find_method("blockpruner")
    assert trials(view, method, Budget(blocks=2), method.parse({})) == 5 + 4
    assert trials(view, method, Budget(blocks=2), method.parse({"types": "mlp"})) == 0


@pytest.mark.parametrize(
    ("budget", "what", "count", "of"),
    [(Budget(layers=2), "layers", 2, LAYERS), (Budget(blocks=3), "blocks", 3, 2 * LAYERS)],
)
def test_what_is_to_go_is_named(budget: Budget, what: str, count: int, of: int) -> None:
    assert to_remove(View(make_model("llama")), budget) == {"what": what, "count": count, "of": of}


def test_a_share_is_told_in_parameters() -> None:
    view = View(make_model("llama"))
    total = view.geometry.n_params
    assert to_remove(view, Budget(remove=0.25)) == {"what": "parameters", "count": -(-total // 4), "of": total}


def test_only_the_text_that_is_compared_counts(tmp_path: Any) -> None:
    folder = save_model_folder(tmp_path / "model", "llama")
    request = PlanRequest(
        LoadRequest(str(folder)), "laco", Budget(layers=2), tmp_path / "out", {"sentences": 3}, calibration=TEXT
    )
    found = dry_run(request, SILENT)
    assert found["calibration_tokens"] == 3 * 16
    assert found["memory_bytes"] == memory_needed(View(make_model("llama"))) + HELD_BYTES


@pytest.mark.parametrize("kind", [PlanRequest, PruneRequest])
def test_a_search_needs_memory_for_its_candidates(tmp_path: Any, kind: type[PlanRequest]) -> None:
    folder = save_model_folder(tmp_path / "model", "llama")
    request = kind(LoadRequest(str(folder)), "blockpruner", Budget(blocks=3), tmp_path / "out", calibration=TEXT)
    found = dry_run(request, SILENT)
    assert found["memory_bytes"] == memory_needed(View(make_model("llama"))) + HELD_BYTES
    assert (found["trials"], found["calibration_tokens"]) == (27, 64)
    assert found["evaluation_tokens"] == (16_384 if kind is PruneRequest else 0)
    assert found["seconds"] > 0
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("method", all_methods(), ids=lambda method: method.name)
def test_every_method_says_how_often_it_reads_the_text(method: Method) -> None:
    assert sweeps(method, method.parse({})) >= 1


def test_who_reads_it_again_and_again_says_so() -> None:
    """In forward passes; the way back takes about as long as two."""
    for name, options, least in (("policygrad", {"masks": 3}, 18), ("displlm", {"epochs": 6}, 18), ("taylor", {}, 3)):
        method = find_method(name)
        assert least <= sweeps(method, method.parse(options)) <= 1.5 * least


def test_the_way_back_takes_memory(tmp_path: Any) -> None:
    folder = save_model_folder(tmp_path / "model", "llama")
    request = PlanRequest(LoadRequest(str(folder)), "taylor", Budget(remove=0.1), tmp_path / "out", calibration=TEXT)
    view = View(make_model("llama"))
    assert dry_run(request, SILENT)["memory_bytes"] == memory_needed(view) + memory_for_gates(view, 0, 16)
