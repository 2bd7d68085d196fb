"""What a checkpoint keeps of a stage is read from its files while the sites train, and is written and hashed once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fed_diffmic.errors import ModelFileError
from fed_diffmic.files import load_tensors, map_tensors, save_tensors
from server import checkpoints
from server.checkpoints import LAID_DOWN, CheckpointStore
from server.run_state import RunState, StageProgress


def progress(index: int) -> StageProgress:
    value = np.full((3, 2), index, np.float32)
    return StageProgress(
        "guidance", frozen={"f": np.ones(2, np.float32)}, current={"w": value}, best={"w": value},
        average={"w": value / 2}, algorithm={"v/w": np.full((3, 2), 0.1), "n": np.array(index)}, round=index,
    )  # fmt: skip


def test_mapped_tensors_are_those_of_the_file_and_changes_stay_here(tmp_path: Path) -> None:
    given = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3), "scalar": np.array(7, np.int64), "none": np.zeros((0, 2)),
        "flag": np.array([True, False]), "half": np.arange(3, dtype=np.float16), "byte": np.arange(5, dtype=np.uint8),
    }  # fmt: skip
    path = save_tensors(tmp_path / "t.safetensors", given, {"note": "x"})
    found = map_tensors(path)
    assert found.keys() == given.keys()
    for name, value in load_tensors(path).items():
        assert found[name].dtype == value.dtype and found[name].shape == value.shape
        assert found[name].tobytes() == value.tobytes()
    before = path.read_bytes()
    found["a"][0, 0] = 99.0
    path.unlink()
    assert found["scalar"] == 7 and given["a"][0, 0] == 0.0 and b"99" not in before


def test_a_file_that_is_none_is_said(tmp_path: Path) -> None:
    for number, data in enumerate((b"", b"1234", b"\xff" * 8, (9).to_bytes(8, "little") + b"{not json")):
        path = tmp_path / f"{number}.safetensors"
        path.write_bytes(data)
        with pytest.raises(ModelFileError, match="not a readable safetensors file"):
            map_tensors(path)
    with pytest.raises(ModelFileError):
        map_tensors(tmp_path / "missing")


def test_only_what_changed_is_hashed_and_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[set[str]] = []
    honest = checkpoints.tensors_digest

    def digest(tensors: dict[str, np.ndarray]) -> str:
        hashed.append(set(tensors))
        return honest(tensors)

    monkeypatch.setattr(checkpoints, "tensors_digest", digest)
    store, run_state = CheckpointStore(tmp_path), RunState(settings={}, progress=progress(1))
    store.checkpoints.mkdir()
    store.save(run_state)
    assert run_state.progress is not None
    first = dict(vars(run_state.progress))
    assert all(isinstance(value.base, np.ndarray) for group in LAID_DOWN for value in first[group].values())
    hashed.clear()
    current = {"w": np.full((3, 2), 5, np.float32)}
    run_state.progress.current, run_state.progress.round = current, 2
    run_state.progress.algorithm = {"v/w": np.full((3, 2), 0.2), "n": np.array(2)}
    store.save(run_state)
    assert sorted(map(sorted, hashed)) == [["n", "v/w"], ["w"]]  # neither the base, nor the average, nor the best
    assert run_state.progress.current is current and run_state.progress.best is first["best"]
    loaded = CheckpointStore(tmp_path).load()
    assert loaded is not None and loaded.progress is not None
    assert loaded.progress.best["w"].tolist() == [[1, 1]] * 3 and loaded.progress.current["w"][0, 0] == 5
    assert loaded.progress.algorithm["n"] == 2 and loaded.progress.frozen["f"].tolist() == [1, 1]


def test_what_no_checkpoint_names_any_more_can_still_be_read(tmp_path: Path) -> None:
    """The best round's file is removed two rounds after another became the best; who holds it goes on."""
    store, run_state = CheckpointStore(tmp_path), RunState(settings={}, progress=progress(1))
    store.checkpoints.mkdir()
    store.save(run_state)
    assert run_state.progress is not None
    best = run_state.progress.best
    for index in (2, 3, 4):
        run_state.progress = progress(index)
        store.save(run_state)
    assert best["w"].tolist() == [[1, 1]] * 3
    assert run_state.progress.best["w"].tolist() == [[4, 4]] * 3
