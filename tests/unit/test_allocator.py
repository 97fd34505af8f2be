"""Naming an allocator and its options in one word, and what follows from a method's options."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import pytest
from kit.planning import OF_WEIGHTS

import sned
from sned.errors import ConfigError
from sned.plans.budget import Budget
from sned.plans.ops import DropLayers, Op
from sned.runtime import allocator as module
from sned.runtime.allocator import Allocator, all_allocators, allocator, read_allocator, spell
from sned.runtime.context import Context
from sned.runtime.method import find_method
from sned.runtime.quotas import UNIFORM, Shares

BUILT_IN = ["alphapruning", "neuroal", "owl", "uniform"]
every_allocator = pytest.mark.parametrize("found", all_allocators(), ids=lambda found: found.name)
every_method = pytest.mark.parametrize("method", OF_WEIGHTS)


class TestReading:
    @every_allocator
    def test_a_name_alone_means_the_defaults(self, found: Allocator) -> None:
        for text in (found.name, f"{found.name}:"):
            assert read_allocator(text) == (found, {option.name: option.default for option in found.options})

    @pytest.mark.parametrize(
        ("text", "name", "changed"),
        [
            ("owl:multiple=3", "owl", {"multiple": 3.0}),
            ("owl:multiple=3,spread=0.1", "owl", {"multiple": 3.0, "spread": 0.1}),
            ("owl: multiple = 3 , spread = 0.1 ,", "owl", {"multiple": 3.0, "spread": 0.1}),
            ("alphapruning:estimator=mid,windows=true,per=matrix", "alphapruning", None),
            ("neuroal:step=both,every=true,windows=4", "neuroal", {"step": "both", "every": True, "windows": 4}),
            ("neuroal:windows=none", "neuroal", {}),
        ],
    )
    def test_options_follow_a_colon(self, text: str, name: str, changed: dict[str, Any] | None) -> None:
        found, options = read_allocator(text)
        defaults = {option.name: option.default for option in found.options}
        changed = {"estimator": "mid", "windows": True, "per": "matrix"} if changed is None else changed
        assert found.name == name
        assert options == defaults | changed
        assert {key: type(options[key]) for key in changed} == {key: type(value) for key, value in changed.items()}

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("owll", ["there is no allocator 'owll'", "did you mean owl?"]),
            ("neuronal:step=row", ["there is no allocator 'neuronal'", "did you mean neuroal?"]),
            ("xyzzy", ["there is no allocator 'xyzzy'", "known: alphapruning, neuroal, owl, uniform"]),
            ("", ["there is no allocator ''"]),
            ("wanda", ["there is no allocator 'wanda'"]),
            ("owl:multipel=3", ["owl has no option 'multipel'", "did you mean multiple?"]),
            ("uniform:spread=0.1", ["uniform has no option 'spread'"]),
            ("owl:multiple", ["allocate='owl:multiple'", "'multiple' is not key=value", "such as owl:multiple=3"]),
            ("owl:multiple=3,multiple=4", ["'multiple=4' is not key=value, or given twice"]),
            ("owl:multiple=many", ["owl: multiple='many'"]),
            ("owl:multiple=0", ["owl: multiple='0'", "greater than 0"]),
            ("owl:spread=1", ["owl: spread='1'", "less than 1"]),
            ("owl:spread=-0.1,multiple=-1", ["spread='-0.1'", "multiple='-1'"]),
            ("neuroal:step=column", ["neuroal: step='column'", "'block', 'row' or 'both'"]),
            ("neuroal:windows=0", ["neuroal: windows='0'"]),
        ],
    )
    def test_what_is_wrong_is_named(self, text: str, words: list[str]) -> None:
        with pytest.raises(ConfigError) as caught:
            read_allocator(text)
        for word in words:
            assert word in str(caught.value)

    @pytest.mark.parametrize("text", ["owl:multiple=3,spread=0.1", "neuroal:step=both,every=true", "uniform"])
    def test_options_are_spelled_as_they_are_read(self, text: str) -> None:
        found, options = read_allocator(text)
        assert read_allocator(f"{found.name}:{spell(options)}") == (found, options)

    def test_a_hyphen_is_an_underscore(self, monkeypatch: pytest.MonkeyPatch) -> None:
        @allocator(paper="")
        def hilly(_ctx: Context, _task: Any, *, peak_height: Annotated[float, "how high"] = 1.0) -> Shares:
            return UNIFORM

        monkeypatch.setattr(module, "find", lambda _kind, _name: hilly)
        assert read_allocator("hilly:peak-height=2") == (hilly, {"peak_height": 2.0})
        with pytest.raises(ConfigError, match="'peak_height=3' is not key=value, or given twice"):
            read_allocator("hilly:peak-height=2,peak_height=3")


class TestDescription:
    def test_the_built_in_ones_are_there(self) -> None:
        assert [found.name for found in all_allocators()] == BUILT_IN

    @every_allocator
    def test_they_say_what_they_do(self, found: Allocator) -> None:
        assert found.summary.endswith(".")
        assert found.title
        assert found.paper.startswith("arXiv:") or found.name == "uniform"
        assert all(option.help for option in found.options), f"options of {found.name} need help texts"

    @every_method
    def test_methods_that_prune_weights_offer_them_all(self, method: str) -> None:
        (option,) = [option for option in find_method(method).options if option.name == "allocate"]
        assert option.default == "uniform"
        assert all(name in option.help for name in BUILT_IN)

    @every_method
    @pytest.mark.parametrize(
        ("given", "words"),
        [
            ({"allocate": "owll"}, "did you mean owl?"),
            ({"allocate": "owl:spread=2"}, "owl: spread='2'"),
            ({"pattern": "rows"}, "pattern='rows' is none of"),
            ({"pattern": "4:2"}, "the pattern 4:2 keeps 4 of every 2 weights"),
        ],
    )
    def test_they_are_checked_before_anything_runs(self, method: str, given: dict[str, str], words: str) -> None:
        with pytest.raises(ConfigError) as caught:
            find_method(method).parse(given)
        assert words in str(caught.value)


@sned.method(paper="", prunes="depth", title="Depth with a pattern")
def deep(ctx: Context, *, layers: int = 3, pattern: Annotated[str, "any"] = "2:4") -> Iterator[Op]:
    """Remove layers."""
    yield DropLayers(layers=range(layers))


class TestConsequences:
    @every_method
    @pytest.mark.parametrize(("pattern", "sparsity"), [("2:4", 0.5), ("1:4", 0.75), ("5:8", 0.375), ("row", None)])
    def test_a_pattern_of_n_in_m_proposes_its_budget(self, method: str, pattern: str, sparsity: float | None) -> None:
        found = find_method(method)
        assert found.proposed_budget(found.parse({"pattern": pattern})) == Budget(sparsity=sparsity)

    def test_a_method_of_another_kind_proposes_what_its_signature_says(self) -> None:
        assert deep.proposed_budget(deep.parse({})) == Budget(layers=3)
        assert find_method("uidl").proposed_budget({"pattern": "2:4"}) == Budget()

    @pytest.mark.parametrize(
        ("given", "reads"),
        [
            ({}, False),
            ({"pattern": "global"}, False),
            ({"keep_zeros": "true"}, False),
            ({"allocate": "alphapruning:spread=0.3"}, False),
            ({"allocate": "owl"}, True),
            ({"allocate": "neuroal:step=block"}, True),
            ({"refine": "dsnot"}, True),
            ({"update": "true"}, True),
        ],
    )
    def test_magnitude_reads_text_only_where_an_option_makes_it(self, given: dict[str, str], reads: bool) -> None:
        found = find_method("magnitude")
        assert found.reads_text(found.parse(given)) is reads

    @pytest.mark.parametrize("method", [name for name in OF_WEIGHTS if name != "magnitude"])
    def test_the_others_always_do(self, method: str) -> None:
        found = find_method(method)
        assert found.reads_text(found.parse({"allocate": "uniform"}))
