"""The journal: finished work is found again under all that it depended on, and never half-written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sned.runtime import journal as journals
from sned.runtime.journal import Journal, Pacer

KEY = ["model", 3, {"layers": [1, 2]}]
TENSORS = {"sum": torch.arange(6.0).view(2, 3), "tokens": torch.tensor(12)}


def own_bytes() -> int:
    """The memory that this process holds of its own, without pages of files."""
    rows = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(rows["RssAnon"].split()[0]) * 1024


def lines(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]


class TestValues:
    def test_a_value_is_computed_once(self, tmp_path: Path) -> None:
        calls: list[int] = []

        def compute() -> float:
            calls.append(1)
            return 0.1 + 0.2

        first = Journal(tmp_path).recall("loss", KEY, compute)
        again = Journal(tmp_path).recall("loss", KEY, compute)
        assert first == again == 0.1 + 0.2
        assert calls == [1]

    @pytest.mark.parametrize("value", [float("inf"), 1e-300, -0.0, 3, "text", [1, None], {"a": [0.5]}])
    def test_values_come_back_as_they_were(self, value: object, tmp_path: Path) -> None:
        Journal(tmp_path).recall("value", KEY, lambda: value)
        assert repr(Journal(tmp_path).recall("value", KEY, lambda: None)) == repr(value)

    def test_another_key_or_kind_is_another_value(self, tmp_path: Path) -> None:
        journal = Journal(tmp_path)
        journal.recall("loss", KEY, lambda: 1)
        assert journal.recall("loss", [*KEY, 0], lambda: 2) == 2
        assert journal.recall("gain", KEY, lambda: 3) == 3
        assert journal.recall("loss", KEY, lambda: 4) == 1

    def test_a_failed_computation_leaves_nothing(self, tmp_path: Path) -> None:
        journal = Journal(tmp_path)

        def fail() -> int:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            journal.recall("loss", KEY, fail)
        assert journal.recall("loss", KEY, lambda: 5) == 5

    def test_a_value_may_be_looked_up_and_kept_apart(self, tmp_path: Path) -> None:
        journal = Journal(tmp_path)
        assert journal.lookup("loss", KEY) is None
        journal.keep("loss", KEY, [[0.1, 1e-300]])
        for each in (journal, Journal(tmp_path)):
            assert each.lookup("loss", KEY) == [[0.1, 1e-300]]
            assert each.lookup("loss", [*KEY, 0]) is None
        journal.keep("loss", KEY, [])
        assert Journal(tmp_path).lookup("loss", KEY) == []

    def test_a_line_that_a_kill_cut_short_is_as_if_never_written(self, tmp_path: Path) -> None:
        journal, file = Journal(tmp_path), tmp_path / "done" / "values.jsonl"
        journal.keep("loss", 1, [1.5])
        journal.keep("loss", 2, [2.5])
        whole = file.read_text()
        first = len(whole.splitlines(keepends=True)[0])
        for end in range(first, len(whole)):
            file.write_text(whole[:end])
            again = Journal(tmp_path)
            assert (again.lookup("loss", 1), again.lookup("loss", 2)) == ([1.5], None)
            again.keep("loss", 2, [3.5])
            last = Journal(tmp_path)
            assert (last.lookup("loss", 1), last.lookup("loss", 2)) == ([1.5], [3.5])

    def test_without_a_folder_nothing_is_found(self) -> None:
        journal = Journal()
        journal.keep("loss", KEY, 1)
        assert journal.lookup("loss", KEY) is None


class TestTensors:
    def test_what_is_saved_is_loaded(self, tmp_path: Path) -> None:
        journal = Journal(tmp_path)
        assert journal.load_tensors("pass", KEY) is None
        journal.save_tensors("pass", KEY, TENSORS)
        loaded = Journal(tmp_path).load_tensors("pass", KEY)
        assert loaded is not None
        assert loaded.keys() == TENSORS.keys()
        assert all(torch.equal(loaded[name], tensor) for name, tensor in TENSORS.items())
        assert loaded["tokens"].shape == ()

    def test_views_can_be_saved(self, tmp_path: Path) -> None:
        square = torch.randn(4, 4)
        Journal(tmp_path).save_tensors("pass", KEY, {"turned": square.T})
        loaded = Journal(tmp_path).load_tensors("pass", KEY)
        assert loaded is not None
        assert torch.equal(loaded["turned"], square.T)

    def test_saving_again_replaces(self, tmp_path: Path) -> None:
        journal = Journal(tmp_path)
        journal.save_tensors("pass", KEY, TENSORS)
        journal.save_tensors("pass", KEY, {"sum": torch.zeros(1)})
        loaded = journal.load_tensors("pass", KEY)
        assert loaded is not None
        assert loaded.keys() == {"sum"}

    def test_what_is_loaded_survives_what_is_saved_next(self, tmp_path: Path) -> None:
        """A file that is replaced while its tensors are in use must not change them."""
        journal = Journal(tmp_path)
        journal.save_tensors("pass", KEY, TENSORS)
        loaded = journal.load_tensors("pass", KEY)
        assert loaded is not None
        journal.save_tensors("pass", KEY, {name: tensor + 1 for name, tensor in TENSORS.items()})
        journal.forget("pass", KEY)
        assert torch.equal(loaded["sum"], TENSORS["sum"])
        loaded["sum"] += 1

    @pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells how much memory is whose")
    def test_what_is_shelved_is_fetched_without_being_read(self, tmp_path: Path) -> None:
        """A plan may be larger than memory: what lies on the shelf takes none."""
        journal, large = Journal(tmp_path), torch.arange(8_000_000.0)
        before = own_bytes()
        kept = journal.shelve("large", large)
        again = Journal(tmp_path).fetch("large")
        assert own_bytes() - before < large.nbytes / 2
        assert again is not None
        assert torch.equal(kept, large)
        assert torch.equal(again, large)
        assert journal.fetch("small") is None

    def test_without_a_folder_what_is_shelved_stays_where_it_is(self) -> None:
        assert Journal().shelve("sum", TENSORS["sum"]) is TENSORS["sum"]
        assert Journal().fetch("sum") is None

    def test_what_is_forgotten_is_gone(self, tmp_path: Path) -> None:
        journal = Journal(tmp_path)
        journal.save_tensors("pass", KEY, TENSORS)
        journal.forget("pass", KEY)
        journal.forget("pass", KEY)
        assert journal.load_tensors("pass", KEY) is None

    def test_a_write_that_fails_leaves_the_old_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        journal = Journal(tmp_path)
        journal.save_tensors("pass", KEY, TENSORS)

        def full(tensors: object, path: Path) -> None:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("safetensors.torch.save_file", full)
        with pytest.raises(OSError, match="No space left"):
            journal.save_tensors("pass", KEY, {"sum": torch.zeros(2)})
        loaded = journal.load_tensors("pass", KEY)
        assert loaded is not None
        assert torch.equal(loaded["sum"], TENSORS["sum"])


class TestRecord:
    def test_it_says_what_was_finished_in_order(self, tmp_path: Path) -> None:
        journal = Journal(tmp_path)
        journal.recall("loss", KEY, lambda: 1)
        journal.save_tensors("pass", KEY, TENSORS, partial=True)
        journal.save_tensors("statistics", KEY, TENSORS)
        journal.note("op", {"op": "drop_layers", "layers": "3"})
        assert [line["done"] for line in lines(tmp_path)] == ["loss", "statistics", "op"]
        assert lines(tmp_path)[2]["detail"] == {"op": "drop_layers", "layers": "3"}
        assert all(line["at"] > 0 for line in lines(tmp_path))

    def test_what_was_found_again_is_not_noted_again(self, tmp_path: Path) -> None:
        for _ in range(2):
            Journal(tmp_path).recall("loss", KEY, lambda: 1)
        assert len(lines(tmp_path)) == 1

    def test_without_a_folder_nothing_is_kept_or_written(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        journal = Journal()
        assert journal.recall("loss", KEY, lambda: 1) == 1
        assert journal.recall("loss", KEY, lambda: 2) == 2
        journal.save_tensors("pass", KEY, TENSORS)
        journal.note("op")
        journal.forget("pass", KEY)
        assert journal.load_tensors("pass", KEY) is None
        assert list(tmp_path.iterdir()) == []


class TestPacer:
    def test_it_waits(self, monkeypatch: pytest.MonkeyPatch) -> None:
        now = [100.0]
        monkeypatch.setattr(journals.time, "monotonic", lambda: now[0])
        pacer = Pacer(30)
        answers = []
        for at in (100, 129, 130, 131, 159, 161):
            now[0] = at
            answers.append(pacer.due())
        assert answers == [False, False, True, False, False, True]

    def test_the_default_can_be_set_for_all(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert not Pacer().due()
        monkeypatch.setattr(journals, "SAVE_EVERY_SECONDS", 0.0)
        assert Pacer().due()
