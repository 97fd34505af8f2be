"""Measures what sned promises of itself, as ratios to a stated floor taken in the same run.

    python benchmarks/run.py [planning] [streaming] [decoding] [startup] [searching] [sparsity] [routing]
                             [training] [quality]

Without a name, all of them. Seconds depend on the machine; the ratios are what to compare.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch, or two busy processes make it spin

import json
import sys
from collections.abc import Callable
from typing import Any

import decoding
import planning
import quality
import routing
import searching
import sparsity
import startup
import streaming
import training

CASES: dict[str, Callable[[], dict[str, Any]]] = {
    "startup": startup.measure,
    "planning": planning.measure,
    "streaming": streaming.measure,
    "decoding": decoding.measure,
    "searching": searching.measure,
    "sparsity": sparsity.measure,
    "routing": routing.measure,
    "training": training.measure,
    "quality": quality.measure,
}


def main(names: list[str]) -> None:
    """Run the named cases and print one JSON document each."""
    for name in names or list(CASES):
        print(json.dumps({name: CASES[name]()}, indent=1), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
