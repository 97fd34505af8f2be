"""Prune large language models, and get back models that load and run.

Importing sned imports nothing heavy; torch and transformers come with the first use of a name below.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from sned.api import Model, apply, evaluate, load, plan, prune, save
    from sned.data.tokens import Tokens
    from sned.plans.plan import Plan
    from sned.report.schema import Report
    from sned.runtime.allocator import allocator
    from sned.runtime.context import Context
    from sned.runtime.method import method

_HOMES = {
    "Context": "sned.runtime.context",
    "Model": "sned.api",
    "Plan": "sned.plans.plan",
    "Report": "sned.report.schema",
    "Tokens": "sned.data.tokens",
    "allocator": "sned.runtime.allocator",
    "apply": "sned.api",
    "evaluate": "sned.api",
    "load": "sned.api",
    "method": "sned.runtime.method",
    "plan": "sned.api",
    "prune": "sned.api",
    "save": "sned.api",
}

__all__ = [
    "Context",
    "Model",
    "Plan",
    "Report",
    "Tokens",
    "__version__",
    "allocator",
    "apply",
    "evaluate",
    "load",
    "method",
    "plan",
    "prune",
    "save",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sned' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
