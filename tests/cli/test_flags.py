"""A method's own options as flags: found, read as switches or values, and corrected when misspelt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import pytest

from sned.cli.flags import is_switch, take_flags
from sned.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from sned.jobs.request import PlanRequest

    from .conftest import Outcome

OWN = {"--method": True, "-m": True, "--layers": True, "--out": True, "-o": True, "--json": False, "--set": True}
BASE = ["demo", "-m", "replaceme", "--layers", "2", "-o", "out"]


@pytest.mark.parametrize(
    ("typed", "flags"),
    [
        (["--estimator", "cosine"], {"estimator": "cosine"}),
        (["--estimator=cosine"], {"estimator": "cosine"}),
        (["--ridge-target", "zero"], {"ridge_target": "zero"}),
        (["--ridge", "-1"], {"ridge": "-1"}),
        (["--standalone"], {"standalone": "true"}),
        (["--no-standalone"], {"standalone": "false"}),
        (["--standalone=false"], {"standalone": "false"}),
        (["--span", "3:5", "--probe=0"], {"span": "3:5", "probe": "0"}),
    ],
)
def test_flags_of_the_method_are_taken_out(typed: list[str], flags: dict[str, str]) -> None:
    assert take_flags([*typed, *BASE], OWN) == (BASE, flags)
    assert take_flags([*BASE, *typed], OWN) == (BASE, flags)


def test_a_switch_leaves_the_model_alone() -> None:
    rest, flags = take_flags(["--standalone", *BASE], OWN)
    assert rest[0] == "demo"
    assert flags == {"standalone": "true"}


@pytest.mark.parametrize("name", [["--method=replaceme"], ["-mreplaceme"], ["--method", "replaceme"]])
def test_the_method_is_found_however_it_is_written(name: list[str]) -> None:
    assert take_flags(["demo", *name, "--standalone"], OWN)[1] == {"standalone": "true"}


def test_values_of_the_commands_own_options_are_not_flags() -> None:
    args = ["demo", "-m", "replaceme", "--set", "--odd=1", "--json"]
    assert take_flags(args, OWN) == (args, {})


def test_after_two_dashes_nothing_is_a_flag() -> None:
    args = [*BASE, "--", "--estimator"]
    assert take_flags(args, OWN) == (args, {})


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["--estimater", "cosine"], "did you mean --estimator"),
        (["--layer", "3"], "did you mean --layers"),
        (["--quantum", "3"], "sned methods"),
        (["--ridge"], "--ridge needs a value"),
        (["--ridge", "1", "--ridge", "2"], "given twice"),
    ],
)
def test_wrong_flags_are_explained(typed: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        take_flags([*BASE, *typed], OWN)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "switch"),
    [(bool, True), (Annotated[bool, "help"], True), (bool | None, True), (int, False), (bool | int, False)],
)
def test_switches_are_booleans(kind: Any, switch: bool) -> None:
    assert is_switch(kind) is switch


def test_flags_and_settings_reach_the_job(sned: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[PlanRequest] = []

    def keep(request: PlanRequest, progress: Any, crew: Any) -> None:
        seen.append(request)
        raise ConfigError("enough")

    monkeypatch.setattr("sned.jobs.plan.plan", keep)
    sned("plan", *BASE, "--standalone", "--set", "ridge-target=zero", "--ridge", "0.5", "--remove-of", "all")
    assert dict(seen[0].options) == {"standalone": "true", "ridge": "0.5", "ridge_target": "zero"}
    assert seen[0].budget.layers == 2


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["--set", "ridge"], "--set ridge is not key=value"),
        (["--set", "ridge=1", "--ridge", "2"], "'ridge' is given twice"),
        (["--estimater", "x"], "did you mean --estimator"),
    ],
)
def test_wrong_settings_end_before_anything_is_loaded(
    sned: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, typed: list[str], message: str
) -> None:
    monkeypatch.setattr("sned.jobs.plan.plan", lambda *_: pytest.fail("the job began"))
    got = sned("plan", *BASE, *typed)
    assert (got.code, got.out) == (2, "")
    assert message in got.err
