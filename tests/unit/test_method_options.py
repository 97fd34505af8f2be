"""Methods: a signature is a configuration, and a wrong option is named before anything runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

import pytest

import sned
from sned.errors import ConfigError
from sned.plans.ops import DropLayers, Op
from sned.registry import did_you_mean
from sned.runtime.context import Context
from sned.runtime.method import Method, all_methods, find_method

BUILT_IN = {"deepest", "random", "replaceme", "shortgpt", "uidl"}


@sned.method(paper="arXiv:0000.00000", prunes="depth", title="A title")
def sample(
    ctx: Context,
    *,
    layers: int,
    strength: Annotated[float, "how much"] = 0.5,
    shape: Annotated[Literal["round", "square"], "which"] = "round",
    limit: Annotated[int | None, "at most"] = None,
    span: Annotated[str | None, "where"] = None,
    fast: Annotated[bool, "whether"] = False,
) -> Iterator[Op]:
    """Do something.

    And more.
    """
    yield DropLayers(layers=range(layers))


DEFAULTS = {"strength": 0.5, "shape": "round", "limit": None, "span": None, "fast": False}


class TestSignature:
    def test_it_says_everything(self) -> None:
        assert isinstance(sample, Method)
        assert (sample.name, sample.summary, sample.title) == ("sample", "Do something.", "A title")
        assert (sample.paper, sample.prunes, sample.needs_tokens) == ("arXiv:0000.00000", "depth", True)
        assert [(o.name, o.default, o.help) for o in sample.options] == [
            ("strength", 0.5, "how much"),
            ("shape", "round", "which"),
            ("limit", None, "at most"),
            ("span", None, "where"),
            ("fast", False, "whether"),
        ]

    def test_the_budget_is_no_option(self) -> None:
        assert sample.budgets == ("layers", "remove")
        assert "layers" not in {option.name for option in sample.options}
        with pytest.raises(ConfigError, match="no option 'layers'"):
            sample.parse({"layers": 3})

    def test_only_options_need_types_that_exist_at_run_time(self) -> None:
        """Many import what they use in annotations for the type checker alone."""

        @sned.method(paper="", prunes="depth")
        def lean(ctx: Lean, *, layers: Lean, strength: float = 0.5) -> Iterator[Op]:  # noqa: F821
            """Do little."""
            yield DropLayers(layers=range(layers))

        assert lean.parse({"strength": "2"}) == {"strength": 2.0}


class TestParse:
    def test_defaults(self) -> None:
        assert sample.parse({}) == DEFAULTS

    @pytest.mark.parametrize(
        ("name", "text", "value"),
        [
            ("strength", "0.25", 0.25),
            ("strength", "1e-3", 1e-3),
            ("strength", "2", 2.0),
            ("shape", "square", "square"),
            ("limit", "7", 7),
            ("limit", "null", None),
            ("limit", "none", None),
            ("span", "13:19", "13:19"),
            ("span", "7", "7"),
            ("fast", "true", True),
            ("fast", "false", False),
        ],
    )
    def test_text_of_a_command_line(self, name: str, text: str, value: Any) -> None:
        parsed = sample.parse({name: text})
        assert parsed == DEFAULTS | {name: value}
        assert type(parsed[name]) is type(value)

    @pytest.mark.parametrize(
        ("name", "value"),
        [("strength", 0.25), ("shape", "square"), ("limit", 7), ("span", "1:2"), ("fast", True)],
    )
    def test_values(self, name: str, value: Any) -> None:
        assert sample.parse({name: value}) == DEFAULTS | {name: value}

    @pytest.mark.parametrize(
        ("given", "words"),
        [
            ({"strenght": 1}, ["sample has no option 'strenght'", "did you mean strength?", "`sned methods sample`"]),
            ({"strength": "strong"}, ["strength='strong'"]),
            ({"shape": "oval"}, ["shape='oval'", "'round' or 'square'"]),
            ({"limit": "2.5"}, ["limit=", "2.5"]),
            ({"fast": "perhaps"}, ["fast='perhaps'"]),
            ({"strength": "x", "limit": "y"}, ["strength='x'", "limit='y'"]),
            ({"one": 1, "two": 2}, ["'one'", "'two'"]),
        ],
    )
    def test_what_is_wrong_is_named(self, given: dict[str, Any], words: list[str]) -> None:
        with pytest.raises(ConfigError) as caught:
            sample.parse(given)
        for word in words:
            assert word in str(caught.value)


class TestRegistry:
    def test_built_in_methods_are_found_by_name(self) -> None:
        assert {m.name for m in all_methods()} >= BUILT_IN
        assert find_method("uidl").paper == "arXiv:2403.17887"

    def test_a_method_may_be_given_itself(self) -> None:
        assert find_method(sample) is sample

    def test_a_slip_is_answered_with_the_nearest_name(self) -> None:
        with pytest.raises(ConfigError) as caught:
            find_method("replace")
        assert "there is no method 'replace'" in str(caught.value)
        assert "did you mean replaceme" in str(caught.value)

    def test_without_a_near_name_all_are_listed(self) -> None:
        assert did_you_mean("xyzzy", ["uidl", "random"]) == "known: random, uidl"

    @pytest.mark.parametrize("name", sorted(BUILT_IN))
    def test_papers_are_cited_by_all_but_baselines(self, name: str) -> None:
        found = find_method(name)
        assert found.paper.startswith("arXiv:") or name == "random"
        assert found.prunes == "depth"
