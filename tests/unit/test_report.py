"""What a report promises: strict data, a safe self-contained page, a card the Hub can read, a table that fits."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from pydantic import ValidationError

from sned.errors import CheckpointError
from sned.report import card, facts, html, numbers, plots, schema, search_picture, text
from sned.report.schema import Report, Search

if TYPE_CHECKING:
    from pathlib import Path

OPTIONAL = (
    "plan",
    "calibration",
    "quality",
    "speed",
    "cost",
    "verify",
    "environment",
    "bytes_on_disk",
    "memory_to_run",
    "importance",
    "probe",
    "fit",
    "search",
)


def as_text(source: str) -> dict[str, Any]:
    return {"source": source, "tokens": 65_536, "seq_len": 1024, "digest": "0a1b" * 16}


def full(depth: int = 8, start: int = 3, end: int = 5) -> dict[str, Any]:
    """A report with everything measured: layers [start, end) of `depth` went, a map was folded before them."""
    before, lost = 1000 * depth, 1000 * (end - start)
    stack = []
    for layer in range(depth):
        out = start <= layer < end
        state = "removed" if out else "folded" if layer == start - 1 else "kept"
        part = "removed" if out else "kept"
        stack.append({"layer": layer, "state": state, "attention": part, "mlp": part, "note": ""})
    scores = [0.01 + 0.3 * math.exp(-layer) for layer in range(depth)]
    distance = [[None, *(0.05 * n + 0.01 * s for n in range(1, depth - s + 1))] for s in range(depth)]
    return {
        "schema": 1,
        "sned": "0.1.0",
        "command": "sned prune demo -m replaceme --layers 2 -o out",
        "method": "replaceme",
        "options": {"layers": 2, "span": None, "ridge": 0.5},
        "seed": 0,
        "model": {
            "source": "someone/tiny-model",
            "family": "llama",
            "fingerprint": "ab" * 32,
            "params": {
                "dense": before + 500,
                "pruned": before + 500 - lost,
                "removed": lost / (before + 500),
                "body_removed": lost / before,
                "body_dense": before,
                "body_pruned": before - lost,
            },
            "flops_per_token": {"dense": 2 * before, "pruned": 2 * (before - lost)},
            "kv_bytes_per_token": {"dense": 256 * depth, "pruned": 256 * (depth - end + start)},
        },
        "plan": {"digest": "cd" * 32, "ops": 2, "summary": "fold, drop"},
        "calibration": as_text("builtin:c4"),
        "quality": {
            "protocol": as_text("builtin:wiki"),
            "dense": {"perplexity": 20.0, "nll": math.log(20)},
            "pruned": {"perplexity": 30.0, "nll": math.log(30)},
            "kl": 0.31,
            "top1_agreement": 0.72,
        },
        "speed": {
            "dense": {"prefill_tokens_per_s": 3000.0, "decode_tokens_per_s": 50.0},
            "pruned": {"prefill_tokens_per_s": 3900.0, "decode_tokens_per_s": 60.0},
            "prefill_ratio": 1.3,
            "decode_ratio": 1.2,
        },
        "cost": {
            "seconds": {"load": 1.0, "plan": 2.0},
            "forward_layer_tokens": 524_288,
            "peak_rss_bytes": 10**9,
        },
        "verify": {"max_logit_error": 3e-6, "cached_decode_error": 4e-6, "stock_class": True},
        "environment": {"torch": "2", "transformers": "5", "python": "3.11", "threads": 2, "cpu": "x86"},
        "memory_to_run": {"dense": 3 * before, "pruned": 3 * (before - lost)},
        "bytes_on_disk": {"dense": 2 * before, "pruned": 2 * (before - lost)},
        "stack": stack,
        "chosen": [{"start": start, "end": end, "distance": 0.13, "kind": "folded"}],
        "importance": {"layers": scores, "attention": scores, "mlp": scores, "distance": distance},
        "probe": [{"start": start, "end": end, "perplexity": 31.0}, {"start": 1, "end": 3, "perplexity": None}],
        "fit": [
            {
                "layer": start - 1,
                "tokens": 65_536,
                "rank": 64,
                "condition": 1e6,
                "ridge": 0.0,
                "relative_error": 0.4,
            }
        ],
        "search": {
            "objective": "perplexity",
            "mode": "racing",
            "steps": [
                {"cut": cut, "loss": 3.1 + n, "increase": 0.1 + n, "tokens": 960, "measured": 4, "candidates": 16 - n}
                | {"params": before + 500 - 100 * n}
                for n, cut in enumerate(("attn.6", "mlp.5+attn.6", "mlp.2:1024"))
            ],
            "ranking": [{"cut": "attn.6", "loss": 3.1}, {"cut": "mlp.0", "loss": None}],
        },
        "baselines": [
            {"method": "uidl", "perplexity": 41.0, "layers": "3-4"},
            {"method": "random (same shape)", "perplexity": 99.0, "removed": 0.4, "note": "drawn by chance"},
        ],
        "samples": [{"prompt": "Once", "dense": " upon a time", "pruned": " upon"}],
        "warnings": ["too few tokens"],
    }


def bare() -> dict[str, Any]:
    data = full() | dict.fromkeys(OPTIONAL)
    return data | {name: [] for name in ("stack", "chosen", "baselines", "samples", "warnings")}


def put(data: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    *parents, last = path.split(".")
    target: Any = data
    for name in parents:
        target = target[int(name) if isinstance(target, list) else name]
    target[int(last) if isinstance(target, list) else last] = value
    return data


class Page(HTMLParser):
    """Collects what a browser would see: tags, addresses, headings, ids."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.headings: list[str] = []
        self._heading = False
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self._heading = tag == "h2"
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "srcset", "poster", "action"):
                self.addresses.append(value or "")
            if name == "id":
                self.ids.append(value or "")

    def handle_data(self, data: str) -> None:
        if self._heading and data.strip():
            self.headings.append(data.strip())
            self._heading = False


# --- the data -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("surprise", 1),
        ("model.params.surprise", 1),
        ("quality.pruned.perplexity", math.nan),
        ("quality.kl", math.inf),
        ("importance.distance.0.1", math.nan),
        ("options.ridge", math.nan),
        ("seed", "0"),
        ("schema", 2),
        ("model.params.dense", -1),
        ("stack.0.layer", 1),
        ("importance.layers", [0.1]),
        ("chosen.0.end", 99),
        ("chosen.0.end", 3),
    ],
)
def test_schema_refuses(path: str, value: Any) -> None:
    with pytest.raises(ValidationError):
        Report.model_validate(put(full(), path, value))


@pytest.mark.parametrize("data", [full(), bare()], ids=["full", "bare"])
def test_round_trip(tmp_path: Path, data: dict[str, Any]) -> None:
    report = Report.model_validate(data)
    path = tmp_path / "report.json"
    schema.dump(report, path)
    assert schema.load(path) == report
    content = path.read_text(encoding="utf-8")
    assert content.endswith("}\n")
    assert list(json.loads(content))[:6] == ["schema", "sned", "command", "method", "options", "seed"]
    assert [item.name for item in tmp_path.iterdir()] == ["report.json"]


def test_contract_keys_are_all_written() -> None:
    written = json.loads(Report.model_validate(full()).to_json())
    assert set(written) >= {"model", "plan", "calibration", "quality", "speed", "cost", "verify", "environment"}
    assert set(written["model"]["params"]) >= {"dense", "pruned", "removed", "body_removed"}
    phases = {"load", "calibrate", "plan", "apply", "train", "save", "verify", "evaluate"}
    assert set(written["cost"]["seconds"]) == phases


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "Cannot read"),
        (b'{"schema": 1,', "line 1"),
        (b"\xff\xfe{}", "not UTF-8"),
        (b'{"schema": 7}', "upgrade sned"),
        (b"[]", "corrupt"),
        (json.dumps(full() | {"seed": None}).encode(), "seed"),
        (json.dumps(full()).replace("0.72", "NaN").encode(), "top1_agreement"),
    ],
)
def test_load_names_the_file_and_the_fault(tmp_path: Path, content: bytes | None, says: str) -> None:
    path = tmp_path / "report.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        schema.load(path)
    assert str(path) in str(caught.value)
    assert says in str(caught.value)


def test_dump_says_when_it_cannot_write(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "report.json"
    with pytest.raises(CheckpointError, match=re.escape(str(path))):
        schema.dump(Report.model_validate(full()), path)


# --- the page -----------------------------------------------------------------------------------------


def test_page_escapes_everything_it_quotes() -> None:
    data = full()
    evil = "<script>alert('$x$')</script>"
    for path in ("samples.0.prompt", "samples.0.dense", "command", "method", "warnings.0", "model.source"):
        put(data, path, evil)
    put(data, "baselines.0.method", evil)
    put(data, "stack.0.note", evil)
    put(data, "options.span", evil)
    page = html.render(Report.model_validate(data))
    assert "<script" not in page.lower()
    assert "&lt;script&gt;" in page
    assert "script" not in Page(page).tags


def test_page_needs_nothing_else() -> None:
    source = html.render(Report.model_validate(full()))
    page = Page(source)
    assert not page.tags & {"script", "link", "iframe", "object", "embed"}
    assert all(address.startswith(("#", "data:")) for address in page.addresses)
    assert not re.search(r"url\((?!#)|@import", source)
    assert {"svg", "table", "style"} <= page.tags
    assert len(page.ids) == len(set(page.ids))
    references = {address[1:] for address in page.addresses if address.startswith("#")}
    assert references <= set(page.ids)


def test_same_report_gives_the_same_page() -> None:
    report = Report.model_validate(full())
    assert html.render(report) == html.render(Report.model_validate_json(report.to_json()))


def test_page_leaves_out_what_was_not_measured() -> None:
    assert Page(html.render(Report.model_validate(bare()))).headings == ["Before and after", "Do it again"]
    everything = Page(html.render(Report.model_validate(full()))).headings
    assert everything[0] == "Read this first"
    assert len(everything) == 9


@pytest.mark.parametrize("name", OPTIONAL)
def test_any_block_may_be_missing(name: str) -> None:
    report = Report.model_validate(full() | {name: None})
    assert "Before and after" in html.render(report)
    assert text.plain(report)
    assert card.render_card(report, {}, name="x")


def test_page_of_a_run_without_base_or_with_extreme_numbers() -> None:
    data = full()
    data["quality"] |= {"dense": None, "kl": None, "top1_agreement": None}
    put(data, "importance.layers", [0.0] * 8)
    put(data, "importance.attention", [-1e-9, *[0.1] * 7])
    put(data, "importance.distance", [[0.0, 0.1]] * 8)
    put(data, "baselines.0.perplexity", 3.7e8)
    put(data, "baselines.0.method", "名前のとても長い方法の名前です")
    put(data, "fit.0.condition", None)
    page = html.render(Report.model_validate(data))
    assert "3.70×10⁸" in page
    assert "singular" in page


@pytest.mark.parametrize("depth", [1, 12, 126])
def test_stack_shows_every_layer(depth: int) -> None:
    layers = [{"layer": n, "state": "kept", "attention": "kept", "mlp": "trimmed"} for n in range(depth)]
    report = Report.model_validate(bare() | {"stack": layers})
    shown = re.findall(r">(\d+)</text>", plots.stack(report.stack))
    assert sorted(map(int, shown)) == list(range(depth))


# --- words, card, terminal ----------------------------------------------------------------------------


def test_verdict_in_plain_words() -> None:
    assert facts.verdict(Report.model_validate(full())) == (
        "2 of 8 layers removed (3–4): 23.5% of all parameters, 25.0% of those in decoder layers. "
        "Perplexity 20.0 → 30.0 (×1.50). Decodes 1.20 times as fast."
    )
    data = full()
    put(data, "stack.6.attention", "removed")
    put(data, "stack.7.state", "replaced")
    assert facts.removal(Report.model_validate(data)) == (
        "3 attentions (3–4, 6) and 2 MLPs (3–4) removed, 5 of 16 blocks, both of layers 3–4, "
        "1 of 8 layers replaced by a simple map (7)"
    )
    assert facts.verdict(Report.model_validate(bare())).startswith("No layer removed")


def test_blocks_and_widths_in_plain_words() -> None:
    stack = [{"layer": n, "state": "kept", "attention": "kept", "mlp": "kept"} for n in range(4)]
    stack[0]["attention"] = stack[2]["mlp"] = stack[3]["attention"] = "removed"
    report = Report.model_validate(bare() | {"stack": stack})
    assert facts.removal(report) == "2 attentions (0, 3) and 1 MLP (2) removed, 3 of 8 blocks"
    rows = {row.label: (row.dense, row.pruned) for row in facts.rows(report)}
    assert (rows["Attentions"], rows["MLPs"]) == (("4", "2"), ("4", "3"))
    assert "Decoder layers" not in rows
    stack[1] |= {"mlp": "trimmed", "mlp_left": 0.25}
    assert facts.removal(Report.model_validate(bare() | {"stack": stack})).endswith("8 blocks, 1 MLP narrowed (1)")


def test_what_a_baseline_removed_is_told_where_it_differs() -> None:
    report = Report.model_validate(full())
    same, chance = report.baselines
    assert facts.compared(report, same) == ""
    assert facts.compared(report, chance) == "drawn by chance, removed 40.0% of the parameters"
    for shown in (text.plain(report, 200), card.render_card(report, {}, name="x"), html.render(report)):
        assert "drawn by chance, removed 40.0%" in shown


@pytest.mark.parametrize(
    ("cut", "words"),
    [("attn.7", "attn 7"), ("mlp.3+attn.4", "MLP 3 + attn 4"), ("mlp.3:1024", "MLP 3 → 1024"), ("other", "other")],
)
def test_steps_in_plain_words(cut: str, words: str) -> None:
    assert facts.spell_cut(cut) == words


def test_page_shows_every_step_of_a_search() -> None:
    page = html.render(Report.model_validate(full()))
    for words in ("1. attn 6", "2. MLP 5 + attn 6", "3. MLP 2 → 1024", "4 of 16", "+2.10", "not finite"):
        assert words in page
    drawn = search_picture.search(Report.model_validate(full()).search, 8500)  # type: ignore[arg-type]
    for words in ("attn 6", "MLP 5 + attn 6", "MLP 2 → 1024", "log scale"):
        assert words in drawn


@pytest.mark.parametrize("kind", ["perplexity", "kl"])
@pytest.mark.parametrize("n", [1, 40, 300])
def test_a_search_of_any_length_can_be_drawn(kind: str, n: int) -> None:
    step = {"cut": "mlp.3:1024", "increase": 0.0, "tokens": 9, "measured": 1, "candidates": 1}
    steps = [step | {"loss": 2.0 + 0.01 * k, "params": 1000 - k - 1} for k in range(n)]
    found = Search.model_validate({"objective": kind, "mode": "exact", "steps": steps})
    assert "Loss after each of" in search_picture.search(found, 1000)


def test_names_of_steps_keep_apart() -> None:
    wanted = [1.0, 2.0, 3.0, 50.0, 99.0, 100.0]
    places = search_picture.spread(wanted, 10, 100)
    assert places == [1, 11, 21, 50, 90, 100]
    assert search_picture.spread([5.0, 5.0], 10, 12) == [2, 12]


def test_stack_shows_how_much_is_left() -> None:
    def drawn(left: float) -> str:
        layer = {"layer": 0, "state": "kept", "attention": "kept", "mlp": "trimmed", "mlp_left": left}
        return plots.stack(Report.model_validate(bare() | {"stack": [layer]}).stack)

    assert drawn(0.25) != drawn(0.75)
    data = bare() | {"stack": [{"layer": 0, "state": "kept", "attention": "kept", "mlp": "trimmed", "mlp_left": 0.5}]}
    assert "narrowed to the filled part" in html.render(Report.model_validate(data))


def test_card_front_matter_is_yaml_the_hub_reads() -> None:
    base = "---\nlicense: apache-2.0\nlanguage:\n- en\nbase_model: someone/older\n---\n# Base\n"
    inherited = card.front_matter(base)
    report = Report.model_validate(full())
    written = card.render_card(report, inherited, name="tiny-6", base_model="someone/tiny")
    header = card.front_matter(written)
    assert header == yaml.safe_load(written.split("---\n")[1])
    assert header == {
        "base_model": "someone/tiny",
        "license": "apache-2.0",
        "language": ["en"],
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["sned", "pruned", "replaceme"],
    }
    assert report.command in written
    assert "trust_remote_code" not in written
    assert "## Limits" in written


def test_card_asks_for_trust_only_where_custom_code_is_needed() -> None:
    report = Report.model_validate(put(full(), "verify.stock_class", False))
    written = card.render_card(report, {}, name="x")
    assert written.count(", trust_remote_code=True)") >= 2  # the model, and its tokenizer
    assert "license" not in card.front_matter(written)
    assert "base_model" not in card.front_matter(written)


@pytest.mark.parametrize("readme", ["", "# Title", "---\nlicense: mit\n", "---\n: [\n---\n", "---\n- a\n---\n"])
def test_front_matter_of_an_odd_card_is_empty(readme: str) -> None:
    assert card.front_matter(readme) == {}


@pytest.mark.parametrize("width", [60, 100])
def test_terminal_summary_fits_and_is_literal(width: int) -> None:
    report = Report.model_validate(put(full(), "warnings.0", "[red]not markup[/red]"))
    printed = text.plain(report, width)
    assert max(map(len, printed.splitlines())) <= width
    assert "[red]not markup[/red]" in printed
    assert "\x1b" not in printed
    for label in ("Parameters", "Perplexity", "Decode, tokens/s"):
        assert label in printed


def test_numbers_for_people() -> None:
    spelled = [
        numbers.grouped(134_515_008),
        numbers.count(134_515_008),
        numbers.count(70_553_706_496),
        numbers.scaled(23_040, "B"),
        numbers.scaled(576, "B"),
        numbers.scaled(999_999, "B"),
        numbers.decimal(19.8312),
        numbers.decimal(3.7e8),
        numbers.decimal(-0.000012, 2),
        numbers.decimal(0.0),
        numbers.percent(-0.196),
        numbers.change(100, 80),
        numbers.change(5, 5),
        numbers.duration(0.05),
        numbers.duration(59.7),
        numbers.duration(200),
        numbers.duration(7500),
    ]
    assert [item.replace(numbers.THIN, " ") for item in spelled] == [
        "134 515 008",
        "134.5 M",
        "70.55 B",
        "23.0 kB",
        "576 B",
        "1.00 MB",
        "19.8",
        "3.70×10⁸",
        "−1.2×10⁻⁵",
        "0",
        "−19.6%",
        "−20.0%",
        "same",
        "50 ms",
        "1 min 00 s",
        "3 min 20 s",
        "2 h 05 min",
    ]
