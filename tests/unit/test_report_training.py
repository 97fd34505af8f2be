"""What a report says of training: how the losses went, in data, page, picture, card and terminal."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from kit import reports
from kit.tiny import make_model
from pydantic import ValidationError

from sned.jobs import compose
from sned.jobs.heal import NOT_HEALED
from sned.models.view import View
from sned.plans.ops import DropLayers
from sned.plans.plan import Base, Plan, Size, Stage
from sned.report import card, facts, html, numbers, text, trained, training_picture
from sned.report.schema import Report, Training

SCORES = {
    "loss": "kl",
    "tokens": 4096,
    "curve": [[0.0, 0.0, None, 0.45], [4.0, 2048.0, 0.4, 0.36], [8.0, 4096.0, 0.35, 0.31]],
    "best_step": 8,
    "ended": "done",
}
LORA = {"train": "lora", "last": None, "first_share": 1.0}
STAND_IN = {"layers": 1, "replacement": "layer"}
VAIN = "no step got below the 0.450 from before, so the weights are as they were"
LOW_RANK = "the matrices of the decoder layers, by low-rank updates"
KL = "the KL divergence of the predictions from those of the base, in nats per token"


def rows(*held_out: float | None, tokens: int = 1024) -> list[dict[str, Any]]:
    """A curve with a row every four steps; training loss is a little less than what is held out."""
    losses = [None if n == 0 or value is None else 0.9 * value for n, value in enumerate(held_out)]
    return [
        {"step": 4 * n, "tokens": tokens * n, "loss": loss, "held_out": value}
        for n, (loss, value) in enumerate(zip(losses, held_out, strict=True))
    ]


def run(*held_out: float | None, best: int | None = None, tokens: int = 1024, of: int = 0, **changes: Any) -> Training:
    """A training that saw each token of its text once, and whose last row is the best, unless told otherwise."""
    curve = rows(*held_out, tokens=tokens)
    last = curve[-1]
    ends = {"tokens": of or last["tokens"], "best_step": last["step"] if best is None else best, "ended": "done"}
    return Training.model_validate({"stage": "heal", "options": LORA, "loss": "kl", "curve": curve, **ends, **changes})


def report(*runs: Training, method: str = "heal", **blocks: Any) -> Report:
    """A model of four layers whose layer 2 went, and how it was trained."""
    training = [item.model_dump() for item in runs] or None
    return reports.report(**{"method": method, "stack": reports.stack(4, 2), "training": training} | blocks)


def words(shown: str) -> str:
    """Text with plain spaces, one between words."""
    return " ".join(shown.replace(numbers.THIN, " ").split())


def page_of(made: Report) -> str:
    return words(html.render(made))


def card_of(made: Report) -> str:
    return words(card.render_card(made, {}, name="x"))


# --- the data -----------------------------------------------------------------------------------------


def planned(*stages: tuple[str, dict[str, Any], dict[str, Any]]) -> dict[str, Any]:
    """The blocks of a plan that was made by hand, read from its JSON."""
    view = View(make_model("llama"))
    size = Size(params=9, body_params=8, flops_per_token=1, kv_bytes_per_token=1)
    made = [
        Stage(method=m, options=o, ops=(DropLayers(layers=(2,)),) * (n == 0), scores=s)
        for n, (m, o, s) in enumerate(stages)
    ]
    plan = Plan(base=Base.of(view, "tiny"), stages=tuple(made), dense=size, pruned=size)
    return compose.of_plan(Plan.model_validate_json(plan.model_dump_json()), view.geometry)


def test_every_stage_that_trained_is_taken_from_the_plan_in_order() -> None:
    nmse = SCORES | {"loss": "nmse", "best_step": 4, "ended": "no better"}
    blocks = planned(("streamline", STAND_IN, {"training": nmse}), ("x", {}, {}), ("heal", LORA, {"training": SCORES}))
    first, second = report(training=blocks["training"]).training or []
    assert (first.stage, first.loss, first.best_step, first.ended) == ("streamline", "nmse", 4, "no better")
    assert (second.stage, second.loss, second.tokens, second.options) == ("heal", "kl", 4096, LORA)
    assert second.curve[0].model_dump() == {"step": 0, "tokens": 0, "loss": None, "held_out": 0.45}
    assert second.curve[2].model_dump() == {"step": 8, "tokens": 4096, "loss": 0.35, "held_out": 0.31}


def test_a_plan_without_training_has_no_such_block() -> None:
    assert "training" not in planned(("uidl", {}, {}))


def test_the_block_is_written_and_read_again_and_may_be_missing() -> None:
    made = report(run(0.45, 0.31), cost={"seconds": {"train": 3.5}, "forward_layer_tokens": 1, "peak_rss_bytes": 1})
    assert Report.model_validate_json(made.to_json()) == made
    data = json.loads(made.to_json())
    assert data["training"][0]["curve"][1] == {"step": 4, "tokens": 1024, "loss": 0.9 * 0.31, "held_out": 0.31}
    del data["training"], data["cost"]["seconds"]["train"]
    assert Report.model_validate(data).training is None


@pytest.mark.parametrize(
    "change",
    [
        {"loss": "l2"},
        {"ended": "tired"},
        {"curve": []},
        {"best_step": 3},
        {"curve": [{"step": 0, "tokens": 0, "loss": None, "held_out": float("nan")}], "best_step": 0},
        {"curve": [{"step": 0.0, "tokens": 0, "loss": None, "held_out": 1.0}], "best_step": 0},
    ],
)
def test_schema_refuses(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        run(0.45, 0.31, **change)


# --- the sentence -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "outcome"),
    [
        (run(0.45, 0.36, 0.31), "the loss fell from 0.450 to 0.310 at step 8, the last."),
        (
            run(0.45, 0.31, 0.32, best=4),
            "the loss fell from 0.450 to 0.310 at step 4 of 8, and the weights of step 4 were kept.",
        ),
        (
            run(0.45, 0.31, 0.32, 0.33, 0.34, best=4, ended="no better"),
            "the loss fell from 0.450 to 0.310 at step 4 and no further, so training ended early, at step 16, and the "
            "weights of step 4 were kept.",
        ),
        (
            run(0.45, 0.31, None, best=4, ended="diverged"),
            "the loss fell from 0.450 to 0.310 at step 4; then it diverged, so training was stopped, and the "
            "weights of step 4 were kept.",
        ),
        (run(0.45, 0.46, best=0), f"{VAIN}."),
        (
            run(0.45, 0.5, 0.6, 0.7, best=0, ended="no better"),
            f"{VAIN}; training ended early, at step 12.",
        ),
        (
            run(0.45, of=1024, ended="diverged"),
            f"{VAIN}; training diverged and was stopped.",
        ),
        (
            run(None, of=1024, ended="diverged"),
            "no step got below that from before, so the weights are as they were; training diverged and was stopped.",
        ),
        (run(None, 0.31), "the loss fell from no finite loss to 0.310 at step 4, the last."),
        (run(0.45004, 0.45001), "the loss fell from 0.45004 to 0.45001 at step 4, the last."),
    ],
    ids=[
        "done",
        "best before",
        "early",
        "diverged",
        "vain",
        "vain, early",
        "one row",
        "nothing finite",
        "from inf",
        "alike",
    ],
)
def test_what_came_of_it_in_plain_words(found: Training, outcome: str) -> None:
    told = words(trained.sentence(found))
    assert told.endswith(f" tokens. On windows kept out of training, {outcome}")
    assert outcome in page_of(report(found))
    assert outcome in card_of(report(found))


@pytest.mark.parametrize(
    ("found", "asked"),
    [
        (run(0.4, 0.3), f"heal trained {LOW_RANK}, to lower {KL}, on 1 024 tokens."),
        (run(0.4, 0.3, options={"train": "full", "last": 1}), "trained all weights of the last layer, to"),
        (run(0.4, 0.3, options={"train": "full", "last": 4}), "trained all weights of the last 4 layers, to"),
        (run(0.4, 0.3, options={"train": "transform"}), "trained the linear maps that stand for removed layers, to"),
        (run(0.4, 0.3, stage="streamline", options=STAND_IN), "streamline trained what stands for the removed"),
        (run(0.4, 0.3, stage="mine", options={}), "mine trained weights, to"),
        (run(0.4, 0.3, tokens=2048), "on 2 048 tokens."),
        (run(0.4, 0.3, 0.2, of=1024), "on 1 024 tokens, seen 2 times."),
        (run(0.4, 0.3, 0.2, of=1536), "on 1 536 tokens, seen 1.33 times."),
        (run(0.4, 0.3, of=4096), "on 1 024 of 4 096 tokens."),
        (run(0.4, of=4096, ended="diverged"), "on a text of 4 096 tokens."),
        (run(0.4, 0.3, loss="ce"), "the cross-entropy of the next token, in nats per token"),
        (run(0.4, 0.3, loss="nmse"), "each token's state after the cut from the base's, relative to the"),
        (run(0.4, 0.3, loss="mse"), "the mean squared difference between the states after the cut"),
        (run(0.4, 0.3, loss="cosine"), "one minus the cosine between the states after the cut"),
        (run(0.4, 0.3, loss="states"), "each token's last state from the base's"),
    ],
)  # fmt: skip
def test_what_was_trained_on_what_in_plain_words(found: Training, asked: str) -> None:
    assert asked in words(trained.sentence(found))


def test_losses_from_before_the_change_was_made_smaller_are_called_so() -> None:
    options = LORA | {"first_share": 0.3}
    assert words(trained.sentence(run(0.4, 0.3, options=options))).endswith(
        "of the change, the first layer kept 30.0%, rising evenly to all of it in the last; the losses are from before "
        "that."
    )
    assert "of the change" not in trained.sentence(run(0.4, 0.5, best=0, options=options))
    assert "of the change" not in trained.sentence(run(0.4, 0.3))


# --- the page -----------------------------------------------------------------------------------------


def test_page_shows_every_row_and_which_is_the_best() -> None:
    page = page_of(report(run(0.45, 0.31, None, best=4, ended="diverged")))
    assert page.count("<h2>How it was trained</h2>") == 1
    for row in (
        '<tr><th scope="row">before</th><td>0</td><td></td><td>0.4500</td></tr>',
        '<tr class="chosen"><th scope="row">4, best</th><td>1 024</td><td>0.2790</td><td>0.3100</td></tr>',
        '<tr><th scope="row">8</th><td>2 048</td><td></td><td>not finite</td></tr>',
    ):
        assert row in page
    assert ">best: step 4</text>" in page


def test_two_stages_have_a_picture_each_under_their_names() -> None:
    first = run(0.3, 0.2, stage="streamline", options=STAND_IN, loss="nmse")
    page = html.render(report(first, run(0.45, 0.31)))
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    page = words(page)
    places = [
        page.index(mark) for mark in ("<h3>streamline</h3>", ">Error of states<", "<h3>heal</h3>", ">KL divergence ")
    ]
    assert places == sorted(places)
    assert "<h3>heal</h3>" not in page_of(report(run(0.45, 0.31)))


def test_page_without_a_curve_has_the_sentence_alone() -> None:
    page = page_of(report(run(0.45, of=1024, ended="diverged")))
    assert "<h2>How it was trained</h2>" in page
    assert "held out</th>" not in page
    assert "best:" not in page


def test_page_is_silent_where_nothing_was_trained() -> None:
    assert "trained" not in page_of(report(method="uidl"))


def test_page_says_how_long_training_took() -> None:
    cost = {"seconds": {"apply": 1.0, "train": 75.0}, "forward_layer_tokens": 1, "peak_rss_bytes": 1}
    assert "<dt>train</dt><dd>1 min 15 s</dd>" in page_of(report(run(0.4, 0.3), cost=cost))


# --- the picture --------------------------------------------------------------------------------------


def test_picture_names_the_marks_that_occur() -> None:
    plain = training_picture.training(run(0.45, 0.31))
    assert {">held out<", ">in training<", ">tokens trained on<"} <= set(re.findall(">[^<>]+<", plain))
    assert ">not finite<" not in plain
    assert ">not finite<" in training_picture.training(run(0.45, 0.31, None, best=4, ended="diverged"))
    silent = run(0.45, 0.31, curve=[row | {"loss": None} for row in rows(0.45, 0.31)])
    assert ">in training<" not in training_picture.training(silent)


def test_picture_marks_the_step_that_was_kept() -> None:
    drawn = [training_picture.training(run(0.45, 0.31, 0.32, best=step)) for step in (4, 8)]
    assert drawn[0] != drawn[1]
    assert [">best: step 4<" in picture for picture in drawn] == [True, False]
    assert ">best: before training<" in training_picture.training(run(0.45, 0.46, best=0))


@pytest.mark.parametrize(("worst", "log"), [(0.9, False), (40.0, True)])
def test_scale_is_logarithmic_only_if_the_losses_are_far_apart(worst: float, log: bool) -> None:
    drawn = training_picture.training(run(0.45, 0.31, worst, best=4, ended="diverged"))
    assert ("log scale" in drawn) is log


@pytest.mark.parametrize(
    "held_out",
    [
        (0.45, 0.31),
        (0.3, 0.3),
        (0.0, 0.0),
        (-1e-9, 2.0),
        (None, 0.3),
        (0.3, None),
        (1e-6, 1e12),
        [5.0 - 0.01 * n for n in range(200)],
    ],
    ids=["two", "equal", "zero", "below zero", "null first", "null last", "extreme", "many"],
)
@pytest.mark.parametrize("tokens", [1, 1024, 10**6, 10**10])
def test_any_curve_can_be_drawn(held_out: list[float | None], tokens: int) -> None:
    found = run(*held_out, tokens=tokens, best=0)
    assert training_picture.can_be_drawn(found)
    assert "Loss in training by heal" in training_picture.training(found)


def test_a_curve_without_a_finite_loss_is_not_drawn() -> None:
    assert not training_picture.can_be_drawn(run(None, None, best=0, ended="diverged"))
    assert "no step got below" in page_of(report(run(None, None, best=0, ended="diverged")))


# --- card and terminal --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("runs", "limit"),
    [
        ([], "The weights were not trained after pruning; training would recover some of the loss."),
        (
            [run(0.3, 0.2, stage="streamline", options=STAND_IN)],
            "Trained after pruning: what stands for the removed layers (`streamline`, 1 024 tokens). Longer",
        ),
        (
            [run(0.3, 0.2, stage="streamline", options=STAND_IN), run(0.4, 0.3)],
            "what stands for the removed layers (`streamline`, 1 024 tokens); the matrices of the decoder layers, by "
            "low-rank updates (`heal`, 1 024 tokens). Longer",
        ),
        (
            [run(0.4, 0.5, best=0)],
            "No weights were changed by training after pruning. Training by `heal` found no better weights, so it",
        ),
    ],
    ids=["none", "one", "two", "in vain"],
)
def test_card_says_which_weights_were_trained(runs: list[Training], limit: str) -> None:
    card = card_of(report(*runs, method="streamline"))
    assert limit in card
    assert ("were not trained" in card) is (not runs)


def test_card_of_a_healed_model_does_not_call_healing_pruning() -> None:
    calibration = {"source": "builtin:c4", "tokens": 2048, "seq_len": 64, "digest": "0a" * 32}
    healed = report(run(0.45, 0.31), calibration=calibration)
    card = card_of(healed)
    assert "`tiny`, pruned, then trained with `sned heal`." in card
    assert "Trained with 2 048 tokens of `builtin:c4`." in card
    assert "recipe" not in card
    assert "<h3>Training text</h3>" in page_of(healed)
    pruned = report(run(0.3, 0.2, stage="streamline"), method="streamline", calibration=calibration)
    assert "`tiny`, pruned with `streamline`." in card_of(pruned)
    assert "Calibrated on 2 048 tokens of `builtin:c4`." in card_of(pruned)
    assert "<h3>Calibration text</h3>" in page_of(pruned)


def test_a_healed_model_stands_beside_what_it_was() -> None:
    loss = {"perplexity": 30.0, "nll": 3.4}
    protocol = {"source": "builtin:wiki", "tokens": 2048, "seq_len": 64, "digest": "0a" * 32}
    quality = {"protocol": protocol, "dense": loss, "pruned": loss, "kl": 0.3, "top1_agreement": 0.7}
    before = {"method": NOT_HEALED, "perplexity": 41.0, "removed": 0.2, "note": "the same cut"}
    made = report(run(0.45, 0.31), quality=quality, baselines=[before])
    assert ">before training</text>" in page_of(made)
    assert "before training: the same cut" in page_of(made)
    assert "Perplexity beside it: before training 41.0" in words(text.plain(made))


@pytest.mark.parametrize(
    ("found", "line"),
    [
        (run(0.45, 0.31), "1 024 tokens, held-out kl 0.450 → 0.310"),
        (run(0.45, 0.31, 0.32, best=4, ended="no better"), "2 048 tokens, held-out kl 0.450 → 0.310, ended early"),
        (
            run(0.45, 0.31, None, best=4, ended="diverged"),
            "a text of 2 048 tokens, held-out kl 0.450 → 0.310, then diverged: the best weights were kept",
        ),
        (run(0.45, 0.5, best=0), "1 024 tokens, found nothing better: the weights are as they were"),
        (
            run(0.45, of=1024, ended="diverged"),
            "a text of 1 024 tokens, diverged, and found nothing better: the weights are as they were",
        ),
    ],
)
def test_terminal_has_a_line(found: Training, line: str) -> None:
    assert f"Trained: {line} " in words(text.plain(report(found), 200)) + " "


def test_terminal_names_the_stages_if_there_are_several() -> None:
    printed = words(text.plain(report(run(0.3, 0.2, stage="streamline", loss="nmse"), run(0.45, 0.31)), 200))
    assert "Trained by streamline: 1 024 tokens, held-out nmse 0.300 → 0.200" in printed
    assert "Trained by heal: 1 024 tokens, held-out kl 0.450 → 0.310" in printed
    assert "Trained" not in text.plain(report(method="uidl"))


def test_layers_with_the_same_remark_share_a_line() -> None:
    """A whole model that was trained would else fill the page with its layers."""
    stack = [{"layer": i, "state": "kept", "attention": "kept", "mlp": "kept", "note": "refitted"} for i in range(4)]
    stack[2]["note"] = "a map; refitted"
    told = [(facts.named_layers(layers), note) for layers, note in facts.notes(report(stack=stack))]
    assert told == [("Layers 0–1, 3", "refitted"), ("Layer 2", "a map; refitted")]
