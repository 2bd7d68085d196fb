"""Checkpoints: whole or not there, the round before as a second chance, one process at a time."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import numpy as np
import pytest

from fed_diffmic.config.folders import has_final
from fed_diffmic.errors import MachineError, ModelFileError
from fed_diffmic.release.final import load_final
from fed_diffmic.training import calibration
from server.checkpoints import CheckpointStore
from server.run_state import RunState, StageProgress
from tests import toy


def state(round_index: int) -> RunState:
    value = np.full(3, round_index, np.float32)
    progress = StageProgress(
        "guidance",
        frozen={"f": np.ones(2, np.float32)},
        current={"w": value},
        round=round_index,
        average={"w": value / 2},
        best={"w": value},
        algorithm={"m/dict/000000/w": value * 3, "n": np.array(round_index)},
        best_round=round_index,
        best_score=[2.0, 0.5],
        site_states={"a": "0" * 64},
    )
    history = [{"round": index} for index in range(1, round_index + 1)]
    return RunState(settings={"stages": ["guidance"]}, progress=progress, history=history, bytes_sent=8)


def same(a: RunState, b: RunState) -> bool:
    assert a.progress is not None and b.progress is not None
    groups = ("frozen", "current", "average", "best", "algorithm")
    arrays = all(
        np.array_equal(getattr(a.progress, g)[k], getattr(b.progress, g)[k])
        for g in groups
        for k in getattr(a.progress, g)
    )
    plain = [{k: v for k, v in vars(s.progress).items() if k not in groups} for s in (a, b)]
    return (
        arrays
        and plain[0] == plain[1]
        and (a.history, a.bytes_sent, a.settings) == (b.history, b.bytes_sent, b.settings)
    )


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    with store.locked():
        assert store.load() is None
        store.save(state(1))
    loaded = CheckpointStore(tmp_path).load()
    assert loaded is not None
    assert same(loaded, state(1))


def test_only_the_last_two_rounds_are_kept(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    with store.locked():
        for n in range(1, 6):
            store.save(state(n))
    # each round: current = best, average, algorithm; frozen is shared
    assert len(list(store.checkpoints.glob("*.safetensors"))) == 2 * 3 + 1


@pytest.mark.parametrize("damage", ["cut", "flip", "missing", "pointer"])
def test_a_torn_file_falls_back_to_the_round_before(tmp_path: Path, damage: str) -> None:
    store = CheckpointStore(tmp_path)
    with store.locked():
        store.save(state(1))
        store.save(state(2))
        store.save(state(3))
    newest = json.loads((store.checkpoints / "state.json").read_text())["progress"]
    file = store.checkpoints / f"{newest['current']}.safetensors"
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-3])
    elif damage == "flip":
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(bytes(data))
    elif damage == "missing":
        file.unlink()
    else:
        (store.checkpoints / "state.json").write_text('{"format": 1')
    again = CheckpointStore(tmp_path)
    loaded = again.load()
    assert loaded is not None
    assert same(loaded, state(2))
    again.save(state(3))  # the run goes on, and the damaged pointer does not become the second chance
    assert json.loads((store.checkpoints / "previous.json").read_text())["progress"]["round"] == 2
    healed = CheckpointStore(tmp_path).load()
    assert healed is not None
    assert same(healed, state(3))


def test_two_damaged_rounds_are_an_error(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    with store.locked():
        store.save(state(1))
        store.save(state(2))
    for file in store.checkpoints.glob("*.safetensors"):
        file.write_bytes(b"")
    with pytest.raises(ModelFileError, match="no checkpoint"):
        CheckpointStore(tmp_path).load()


@pytest.mark.parametrize("text", ["[]", "{}", '{"format": 2}', '{"format": 1, "results": {}, "progress": {"x": 1}}'])
def test_a_strange_pointer_is_an_error(tmp_path: Path, text: str) -> None:
    store = CheckpointStore(tmp_path)
    store.checkpoints.mkdir()
    (store.checkpoints / "state.json").write_text(text)
    with pytest.raises(ModelFileError):
        store.load()


def _hold(folder: Path, ready: multiprocessing.synchronize.Event, done: multiprocessing.synchronize.Event) -> None:
    with CheckpointStore(folder).locked():
        ready.set()
        done.wait(30)


def test_a_second_process_is_refused_and_a_dead_one_is_not_waited_for(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready, done = context.Event(), context.Event()
    holder = context.Process(target=_hold, args=(tmp_path, ready, done))
    holder.start()
    try:
        assert ready.wait(30)
        with pytest.raises(MachineError, match="another process"), CheckpointStore(tmp_path).locked():
            pass
        holder.kill()
        holder.join(30)
        with CheckpointStore(tmp_path).locked():
            pass
    finally:
        holder.kill()  # not done.set(): it would wait for a process that may be dead already
        holder.join(30)


def finished(folder: Path) -> CheckpointStore:
    store = CheckpointStore(folder)
    with store.locked():
        run = RunState(settings={}, results={"guidance": {"w": np.arange(4, dtype=np.float32)}}, bytes_sent=16)
        fitted = calibration.uncalibrated(np.array([0.2, 0.3, 0.5]), "multiclass")
        store.finish(run, toy.toy_spec(), {"guidance": fitted})
    return store


def test_the_final_model_is_read_back_with_its_spec_and_calibration(tmp_path: Path) -> None:
    assert not has_final(tmp_path)
    with pytest.raises(ModelFileError, match="no final model"):
        load_final(tmp_path)
    finished(tmp_path)
    final = load_final(tmp_path)
    assert has_final(tmp_path)
    assert final.spec == toy.toy_spec()
    assert final.calibration["guidance"].prior == (0.2, 0.3, 0.5)
    np.testing.assert_array_equal(final.states["guidance"]["w"], np.arange(4, dtype=np.float32))
    assert final.bytes_sent == 16


@pytest.mark.parametrize("damage", ["flip", "cut", "missing", "model"])
def test_a_damaged_final_model_is_refused(tmp_path: Path, damage: str) -> None:
    finished(tmp_path)
    file = tmp_path / "final" / "guidance.safetensors"
    if damage == "flip":
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(bytes(data))
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:-1])
    elif damage == "missing":
        file.unlink()
    else:
        value = json.loads((tmp_path / "final" / "model.json").read_text())
        del value["calibration"]["guidance"]["scale"]
        (tmp_path / "final" / "model.json").write_text(json.dumps(value))
    with pytest.raises(ModelFileError):
        load_final(tmp_path)
