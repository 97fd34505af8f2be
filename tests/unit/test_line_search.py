"""The lowest of a row of values: always found in a valley, with few questions, and never missed unnoticed."""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING

import pytest

from sned.score.line_search import lowest_of_valley

if TYPE_CHECKING:
    from collections.abc import Sequence

PATIENT, HASTY = False, True
either = pytest.mark.parametrize("hasty", [PATIENT, HASTY])


def search(values: Sequence[float], *, hasty: bool = PATIENT) -> tuple[int, dict[int, float]]:
    """Look for the lowest value; a hasty one gives up on values above the bound, as it may."""
    asked: dict[int, float] = {}

    def value(index: int, bound: float) -> float:
        assert index in range(len(values))
        assert index not in asked, "asked for twice"
        assert bound >= min(asked.values(), default=math.inf)
        asked[index] = math.inf if hasty and values[index] > bound else values[index]
        return asked[index]

    found, known = lowest_of_valley(len(values), value)
    assert known == asked
    return found, known


def first_lowest(values: Sequence[float]) -> int:
    return min(range(len(values)), key=lambda i: (values[i], i))


def valley(rng: random.Random, n: int, *, levels: int = 0) -> list[float]:
    """Values that fall and then rise; of a few levels, and so with steps, where levels are given."""
    draws = [float(rng.randrange(levels)) if levels else rng.random() for _ in range(n)]
    turn = rng.randrange(n)
    return sorted(draws[:turn], reverse=True) + sorted(draws[turn:])


@either
@pytest.mark.parametrize("n", [1, 2, 3, 4, 7, 15, 40])
def test_the_bottom_of_a_valley_is_found_wherever_it_lies(n: int, hasty: bool) -> None:
    for bottom in range(n):
        values = [abs(i - bottom + 0.1) for i in range(n)]
        found, known = search(values, hasty=hasty)
        assert found == bottom
        assert known[found] == values[found]


@either
def test_a_valley_takes_few_questions(hasty: bool) -> None:
    questions = [len(search([abs(i - bottom + 0.1) for i in range(15)], hasty=hasty)[1]) for bottom in range(15)]
    assert max(questions) <= 8
    assert len(search([abs(i - 311.9) for i in range(1000)], hasty=hasty)[1]) <= 20


@either
@pytest.mark.parametrize("seed", range(40))
def test_random_valleys(seed: int, hasty: bool) -> None:
    rng = random.Random(seed)
    values = valley(rng, rng.randint(1, 30))
    assert search(values, hasty=hasty)[0] == first_lowest(values)


@either
@pytest.mark.parametrize("seed", range(40))
def test_steps_and_level_ground_lead_nobody_astray(seed: int, hasty: bool) -> None:
    """Candidates that come to the same are equal; of equal ones the first is taken."""
    rng = random.Random(seed)
    values = valley(rng, rng.randint(1, 20), levels=4)
    assert search(values, hasty=hasty)[0] == first_lowest(values)


@either
def test_what_begins_level_is_searched_to_its_end(hasty: bool) -> None:
    assert search([5.0] * 12 + [4.0, 3.0, 4.0], hasty=hasty)[0] == 13
    assert search([3.0, 4.0] + [5.0] * 13, hasty=hasty)[0] == 0
    assert search([5.0] * 15, hasty=hasty) == (0, dict.fromkeys(range(15), 5.0))


@either
def test_hills_and_valleys_are_all_looked_at(hasty: bool) -> None:
    """The search begins at 5 and turns to 9; what lies between falls where it should rise."""
    values = [8.0, 7.0, 8.0, 4.0, 3.0, 1.0, 4.0, 6.0, 5.0, 5.0, 7.0, 6.0, 9.0, 5.0, 0.0]
    found, known = search(values, hasty=hasty)
    assert len(known) == len(values)
    assert found == 14


@pytest.mark.parametrize("seed", range(60))
def test_the_lowest_is_missed_only_where_what_was_seen_is_a_valley(seed: int) -> None:
    rng = random.Random(seed)
    values = [rng.random() for _ in range(rng.randint(1, 15))]
    found, known = search(values)
    seen = [known[i] for i in sorted(known)]
    turn = seen.index(min(seen))
    if seen[: turn + 1] == sorted(seen[: turn + 1], reverse=True) and seen[turn:] == sorted(seen[turn:]):
        assert found == min(known, key=lambda i: known[i])
        assert {i for i in (found - 1, found + 1) if i in range(len(values))} <= known.keys()
    else:
        assert len(known) == len(values)
        assert found == first_lowest(values)


@either
@pytest.mark.parametrize("values", [[1.0], [1.0, 2.0], [2.0, 1.0], [1.0, 1.0]])
def test_one_and_two_are_all_asked_for(values: list[float], hasty: bool) -> None:
    found, known = search(values, hasty=hasty)
    assert found == first_lowest(values)
    assert len(known) == len(values)
