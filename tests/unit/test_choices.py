"""The built-in task: items are what they say, and a model's losses are those of transformers, however computed."""

from __future__ import annotations

import pytest
import torch
from kit.planted import streamed_view
from kit.tiny import FAMILY_NAMES, make_model, tokens
from torch.nn.functional import cross_entropy

from sned.data.tokens import Tokens
from sned.errors import ConfigError, DataError, NumericalError
from sned.evaluation.choices import Items, choice_nll, judge_choices, make_items
from sned.models import surgery
from sned.models.view import View

SIZES = {"context": 12, "continuation": 5}
TEXT = Tokens(torch.arange(400).view(4, 100), "numbers")
"""Every token occurs once, so that its place in the text can be told."""


@pytest.fixture(scope="module")
def items() -> Items:
    return make_items(tokens(6, 64), 6, **SIZES)


def test_the_true_continuation_follows_and_the_others_come_from_other_windows() -> None:
    made = make_items(TEXT, 20, **SIZES)
    places = set()
    for context, options, gold in zip(made.contexts, made.continuations, made.gold, strict=True):
        own = range(int(context[0]), int(context[0]) + 17)
        assert context.tolist() == list(own[:12])
        assert options[gold].tolist() == list(own[12:])
        for number, option in enumerate(options.tolist()):
            assert option == list(range(option[0], option[0] + 5)), "a run of the text"
            assert number == gold or not set(option) & set(own)
        places.add(gold)
    assert places == {0, 1, 2, 3}
    assert len({tuple(row) for option in made.continuations.tolist() for row in option}) > 60, "seldom the same twice"


def test_items_are_the_same_for_the_same_seed() -> None:
    first, again, other = (make_items(TEXT, 20, seed=seed, **SIZES) for seed in (1, 1, 2))
    assert first.names == again.names
    assert first.gold == again.gold
    assert torch.equal(first.continuations, again.continuations)
    assert not torch.equal(first.continuations, other.continuations)
    assert torch.equal(first.contexts, other.contexts)
    assert len({*first.names, *other.names}) == 40, "names tell items apart"
    assert make_items(TEXT, 8, seed=1, **SIZES).names == first.names[:8], "fewer items are the first ones"


def test_a_first_token_that_windows_share_begins_every_context() -> None:
    ids = torch.cat([torch.full((4, 1), 999), TEXT.ids[:, :99]], dim=1)
    made = make_items(Tokens(ids, "numbers"), 20, **SIZES)
    assert made.contexts.shape == (20, 12)
    assert (made.contexts[:, 0] == 999).all()
    assert not (made.continuations == 999).any()
    assert made.contexts[0, 1:].tolist() == list(range(11))


@pytest.mark.parametrize(
    ("count", "sizes", "words"),
    [
        (24, SIZES, "holds 20 items of 17 tokens, and 24 are needed"),
        (1, {"context": 80, "continuation": 21}, "holds 0 items of 101 tokens"),
        (5, {"context": 79, "continuation": 21}, "holds 4 items .*--task-items 4"),
    ],
)
def test_too_little_text_says_how_many_items_there_are(count: int, sizes: dict[str, int], words: str) -> None:
    with pytest.raises(DataError, match=f"(?s)numbers {words}"):
        make_items(TEXT, count, **sizes)


def test_one_item_has_no_others_to_choose_from() -> None:
    with pytest.raises(DataError, match=r"holds 1 item of 100 tokens, and 2"):
        make_items(Tokens(TEXT.ids[:1], "numbers"), 1, context=90, continuation=10)


def test_text_that_repeats_itself_is_refused() -> None:
    with pytest.raises(DataError, match="repeats itself"):
        make_items(Tokens(torch.arange(2).repeat(8, 50), "ticking"), 4, **SIZES)


@pytest.mark.parametrize("wrong", [{"count": 0}, {"context": 0}, {"continuation": 0}])
def test_nothing_asked_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        make_items(TEXT, **wrong)


def test_losses_are_what_transformers_says(items: Items) -> None:
    view = View(make_model("llama"))
    losses = choice_nll(view, items)
    for item in (0, 5):
        for choice in range(4):
            ids = torch.cat([items.contexts[item], items.continuations[item, choice]])
            with torch.no_grad():
                logits = view.model(ids[None]).logits[0]
            expected = cross_entropy(logits[11:-1], ids[12:], reduction="sum")
            assert float(losses[item, choice]) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("name", FAMILY_NAMES)
def test_a_kept_cache_changes_nothing(name: str, items: Items) -> None:
    view = View(make_model(name))
    whole, cached = choice_nll(view, items), choice_nll(view, items, cached=True)
    assert float((whole - cached).abs().max()) < 1e-4
    assert whole.argmin(1).tolist() == cached.argmin(1).tolist()


def test_a_kept_cache_changes_nothing_where_layers_lost_a_part(items: Items) -> None:
    view = View(make_model("llama"))
    surgery.drop_sublayer(view, 1, "attn")
    surgery.drop_sublayer(view, 2, "mlp")
    surgery.drop_layers(view, [3])
    assert float((choice_nll(view, items) - choice_nll(view, items, cached=True)).abs().max()) < 1e-4


def test_a_streamed_model_gives_the_same_to_the_bit(items: Items) -> None:
    streamed = streamed_view("gemma2")
    assert torch.equal(choice_nll(streamed, items), choice_nll(View(make_model("gemma2")), items))
    with pytest.raises(ConfigError, match="streamed"):
        choice_nll(streamed, items, cached=True)


def test_a_model_that_knows_the_text_is_always_right() -> None:
    """Whatever the context, this model expects the numbers in order; so it finds the true continuation."""
    view = View(make_model("llama"))
    head = view.model.get_output_embeddings()

    def count_on(_module: object, args: tuple, kwargs: dict) -> None:
        seen.append(kwargs["input_ids"] if "input_ids" in kwargs else args[0])

    seen: list[torch.Tensor] = []
    text = Tokens(torch.arange(3, 123).view(1, 120), "counting")
    made = make_items(text, 6, **SIZES)
    with torch.no_grad():
        view.model.register_forward_pre_hook(count_on, with_kwargs=True)
        head.forward = lambda states: 9.0 * torch.nn.functional.one_hot((seen[-1] + 1) % 128, 128).float()
    result = judge_choices(view, made)
    assert result.metrics == {"acc,none": 1.0, "acc_stderr,none": 0.0}
    assert [item.gold for item in result.items] == [item.answer for item in result.items] == list(made.gold)
    assert all(item.length == (5,) * 4 for item in result.items)
    assert [item.item for item in result.items] == made.names


def test_chance_is_a_quarter() -> None:
    result = judge_choices(View(make_model("llama")), make_items(tokens(40, 64), 120, **SIZES))
    share, error = result.metrics["acc,none"], result.metrics["acc_stderr,none"]
    assert share is not None
    assert error is not None
    assert abs(share - 0.25) < 4 * error


def test_an_item_that_breaks_is_named(items: Items) -> None:
    view = View(make_model("llama"))
    with torch.no_grad():
        view.model.get_output_embeddings().weight[7] = torch.inf
    for cached in (False, True):
        with pytest.raises(NumericalError, match="item 0"):
            choice_nll(view, items, cached=cached)
