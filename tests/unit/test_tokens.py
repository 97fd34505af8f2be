"""Tokens: what is packed, in which order, and how much of it."""

from __future__ import annotations

import json
import logging
import sys
from itertools import count
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from sned.data.packing import begins_with_bos, tokenizer_digest
from sned.data.tokens import Tokens
from sned.errors import ConfigError, DataError

if TYPE_CHECKING:
    from pathlib import Path

    from sned.data.sources import Role

TEXTS = [f"Document {i} tells of {i * i} apples, {'pears and ' * (i % 7)}plums — né en {1900 + i}." for i in range(90)]


def make_tokenizer(*, bos: bool, vocab_size: int = 300) -> PreTrainedTokenizerFast:
    """A byte-level BPE, so that decoding gives back every text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", model_max_length=16)


@pytest.fixture(scope="module")
def plain() -> PreTrainedTokenizerFast:
    return make_tokenizer(bos=False)


@pytest.fixture(scope="module")
def with_bos() -> PreTrainedTokenizerFast:
    return make_tokenizer(bos=True)


@pytest.fixture
def corpus(tmp_path: Path) -> str:
    return write(tmp_path / "corpus.jsonl", TEXTS)


def write(path: Path, texts: list[str]) -> str:
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts), encoding="utf-8")
    return f"file:{path}"


def evaluation(source: str, tokenizer: PreTrainedTokenizerFast, **sizes: int) -> Tokens:
    return Tokens.from_source(source, tokenizer, role="evaluation", **sizes)


def of(ids: object, source: str = "here") -> Tokens:
    return Tokens(torch.as_tensor(ids), source)


class TestPacking:
    def test_nothing_is_lost_or_padded(self, corpus: str, plain: PreTrainedTokenizerFast) -> None:
        tokens = evaluation(corpus, plain, tokens=2_000, seq_len=64)
        assert (len(tokens), tokens.length, tokens.n_tokens) == (31, 64, 1_984)
        assert tokens.ids.dtype == torch.int64
        text = plain.decode(tokens.ids.flatten())
        assert "\n\n".join(TEXTS).startswith(text.rstrip("\ufffd"))

    def test_every_window_begins_with_one_bos(self, corpus: str, with_bos: PreTrainedTokenizerFast) -> None:
        assert begins_with_bos(with_bos)
        tokens = evaluation(corpus, with_bos, tokens=2_000, seq_len=64)
        assert (tokens.ids[:, 0] == with_bos.bos_token_id).all()
        assert not torch.isin(tokens.ids[:, 1:], torch.tensor(with_bos.all_special_ids)).any()
        assert "\n\n".join(TEXTS).startswith(with_bos.decode(tokens.ids[:, 1:].flatten()).rstrip("\ufffd"))

    def test_a_tokenizer_with_a_bos_it_does_not_use(self, corpus: str, plain: PreTrainedTokenizerFast) -> None:
        assert plain.bos_token_id is not None
        assert not begins_with_bos(plain)
        assert not (evaluation(corpus, plain, tokens=512, seq_len=64).ids == plain.bos_token_id).any()

    @pytest.mark.parametrize("bos", [False, True])
    def test_text_that_spells_a_special_token_stays_text(self, tmp_path: Path, *, bos: bool) -> None:
        tokenizer = make_tokenizer(bos=bos)
        tokens = evaluation(write(tmp_path / "a.jsonl", ["a <s>struck</s> word " * 9]), tokenizer, tokens=40)
        assert int((tokens.ids == tokenizer.bos_token_id).sum()) == bos
        assert "<s>struck</s>" in tokenizer.decode(tokens.ids[0, int(bos) :])

    @pytest.mark.parametrize(
        ("tokens", "seq_len", "shape"),
        [(128, 64, (2, 64)), (191, 64, (2, 64)), (40, 64, (1, 40)), (2, 2, (1, 2)), (64, 64, (1, 64))],
    )
    def test_windows(
        self, corpus: str, plain: PreTrainedTokenizerFast, tokens: int, seq_len: int, shape: tuple[int, int]
    ) -> None:
        assert evaluation(corpus, plain, tokens=tokens, seq_len=seq_len).ids.shape == shape

    def test_long_documents_are_no_warning(self, corpus: str, caplog: pytest.LogCaptureFixture) -> None:
        logger = logging.getLogger("transformers")
        logger.addHandler(caplog.handler)
        try:
            evaluation(corpus, make_tokenizer(bos=False), tokens=512, seq_len=64)
        finally:
            logger.removeHandler(caplog.handler)
        assert not caplog.records

    @pytest.mark.parametrize("role", ["calibration", "evaluation"])
    def test_an_endless_stream_is_read_as_far_as_needed(
        self, monkeypatch: pytest.MonkeyPatch, plain: PreTrainedTokenizerFast, role: Role
    ) -> None:
        hub = ModuleType("datasets")
        rows = ({"text": TEXTS[i % len(TEXTS)]} for i in count())
        hub.load_dataset = lambda *args, **options: rows  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "datasets", hub)
        assert Tokens.from_source("hf:org/name", plain, tokens=512, seq_len=64, role=role).n_tokens == 512

    def test_the_tokenizer_is_left_as_it_was(self, corpus: str, plain: PreTrainedTokenizerFast) -> None:
        before = plain("a <s> b").input_ids
        evaluation(corpus, plain, tokens=512, seq_len=64)
        assert plain("a <s> b").input_ids == before


class TestOrder:
    def test_calibration_follows_the_seed(self, corpus: str, plain: PreTrainedTokenizerFast) -> None:
        a, b, c = (Tokens.from_source(corpus, plain, tokens=512, seq_len=64, seed=s) for s in (0, 0, 1))
        assert torch.equal(a.ids, b.ids)
        assert a.digest == b.digest != c.digest
        assert (a.source, a.seed, c.seed) == (corpus, 0, 1)

    def test_evaluation_does_not(self, corpus: str, plain: PreTrainedTokenizerFast) -> None:
        a, b = (Tokens.from_source(corpus, plain, tokens=512, seq_len=64, seed=s, role="evaluation") for s in (0, 1))
        assert a.digest == b.digest
        assert plain.decode(a.ids[0]).startswith(TEXTS[0][:20])

    def test_more_tokens_begin_with_the_same_ones(self, corpus: str, plain: PreTrainedTokenizerFast) -> None:
        few, many = (Tokens.from_source(corpus, plain, tokens=n, seq_len=64) for n in (512, 1024))
        assert torch.equal(few.ids, many.ids[: len(few)])

    def test_random_differs_by_seed_and_role(self) -> None:
        def draw(**options: object) -> Tokens:
            return Tokens.from_source("random", None, tokens=512, seq_len=64, vocab_size=50, **options)

        assert draw(seed=3).digest == draw(seed=3).digest
        digests = {draw(seed=3).digest, draw(seed=4).digest, draw(seed=3, role="evaluation").digest}
        assert len(digests) == 3
        assert draw(seed=3, role="evaluation").digest == draw(seed=4, role="evaluation").digest
        assert set(draw().ids.flatten().tolist()) == set(range(50))


class TestMix:
    @pytest.fixture
    def letters(self, tmp_path: Path) -> tuple[str, str]:
        for name, value in (("x", 120), ("y", 121)):
            np.save(tmp_path / f"{name}.npy", np.full((40, 16), value))
        return f"tokens:{tmp_path}/x.npy", f"tokens:{tmp_path}/y.npy"

    @pytest.mark.parametrize(
        ("weights", "windows", "share"),
        [((0.7, 0.3), 10, 7), ((1, 1), 10, 5), ((2, 1), 10, 7), ((0.02, 0.98), 40, 1), ((7, 3), 20, 14)],
    )
    def test_shares_follow_the_weights(
        self, letters: tuple[str, str], weights: tuple[float, float], windows: int, share: int
    ) -> None:
        mix = [f"{name}*{weight}" for name, weight in zip(letters, weights, strict=True)]
        tokens = Tokens.from_source(mix, None, tokens=windows * 16, seq_len=16)
        held = [int(120 in row) for row in tokens.ids.tolist()]
        assert (len(held), sum(held)) == (windows, share)
        for n in range(1, windows):  # and evenly, so that any first windows are the mix too
            assert abs(sum(held[:n]) - n * share / windows) <= 1

    def test_text_is_mixed_in_the_order_of_each_source(self, tmp_path: Path, plain: PreTrainedTokenizerFast) -> None:
        a = write(tmp_path / "a.jsonl", TEXTS[:45])
        b = write(tmp_path / "b.jsonl", TEXTS[45:])
        mix = Tokens.from_source([a, f"{b}*3"], plain, tokens=512, seq_len=32)
        assert mix.source == f"{a}*1 + {b}*3"
        only_a = Tokens.from_source(a, plain, tokens=4 * 32, seq_len=32).ids.tolist()
        only_b = Tokens.from_source(b, plain, tokens=12 * 32, seq_len=32).ids.tolist()
        rows = mix.ids.tolist()
        assert [row for row in rows if row in only_a] == only_a
        assert [row for row in rows if row in only_b] == only_b

    def test_a_source_left_without_any_window(self, letters: tuple[str, str]) -> None:
        with pytest.raises(ConfigError, match=r"x\.npy gets none of the 40 windows"):
            Tokens.from_source([f"{letters[0]}*0.01", letters[1]], None, tokens=640, seq_len=16)

    def test_taken_tokens_must_fit_the_mix(self, letters: tuple[str, str]) -> None:
        with pytest.raises(DataError, match="windows of 16 tokens, and the mix has 8"):
            Tokens.from_source(letters, None, tokens=64, seq_len=8)
        with pytest.raises(DataError, match="holds 640 tokens, and 50 windows of 16 need 800"):
            Tokens.from_source(letters, None, tokens=1_600, seq_len=16)


class TestTooLittle:
    def test_says_how_much_there_is_and_how_much_was_needed(self, corpus: str, plain: PreTrainedTokenizerFast) -> None:
        with pytest.raises(DataError, match=r"holds [\d,]+ tokens, and 1,562 windows of 64 need 99,968") as caught:
            evaluation(corpus, plain, tokens=100_000, seq_len=64)
        enough = int((caught.value.hint or "").split("at most ")[1].split()[0])
        assert evaluation(corpus, plain, tokens=enough, seq_len=64).n_tokens == enough

    @pytest.mark.parametrize("bos", [False, True])
    def test_less_than_a_window(self, tmp_path: Path, *, bos: bool) -> None:
        source, tokenizer = write(tmp_path / "a.jsonl", TEXTS[:1]), make_tokenizer(bos=bos)
        with pytest.raises(DataError, match="windows of at most") as caught:
            evaluation(source, tokenizer, tokens=1_024, seq_len=1_024)
        enough = int((caught.value.hint or "").split("at most ")[1].split()[0])
        assert evaluation(source, tokenizer, tokens=enough, seq_len=1_024).n_tokens == enough

    def test_blank_text(self, tmp_path: Path, plain: PreTrainedTokenizerFast) -> None:
        with pytest.raises(DataError, match="holds 0 tokens"):
            evaluation(write(tmp_path / "a.jsonl", [" "]), plain, tokens=64)

    @pytest.mark.parametrize("sizes", [{"tokens": 1}, {"tokens": 0}, {"seq_len": 1}, {"tokens": -5}])
    def test_sizes_that_predict_nothing(self, sizes: dict[str, int]) -> None:
        with pytest.raises(ConfigError, match="predict nothing"):
            Tokens.from_source("random", None, vocab_size=9, **sizes)

    def test_text_needs_a_tokenizer_and_random_a_vocabulary(self) -> None:
        with pytest.raises(ConfigError, match="there is no tokenizer"):
            Tokens.from_source("builtin:pydoc", None)
        with pytest.raises(ConfigError, match="needs vocab_size"):
            Tokens.from_source("random", None)

    def test_a_tokenizer_larger_than_the_model(self, corpus: str, plain: PreTrainedTokenizerFast) -> None:
        with pytest.raises(DataError, match="outside the vocabulary of 100"):
            Tokens.from_source(corpus, plain, tokens=256, seq_len=64, vocab_size=100)


class TestWindows:
    def test_take_split_and_batches(self) -> None:
        tokens = of(torch.arange(40).view(10, 4))
        assert tokens.take(3).ids.tolist() == tokens.ids[:3].tolist()
        first, second = tokens.split(6, 3)
        assert torch.equal(torch.cat([first.ids, second.ids]), tokens.ids[:9])
        assert [len(batch) for batch in tokens.batches(4)] == [4, 4, 2]
        assert torch.equal(torch.cat(list(tokens.batches(4))), tokens.ids)

    def test_more_windows_than_there_are(self) -> None:
        tokens = of(torch.arange(40).view(10, 4))
        with pytest.raises(DataError, match=r"here holds 10 windows of 4 tokens \(40\), and 11 windows \(44\)"):
            tokens.take(11)
        for wrong in ((0,), (-1,), (3, 0), ()):
            with pytest.raises(ConfigError, match="at least one"):
                tokens.split(*wrong)
        with pytest.raises(ConfigError, match="is empty"):
            tokens.batches(0)

    def test_the_digest_is_of_shape_and_ids_alone(self) -> None:
        tokens = of([[1, 2], [3, 4]])
        assert tokens.digest == of(torch.tensor([[1, 2], [3, 4]], dtype=torch.int32), "elsewhere").digest
        assert len({tokens.digest, of([[1, 2, 3, 4]]).digest, of([[1, 2], [3, 5]]).digest}) == 3

    def test_only_tokens_make_tokens(self) -> None:
        for ids, message in (([[0.5, 1.0]], "not integer"), ([1, 2], "shape"), ([[1, -2]], "outside")):
            with pytest.raises(DataError, match=message):
                of(ids)

    def test_the_tokenizer_digest_tells_tokenizers_apart(self, plain: PreTrainedTokenizerFast) -> None:
        others = (
            make_tokenizer(bos=False),
            make_tokenizer(bos=True),
            make_tokenizer(bos=False, vocab_size=280),
        )
        digests = [tokenizer_digest(tokenizer) for tokenizer in (plain, *others)]
        assert digests[0] == digests[1]
        assert len(set(digests)) == 3
