"""Stability: by hand, at its ends, under permutation, and what the released code makes of it."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from statistics import pstdev, stdev

import pytest

from sned.errors import DataError, NumericalError
from sned.evaluation.items import ItemScore, accuracy
from sned.evaluation.stability import Flips, item_weights, measure_stability


def item(name: int, nll: tuple[float, ...], gold: int = 0, length: tuple[int, ...] | None = None) -> ItemScore:
    return ItemScore("quiz", name, nll, gold, length or (1,) * len(nll))


def quiz(seed: int, count: int = 40, spread: float = 2.0) -> list[ItemScore]:
    """Items with strongly varying losses; the right choices are the same for every seed."""
    draw, gold = random.Random(seed), random.Random(0)
    return [
        item(i, tuple(draw.uniform(0, spread * (1 + i % 5)) for _ in range(4)), gold.randrange(4)) for i in range(count)
    ]


def flipped(items: list[ItemScore]) -> list[ItemScore]:
    """The same items with every verdict turned round."""
    turned = []
    for one in items:
        losses = [1.0] * len(one.nll)
        losses[one.gold if not one.correct else (one.gold + 1) % len(losses)] = 0.0
        turned.append(replace(one, nll=tuple(losses)))
    return turned


BASE = [item(0, (1.0, 3.0)), item(1, (4.0, 2.0)), item(2, (2.0, 2.5), gold=1)]
PRUNED = [item(0, (1.0, 1.5)), item(1, (1.0, 2.0)), item(2, (3.0, 3.5), gold=1)]
"""Right, wrong, wrong; and right, right, wrong."""


def test_by_hand() -> None:
    found = measure_stability(BASE, PRUNED)
    spreads = [math.sqrt(2), math.sqrt(2), 0.5 / math.sqrt(2)]
    weights = [math.exp(spread) for spread in spreads]
    assert found.stability == pytest.approx((weights[0] + weights[2]) / sum(weights))
    assert found.agreement == pytest.approx(2 / 3)
    assert found.flips == Flips(tp=1, fn=0, fp=1, tn=1)
    legacy = [math.exp(spread) for spread in (1.0, 1.0, 0.25)]
    assert found.legacy == pytest.approx((legacy[0] + legacy[1]) / sum(legacy)), (
        "two agree, so the first two are summed"
    )


def test_losses_are_per_token() -> None:
    long = [replace(one, nll=tuple(7 * x for x in one.nll), length=(7, 7)) for one in BASE]
    assert item_weights(long) == pytest.approx(item_weights(BASE))
    uneven = [item(0, (2.0, 2.0), length=(1, 2)), item(1, (1.0, 1.0))]
    assert item_weights(uneven) == pytest.approx([1.0, math.exp(-stdev([2.0, 1.0]))])


@pytest.mark.parametrize(("ddof", "deviation"), [(0, pstdev), (1, stdev)])
@pytest.mark.parametrize("score", ["nll", "ppl"])
def test_weights_are_a_softmax_of_deviations(ddof, deviation, score) -> None:
    items = quiz(3, count=6, spread=0.4)
    values = [[math.exp(x) if score == "ppl" else x for x in one.nll] for one in items]
    expected = [math.exp(deviation(row)) for row in values]
    got = item_weights(items, ddof=ddof, score=score)
    assert [w / sum(got) for w in got] == pytest.approx([w / sum(expected) for w in expected])


@pytest.mark.parametrize("score", ["nll", "ppl"])
@pytest.mark.parametrize("agreement", ["correctness", "same-answer"])
def test_a_model_is_stable_beside_itself(score, agreement) -> None:
    found = measure_stability(quiz(1), quiz(1), score=score, agreement=agreement)
    assert (found.stability, found.agreement, found.legacy) == (1, 1, 1)
    assert (found.flips.fn, found.flips.fp) == (0, 0)


def test_nothing_is_left_where_every_verdict_turns() -> None:
    found = measure_stability(quiz(1), flipped(quiz(1)))
    assert (found.stability, found.agreement, found.legacy) == (0, 0, 0)
    assert (found.flips.tp, found.flips.tn) == (0, 0)


def test_the_order_of_items_is_nothing_to_stability_and_all_to_the_released_code() -> None:
    base, pruned = quiz(1), quiz(2)
    order = random.Random(5).sample(range(len(base)), len(base))
    first = measure_stability(base, pruned)
    second = measure_stability([base[i] for i in order], [pruned[i] for i in order])
    assert 0 < first.agreement < 1
    assert second.stability == pytest.approx(first.stability, rel=1e-12)
    assert (second.agreement, second.flips) == (first.agreement, first.flips)
    assert abs(second.legacy - first.legacy) > 0.01


def test_alike_weights_make_it_plain_agreement() -> None:
    base = [item(i, (1.0, 1.0 + 1e-9)) for i in range(8)]
    pruned = [item(i, (1.0, 2.0) if i % 4 else (2.0, 1.0)) for i in range(8)]
    found = measure_stability(base, pruned)
    assert found.stability == pytest.approx(found.agreement) == 0.75
    assert found.legacy == pytest.approx(0.75)


def test_two_wrong_answers_agree_only_if_they_are_the_same() -> None:
    base, pruned = [item(0, (3.0, 1.0, 2.0))], [item(0, (3.0, 2.0, 1.0))]
    assert measure_stability(base, pruned).stability == 1
    assert measure_stability(base, pruned, agreement="same-answer").stability == 0


def test_flips_add_up_to_the_items_and_accuracies() -> None:
    base, pruned = quiz(1), quiz(2)
    flips = measure_stability(base, pruned).flips
    assert flips.tp + flips.fn + flips.fp + flips.tn == len(base)
    assert (flips.tp + flips.fn) / len(base) == accuracy(base)["acc,none"]
    assert (flips.tp + flips.fp) / len(base) == accuracy(pruned)["acc,none"]


def test_other_items_are_refused() -> None:
    with pytest.raises(DataError, match="the right choice of item 3 is 1 in the base's log and 0"):
        measure_stability(BASE, [*PRUNED[:2], replace(PRUNED[2], gold=0)])


@pytest.mark.parametrize("loss", [400.0, 800.0])
def test_perplexities_too_large_for_a_number(loss: float) -> None:
    items = [item(0, (1.0, loss))]
    with pytest.raises(NumericalError, match="--score nll"):
        measure_stability(items, items, score="ppl")
    assert measure_stability(items, items).stability == 1


def test_accuracy_and_its_error() -> None:
    assert accuracy(BASE) == {"acc,none": 1 / 3, "acc_stderr,none": pytest.approx(math.sqrt(1 / 3 * 2 / 3 / 2))}
    assert accuracy(BASE[:1]) == {"acc,none": 1.0, "acc_stderr,none": None}
    assert item(0, (2.0, 1.0, 1.0), gold=1).answer == 1, "the first of equals"
