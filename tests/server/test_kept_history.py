"""History on disk: only added to, read back as named, cut back to what a checkpoint names; old runs still read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fed_diffmic.errors import ModelFileError
from server.checkpoints import CheckpointStore
from server.kept_history import KeptHistory
from server.run_state import RunState


def rows(count: int) -> list[dict[str, Any]]:
    return [{"round": n, "val": {"a": {"loss": 1 / n}}} for n in range(1, count + 1)]


@pytest.fixture(autouse=True)
def _no_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda _: None)


def test_what_is_kept_is_read_and_a_round_adds_one_line(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    kept = KeptHistory(path)
    assert kept.read(kept.keep([])) == [] and not path.exists()
    kept.keep(rows(2))
    before = path.read_bytes()
    facts = kept.keep(rows(3))
    assert path.read_bytes().startswith(before) and len(path.read_bytes().splitlines()) == 3
    assert KeptHistory(path).read(facts) == rows(3)


def test_a_round_without_a_checkpoint_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    whole = KeptHistory(path)
    facts = whole.keep(rows(2))
    whole.keep([*rows(2), {"round": 3, "lost": True}])
    with path.open("ab") as stream:
        stream.write(b'{"torn' * 50)
    again = KeptHistory(path)
    assert again.read(facts) == rows(2)
    again.keep(rows(3))
    assert [json.loads(line) for line in path.read_bytes().splitlines()] == rows(3)


@settings(max_examples=40, deadline=None)
@given(where=st.integers(min_value=0), bit=st.integers(0, 7))
def test_any_changed_bit_is_noticed(tmp_path_factory: pytest.TempPathFactory, where: int, bit: int) -> None:
    path = tmp_path_factory.mktemp("h") / "history.jsonl"
    facts = KeptHistory(path).keep(rows(3))
    data = bytearray(path.read_bytes())
    data[where % len(data)] ^= 1 << bit
    path.write_bytes(data)
    with pytest.raises(ModelFileError, match="does not hold"):
        KeptHistory(path).read(facts)


def test_a_checkpoint_of_an_older_program_is_read_and_goes_on_in_the_new_form(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    with store.locked():
        store.save(RunState(settings={"stages": []}, history=rows(2), bytes_sent=8))
        pointer = store.checkpoints / "state.json"
        old = json.loads(pointer.read_text())
        pointer.write_text(json.dumps({**old, "format": 1, "history": rows(2)}, indent=2))
        (store.checkpoints / "history.jsonl").unlink()
        again = CheckpointStore(tmp_path)
        state = again.load()
        assert state is not None and state.history == rows(2)
        state.history += rows(3)[2:]
        again.save(state)
    found = CheckpointStore(tmp_path).load()
    assert found is not None and found.history == rows(3)
    assert json.loads((store.checkpoints / "previous.json").read_text())["format"] == 1


def test_a_lost_history_is_no_whole_checkpoint(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    with store.locked():
        store.save(RunState(settings={}, history=rows(1)))
    (store.checkpoints / "history.jsonl").unlink()
    with pytest.raises(ModelFileError, match="no checkpoint"):
        CheckpointStore(tmp_path).load()


def test_a_kill_between_the_two_renames_goes_on_from_the_round_before(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    with store.locked():
        for count in (1, 2):
            store.save(RunState(settings={}, history=rows(count)))
    (store.checkpoints / "state.json").replace(store.checkpoints / "previous.json")
    again = CheckpointStore(tmp_path)
    found = again.load()
    assert again.exists and found is not None and found.history == rows(2)
