"""Budgets: what a user may write, and how many layers, blocks or parameters that makes."""

from __future__ import annotations

import itertools
from typing import Any, Literal

import pytest

from sned.errors import BudgetError, ConfigError
from sned.models.geometry import Geometry
from sned.plans.budget import Budget, Goal, goal_of, layers_to_remove, parse_share

SIZES = (100, 100, 100, 100, 100, 300)
REST = 200


def geometry(sizes: tuple[int, ...] = SIZES) -> Geometry:
    """A model of layers of these sizes, and 200 parameters elsewhere."""
    return Geometry(
        model_type="llama",
        n_layers=len(sizes),
        hidden=8,
        n_heads=2,
        n_kv_groups=2,
        head_dim=4,
        vocab=16,
        n_params=sum(sizes) + REST,
        layer_shapes=tuple({"weight": (n // 10, 10)} for n in sizes),
    )


def layers(budget: Budget, removable: range = range(1, 5), sizes: tuple[int, ...] = SIZES) -> int:
    return layers_to_remove(budget, geometry(sizes), removable)


class TestShares:
    @pytest.mark.parametrize(
        ("text", "value"),
        [("25%", 0.25), ("0.25", 0.25), (" 12.5 % ", 0.125), (".5", 0.5), ("5.%", 0.05), ("0.1%", 0.001)],
    )
    def test_percent_or_fraction(self, text: str, value: float) -> None:
        assert parse_share(text, name="--remove") == pytest.approx(value)

    def test_a_forgotten_percent_sign_is_named(self) -> None:
        with pytest.raises(ConfigError, match="--remove 25 means 2500% of the parameters") as caught:
            parse_share("25", name="--remove")
        assert caught.value.hint == "write 25% or 0.25"

    @pytest.mark.parametrize("text", ["0", "0%", "100%", "150%", "1", "1.0"])
    def test_nothing_and_everything_are_no_shares(self, text: str) -> None:
        with pytest.raises(ConfigError, match="between 0% and 100%"):
            parse_share(text, name="--remove")

    @pytest.mark.parametrize("text", ["", "a quarter", "-25%", "1/4", "25%%", "1e-1", "0,25"])
    def test_anything_else_is_refused(self, text: str) -> None:
        with pytest.raises(ConfigError, match="is not a share"):
            parse_share(text, name="--remove")


class TestLayers:
    @pytest.mark.parametrize("n", [1, 2, 4])
    def test_a_number_is_taken_as_it_is(self, n: int) -> None:
        assert layers(Budget(layers=n)) == n

    @pytest.mark.parametrize("n", [0, -3])
    def test_removing_nothing_is_refused(self, n: int) -> None:
        with pytest.raises(BudgetError, match=f"--layers {n} removes nothing") as caught:
            layers(Budget(layers=n))
        assert caught.value.hint == "give 1 to 4"

    def test_too_many_names_the_most(self) -> None:
        with pytest.raises(BudgetError) as caught:
            layers(Budget(layers=5))
        assert "--layers 5 is too many: at most 4 of 6 layers may go here (40.0% of the parameters)" in str(
            caught.value
        )
        assert caught.value.hint == "give 1 to 4"

    @pytest.mark.parametrize(("share", "n"), [(0.05, 1), (0.1, 1), (0.101, 2), (0.2, 2), (0.4, 4)])
    def test_a_share_of_all_is_reached_and_hardly_passed(self, share: float, n: int) -> None:
        assert layers(Budget(remove=share)) == n

    @pytest.mark.parametrize(("share", "n"), [(0.05, 1), (0.125, 1), (0.13, 2), (0.5, 4)])
    def test_a_share_of_the_body_counts_layers_alone(self, share: float, n: int) -> None:
        assert layers(Budget(remove=share, remove_of="body")) == n

    def test_too_large_a_share_names_the_closest(self) -> None:
        with pytest.raises(BudgetError) as caught:
            layers(Budget(remove=0.6))
        assert "--remove 60.0% cannot be reached by whole layers: at most 4 of 6 layers may go here (40.0%" in str(
            caught.value
        )

    def test_the_share_named_for_the_body_is_of_the_body(self) -> None:
        with pytest.raises(BudgetError, match=r"at most 4 of 6 layers may go here \(50.0% of the decoder"):
            layers(Budget(remove=0.6, remove_of="body"))

    def test_the_closest_share_named_can_be_asked_for(self) -> None:
        """Rounding in the message must not send the user in a circle."""
        sizes = (90, 90, 110, 130, 70, 330)
        most = sum(sizes[1:5]) / (sum(sizes) + REST)
        with pytest.raises(BudgetError) as caught:
            layers(Budget(remove=0.9), sizes=sizes)
        assert f"{most:.1%}" in str(caught.value)
        assert layers(Budget(remove=most), sizes=sizes) == 4

    def test_whatever_layers_the_method_takes_the_share_is_reached(self) -> None:
        """Layers may differ in size; the number must hold for any choice that the method makes."""
        sizes = (100, 50, 100, 150, 200, 100)
        n = layers(Budget(remove=0.1), sizes=sizes)
        total = sum(sizes) + REST
        assert all(sum(sizes[i] for i in chosen) >= 0.1 * total for chosen in itertools.combinations(range(1, 5), n))

    def test_none_given_is_an_error(self) -> None:
        with pytest.raises(ConfigError, match="no budget given"):
            layers(Budget())

    def test_nothing_removable_is_said_plainly(self) -> None:
        with pytest.raises(BudgetError) as caught:
            layers(Budget(layers=1), removable=range(1, 1))
        assert "at most 0 of 6 layers" in str(caught.value)
        assert "give 1 to 0" not in str(caught.value)


class TestKinds:
    @pytest.mark.parametrize(
        ("budget", "kind", "options"),
        [
            (Budget(), None, {}),
            (Budget(layers=2), "layers", {"layers": 2}),
            (Budget(blocks=3), "blocks", {"blocks": 3}),
            (Budget(remove=0.2), "remove", {"remove": 0.2, "remove_of": "all"}),
            (Budget(remove=0.2, remove_of="body"), "remove", {"remove": 0.2, "remove_of": "body"}),
        ],
    )
    def test_a_budget_knows_what_was_given(self, budget: Budget, kind: str | None, options: dict[str, object]) -> None:
        assert budget.kind == kind
        assert budget.as_options() == options

    @pytest.mark.parametrize("given", [{"layers": 1, "remove": 0.1}, {"blocks": 1, "layers": 1}], ids=str)
    def test_two_at_once_are_refused(self, given: dict[str, Any]) -> None:
        with pytest.raises(ConfigError, match="are given together") as caught:
            Budget(**given)
        assert all(f"--{kind}" in str(caught.value) for kind in given)


class TestGoals:
    @pytest.mark.parametrize("n", [1, 7, 11])
    def test_blocks_are_counted(self, n: int) -> None:
        assert goal_of(Budget(blocks=n), geometry()) == Goal(blocks=n)

    @pytest.mark.parametrize("n", [0, -1, 12])
    def test_one_block_has_to_stay(self, n: int) -> None:
        with pytest.raises(BudgetError, match=f"--blocks {n} is out of reach") as caught:
            goal_of(Budget(blocks=n), geometry())
        assert caught.value.hint == "give 1 to 11"

    @pytest.mark.parametrize(
        ("share", "of", "params"), [(0.25, "all", 250), (0.2501, "all", 251), (0.25, "body", 200), (0.7999, "all", 800)]
    )
    def test_a_share_is_rounded_up_to_whole_parameters(
        self, share: float, of: Literal["all", "body"], params: int
    ) -> None:
        assert goal_of(Budget(remove=share, remove_of=of), geometry()) == Goal(params=params)

    @pytest.mark.parametrize("share", [0.8, 0.95])
    def test_more_than_the_body_is_refused(self, share: float) -> None:
        with pytest.raises(BudgetError, match="more than all decoder layers together") as caught:
            goal_of(Budget(remove=share), geometry())
        assert caught.value.hint == "they hold 80.0% of the parameters"

    def test_only_what_was_asked_for_counts(self) -> None:
        blocks, params = Goal(blocks=2), Goal(params=100)
        assert [blocks.reached(n, 10**6) for n in (0, 1, 2, 3)] == [False, False, True, True]
        assert [params.reached(99, n) for n in (0, 99, 100)] == [False, False, True]
