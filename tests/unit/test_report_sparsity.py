"""What a report says of single weights that are zero: how many, where, why there, and what it does not bring."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sned.report import allocation_picture, card, facts, html, numbers, text, zeros, zeros_picture
from sned.report.schema import Report, Sparsity

ROLES = ("q", "k", "v", "o", "gate", "up", "down")
OPTIONS = {"sparsity": 0.6, "pattern": "row", "allocate": "uniform", "refine": None, "update": False}
OWL = {"evidence": "outliers, percent", "layers": {"0": 7.5, "1": 2.5, "2": 5.0, "3": 4.0}}
BLOCK = {"spread": 0.03, "tried": {"0.0": 0.5, "0.01": 0.4, "0.03": 0.3}, "given_up": 2}
NEUROAL = {"evidence": "activations, global", "block": BLOCK}
HESSIAN = "{}: its Hessian could not be factored, so only its diagonal was used"


def block(shares: list[float], roles: tuple[str, ...] = ROLES, **changes: Any) -> dict[str, Any]:
    """What is zero in layers of so many shares, a thousand weights to a matrix, of a model twice as large."""
    rows = [
        {"layer": layer, "role": role, "zeros": round(1000 * share), "of": 1000}
        for layer, share in enumerate(shares)
        for role in roles
    ]
    gone, of = sum(row["zeros"] for row in rows), sum(row["of"] for row in rows)
    return {
        "zeros": gone,
        "of": of,
        "ratio": gone / of,
        "ratio_of_all": gone / (2 * of),
        "target": gone / of,
        "zero_before": 0,
        "diagonal": [],
        "matrices": rows,
        "allocation": None,
        "packed_ratio": 0.4625,
    } | changes


def sparsity(*args: Any, **changes: Any) -> Sparsity:
    return Sparsity.model_validate(block(*args, **changes))


EVEN, UNEVEN = [0.6] * 4, [0.45, 0.75, 0.6, 0.6]


def report(removed: int | None = None, **blocks: Any) -> Report:
    """A model of four layers in which weights are zero; a layer may be gone as well."""
    pair = {"dense": 56_000, "pruned": 56_000}
    params = pair | {"removed": 0.0, "body_removed": 0.0}
    model = {"source": "tiny", "family": "llama", "fingerprint": "ab" * 32, "params": params}
    states = ["removed" if layer == removed else "kept" for layer in range(4)]
    data = {
        "schema": 1,
        "sned": "0.1.0",
        "command": "sned prune tiny",
        "method": "wanda",
        "options": OPTIONS,
        "seed": 0,
        "model": model | {"flops_per_token": pair, "kv_bytes_per_token": pair},
        "memory_to_run": pair,
        "bytes_on_disk": pair,
        "stack": [
            {"layer": n, "state": s, "attention": s, "mlp": s, "note": "" if s == "removed" else "60.0% are zero"}
            for n, s in enumerate(states)
        ],
        "sparsity": block(EVEN),
    }
    return Report.model_validate(data | blocks)


def plain(words: str) -> str:
    return " ".join(words.replace(numbers.THIN, " ").split())


def everywhere(made: Report) -> dict[str, str]:
    """What people read of a report: page, terminal and card."""
    return {
        "page": plain(html.render(made)).replace("&#39;", "'"),
        "terminal": plain(text.plain(made)),
        "card": plain(card.render_card(made, {}, name="out")),
    }


# --- in words -----------------------------------------------------------------------------------------


def test_outcome_in_plain_words() -> None:
    words = plain(facts.verdict(report()))
    assert words.startswith("60.0% of 28.0 k weights in the layers' matrices are zero (30.0% of all parameters). ")
    assert words.endswith("Pattern row (chosen within each row), uniform shares, other weights unchanged.")


def test_a_difference_in_speed_is_not_credited_to_zeros() -> None:
    pace = {"prefill_tokens_per_s": 100.0, "decode_tokens_per_s": 10.0}
    speed = {"dense": pace, "pruned": pace, "prefill_ratio": 1.07, "decode_ratio": 1.04}
    made = report(speed=speed)
    assert "faster" not in facts.verdict(made)
    assert "as fast" not in facts.verdict(made)
    assert all(row.side == "" for row in facts.rows(made) if row.section == "Speed")
    assert "Decoding speed" not in html.render(made)


def test_layers_that_went_are_told_first() -> None:
    words = plain(facts.verdict(report(removed=2)))
    assert words.startswith("1 of 4 layers removed (2). 60.0% of 28.0 k weights")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, ""),
        ({"layers": 3}, ""),
        ({"pattern": "matrix"}, "Pattern matrix (chosen within each matrix)"),
        (
            {"pattern": "global", "allocate": "uniform", "update": False},
            "Pattern global (chosen among all matrices), other weights unchanged",
        ),
        (
            {"pattern": "2:4", "allocate": "uniform", "update": True},
            "Pattern 2:4 (2 of every 4 weights kept), uniform shares, other weights updated to make up for it",
        ),
        (
            {"pattern": "4:8", "allocate": "owl:spread=0.1", "refine": "dsnot"},
            "Pattern 4:8 (4 of every 8 weights kept, on average over the layers), shares by owl:spread=0.1, "
            "choice refined by dsnot",
        ),
        ({"pattern": "row", "variant": True}, "Pattern row (each row loses the same share of its scores)"),
        ({"pattern": "spiral"}, "Pattern spiral"),
    ],
)
def test_choice_in_plain_words(options: dict[str, Any], words: str) -> None:
    assert zeros.choice(options) == words


def test_page_terminal_and_card_say_that_zeros_bring_nothing_by_themselves() -> None:
    for where, said in everywhere(report()).items():
        assert "neither smaller in memory nor faster on a CPU" in said, where
        assert "only for the pattern 2:4" in said, where
        assert "0.463 times the bytes of these matrices" in said, where
    whole = report(sparsity=None, options={})
    assert not any("faster on a CPU" in said or "set to zero" in said for said in everywhere(whole).values())


@pytest.mark.parametrize(("allocate", "here"), [("uniform", True), ("owl", False)])
def test_a_pattern_that_gpus_know_is_called_so_only_where_every_layer_has_it(allocate: str, here: bool) -> None:
    made = report(options=OPTIONS | {"pattern": "2:4", "allocate": allocate})
    assert ("for the pattern 2:4, as here" in everywhere(made)["card"]) == here


def test_table_counts_zeros_and_nothing_else_becomes_less() -> None:
    rows = {row.label: row for row in facts.rows(report())}
    assert rows["Zeros in the layers' matrices"].pruned == "60.0%"
    assert rows["Zeros among all parameters"].pruned == "30.0%"
    assert rows["… layers' matrices, if packed as bit masks"].pruned == "×0.463"
    assert {row.change for row in rows.values()} == {"", "same"}
    assert {row.side for row in rows.values()} == {""}


def test_layers_that_only_have_zeros_are_not_listed() -> None:
    for where, said in everywhere(report()).items():
        assert "60.0% are zero" not in said, where
    folded = [{"layer": 0, "state": "folded", "attention": "kept", "mlp": "kept", "note": "a map; 60.0% are zero"}]
    assert facts.notes(report(stack=folded)) == [([0], "a map; 60.0% are zero")]


def test_a_long_plan_is_cut_short_on_the_page() -> None:
    ops = [f"set layer {n}" for n in range(9)]
    assert facts.planned("; ".join(ops[:8])) == "; ".join(ops[:8])
    assert facts.planned("; ".join(ops)).endswith("set layer 3; and 5 more")


# --- warnings -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("before", "told"), [(0, False), (28, False), (29, True)])
def test_zeros_from_before_are_told_where_they_are_not_few(before: int, told: bool) -> None:
    made = report(sparsity=block(EVEN, zero_before=before))
    for where, said in everywhere(made).items():
        assert ("were zero before this; they count towards the share" in said) == told, where


def test_matrices_without_a_hessian_are_named_once() -> None:
    names = ["layers.1.attn.q", "layers.2.mlp.up"]
    made = report(sparsity=block(EVEN, diagonal=names), warnings=["odd text", *map(HESSIAN.format, names)])
    for where, said in everywhere(made).items():
        assert "Hessian of 2 matrices could not be factored" in said, where
        assert "its diagonal was used: layers.1.attn.q, layers.2.mlp.up." in said, where
        assert said.count("layers.1.attn.q") == 1, where
        assert "odd text" in said, where


def test_of_many_matrices_only_some_are_named() -> None:
    names = [f"layers.{n}.attn.q" for n in range(30)]
    (line,) = zeros.warnings(report(sparsity=block(EVEN, diagonal=names)))
    assert line.endswith("layers.11.attn.q and 18 more, all in report.json.")


def test_another_share_than_was_asked_for_is_told() -> None:
    assert zeros.warnings(report()) == []
    (line,) = zeros.warnings(report(sparsity=block(EVEN, target=0.5)))
    assert line.startswith("60.0% of the weights in the layers' matrices are zero, where 50.0% were asked for")


# --- the page -----------------------------------------------------------------------------------------


def test_page_shows_zeros_in_place_of_a_stack_that_is_whole() -> None:
    page = everywhere(report())["page"]
    assert "<h2>What was set to zero</h2>" in page
    assert "What was removed" not in page
    both = everywhere(report(removed=2))["page"]
    assert both.index("<h2>What was removed</h2>") < both.index("<h2>What was set to zero</h2>")


def test_equal_shares_are_a_sentence_and_others_a_picture() -> None:
    page = everywhere(report())["page"]
    assert "All 28 matrices have the same share of zeros: 60.0% each." in page
    assert "Share of zeros, %" not in page
    page = everywhere(report(sparsity=block(UNEVEN)))["page"]
    assert "the same share of zeros" not in page
    assert page.count(">Share of zeros, %<") == 2  # for a desk, and for a telephone


def test_page_shows_what_layers_were_judged_by() -> None:
    made = report(options=OPTIONS | {"allocate": "owl:spread=0.1"}, sparsity=block(UNEVEN, allocation=OWL))
    page = everywhere(made)["page"]
    assert "<h3>What owl went by</h3>" in page
    assert "From 2.50 in layer 1, where 75.0% are zero, to 7.50 in layer 0, where 45.0% are zero." in page
    assert ">Outliers, percent<" in page


def test_page_shows_the_spreads_that_were_tried() -> None:
    rows = {"spread": 0.0, "tried": {"0.0": 0.3}, "given_up": 0}
    made = report(
        options=OPTIONS | {"allocate": "neuroal:step=both"},
        sparsity=block(UNEVEN, allocation=NEUROAL | {"row": rows}),
    )
    page = everywhere(made)["page"]
    assert "Of the 5 spreads tried for the shares of layers, ±3 percentage points" in page
    assert "2 were given up part way" in page
    assert "Of the one spread tried for the shares of rows of a matrix, ±0 percentage points" in page
    assert ">chosen: ±3%<" in page


@pytest.mark.parametrize(
    "allocation",
    [
        None,
        {},
        {"evidence": 3, "layers": {"first": 1.0, "1": "much"}, "matrices": {"q": 1.0}, "block": 7},
        {"block": {"spread": None}, "row": {"spread": 0.1, "tried": {}, "given_up": 3}},
    ],
)
def test_an_allocation_that_is_not_understood_is_not_drawn(allocation: dict[str, Any] | None) -> None:
    found = sparsity(UNEVEN, allocation=allocation)
    assert allocation_picture.evidence(found) is None
    assert allocation_picture.tries(found) == []
    assert "went by" not in html.render(report(sparsity=block(UNEVEN, allocation=allocation)))


def test_pages_quote_what_an_allocator_says_without_obeying_it() -> None:
    hostile = {"evidence": "<script>x</script>", "layers": {"0": 1.0, "1": 2.0}}
    made = report(
        options=OPTIONS | {"allocate": "<script>y</script>"},
        sparsity=block(UNEVEN, allocation=hostile, diagonal=["<script>"]),
    )
    assert "<script" not in html.render(made).lower()


# --- pictures -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("upright", [False, True])
@pytest.mark.parametrize("depth", [1, 2, 30, 100])
def test_a_heat_map_of_any_depth_can_be_drawn(depth: int, upright: bool) -> None:
    drawn = zeros_picture.heat(sparsity([0.3 + 0.4 * n / depth for n in range(depth)]), depth, upright=upright)
    assert f"the matrices of {depth} layers" in drawn
    assert all(f">{role}<" in drawn for role in ROLES)
    assert ">30.0%<" in drawn
    assert "gone" not in drawn


def test_heat_map_has_rows_only_for_roles_that_occur_and_crosses_what_is_gone() -> None:
    drawn = zeros_picture.heat(sparsity(UNEVEN, roles=("q", "up", "down")), 6)
    assert ">up<" in drawn
    assert ">gate<" not in drawn
    assert "×: gone" in drawn


def test_heat_map_writes_shares_where_there_is_room() -> None:
    assert ">75.0<" in zeros_picture.heat(sparsity(UNEVEN), 4)
    assert ">75.0<" not in zeros_picture.heat(sparsity([*UNEVEN] * 20), 80)


def test_layers_of_matrices_are_their_means() -> None:
    known = {"layers.0.attn.q": 2.0, "layers.0.mlp.up": 4.0, "layers.12.attn.q": 5.0}
    found = allocation_picture.evidence(sparsity(UNEVEN, allocation={"evidence": "tail exponent", "matrices": known}))
    assert found is not None
    assert found.layers == {0: 3.0, 12: 5.0}
    assert found.matrices == [(0, 2.0), (0, 4.0), (12, 5.0)]
    assert "dots: matrices" in allocation_picture.line(found, 13)


@pytest.mark.parametrize("depth", [1, 4, 100])
@pytest.mark.parametrize("narrow", [False, True])
def test_a_line_over_any_number_of_layers_can_be_drawn(depth: int, narrow: bool) -> None:
    known = allocation_picture.Evidence("outliers", {n: 1.0 + n % 7 for n in range(depth)}, [])
    assert "decided by: outliers" in allocation_picture.line(known, depth, narrow=narrow)


def test_round_numbers_along_a_line_keep_their_noughts() -> None:
    drawn = allocation_picture.line(allocation_picture.Evidence("outliers", {0: 0.0, 1: 300.0}, []), 2)
    assert all(f">{value}<" in drawn for value in (100, 200, 300))


def test_spreads_are_read_in_order_and_the_chosen_one_is_marked() -> None:
    tried = BLOCK | {"tried": {"0.1": 0.9, "0.0": 0.5, "0.03": 0.3}}
    (made,) = allocation_picture.tries(sparsity(EVEN, allocation=NEUROAL | {"block": tried}))
    assert list(made.distance) == [0.0, 0.03, 0.1]
    drawn = [allocation_picture.distances(allocation_picture.Tries("layers", at, made.distance, 0)) for at in (0, 0.1)]
    assert ">chosen: ±0%<" in drawn[0]
    assert ">chosen: ±10%<" in drawn[1]


def test_same_report_gives_the_same_page() -> None:
    made = report(sparsity=block(UNEVEN, allocation=OWL | NEUROAL))
    again = Report.model_validate(json.loads(made.to_json()))
    assert html.render(made) == html.render(again)
