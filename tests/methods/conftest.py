"""The order of the contracts: all of a method on a family together, so that what they share is planned once."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort them by what they are given; a worker runs neighbours, and each keeps what it has planned."""

    def of_contracts(item: Any) -> bool:
        return item.path.name == "test_contracts.py"

    def given(item: Any) -> tuple[str, str]:
        params = item.callspec.params if hasattr(item, "callspec") else {}
        return params.get("method", ""), params.get("name", "")

    grouped = [(ours, list(run)) for ours, run in groupby(items, of_contracts)]
    items[:] = [item for ours, run in grouped for item in (sorted(run, key=given) if ours else run)]
