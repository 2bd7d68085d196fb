"""Requests that are made to harm the site: none runs anything, reads anything or leaves its folder."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message

from client.app import app
from fed_diffmic.errors import ModelFileError
from fed_diffmic.exchange import failures
from fed_diffmic.exchange.payload import encode
from fed_diffmic.files import tensors_digest
from fed_diffmic.transport.identity import set_message_id
from fed_diffmic.transport.messages import failure_of, from_record, task_message
from server.checkpoints import CheckpointStore
from server.run_state import RunState
from simulations.grid import InProcessGrid
from tests import toy
from tests.client.enforcing import SPEC, lines, ruled
from tests.client.test_app import AMPLE, context, send, task


@pytest.fixture(autouse=True)
def _networks(monkeypatch: pytest.MonkeyPatch) -> None:
    toy.install_toy_networks(monkeypatch.setattr)
    monkeypatch.setattr("os.fsync", lambda _: None)


@pytest.fixture
def site(tmp_path: Path) -> Any:
    """Puts the site ``a`` under rules; returns how to change them."""
    yield from ruled(tmp_path)


def test_a_path_as_a_runs_name_is_refused_and_leaves_nothing(tmp_path: Path, site: Any) -> None:
    site(runs=["*"])
    spec = replace(SPEC, run_id="../../../outside")
    before = {p for p in tmp_path.parent.rglob("*") if tmp_path not in p.parents and p != tmp_path}
    answer = failure_of(send(task("train", spec), "train", context(tmp_path)))
    assert answer is not None and answer[0] == failures.BAD_REQUEST
    assert {p for p in tmp_path.parent.rglob("*") if tmp_path not in p.parents and p != tmp_path} == before
    assert all("outside" not in p.name for p in tmp_path.rglob("*"))


def test_a_message_of_another_kind_runs_nothing(tmp_path: Path, site: Any) -> None:
    _, source = site()
    grid = InProcessGrid(app, [{"site": "a", "site-dir": str(tmp_path / "a")}])
    message = task_message(encode(task("train")), node=1, message_type="query.shell", ttl=60.0, group="1")
    (message_id,) = grid.push_messages([message])
    (reply,) = grid.pull_messages([message_id])
    assert failure_of(reply) == (failures.UNEXPECTED, failures.FAILURES[failures.UNEXPECTED])
    assert source.count == 0


class Bomb:
    """Creates a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def test_pickled_tensors_are_refused_unread(tmp_path: Path, site: Any) -> None:
    site()
    bomb = pickle.dumps(Bomb(tmp_path / "boom"))
    arrays = [ArrayRecord({"0": Array("float32", (3,), stype, bomb)}) for stype in ("numpy.ndarray", "fed_diffmic.raw")]
    for tensors in (*arrays, ConfigRecord({"0": bomb})):
        message = task_message(encode(task("train")), node=1, message_type="train", ttl=60.0, group="1")
        set_message_id(message, "1")
        message.content["tensors"] = tensors
        failed = failure_of(app(message=message, context=context(tmp_path)))
        assert failed == (failures.BAD_REQUEST, failures.FAILURES[failures.BAD_REQUEST])
    assert not (tmp_path / "boom").exists()


def test_a_poisoned_checkpoint_and_a_poisoned_update_are_not_unpickled(tmp_path: Path, site: Any) -> None:
    site()
    where = context(tmp_path)
    first = from_record(send(task("train"), "train", where).content, AMPLE)
    bomb = pickle.dumps(Bomb(tmp_path / "boom"))
    for path in (tmp_path / "a").rglob("*.safetensors"):
        path.write_bytes(bomb)
    again = from_record(send(task("train"), "train", where).content, AMPLE)  # torn is absent: base sent, computed again
    assert tensors_digest(again.tensors) == tensors_digest(first.tensors)
    store = CheckpointStore(tmp_path / "run")
    with store.locked():
        store.save(RunState(settings={}, results={"guidance": first.tensors}))
        for path in store.checkpoints.glob("*.safetensors"):
            path.write_bytes(bomb)
        with pytest.raises(ModelFileError):
            store.load()
    assert not (tmp_path / "boom").exists()


def test_a_malformed_message_is_refused_and_written_down(tmp_path: Path, site: Any) -> None:
    site()
    message: Message = task_message(encode(task("train")), node=1, message_type="train", ttl=60.0, group="1")
    message.content["payload"]["digest"] = "0" * 64
    where: Context = context(tmp_path)
    assert failure_of(app(message=message, context=where)) == (
        failures.BAD_REQUEST, failures.FAILURES[failures.BAD_REQUEST]
    )  # fmt: skip
    assert [n.kind for n in lines(tmp_path)] == ["opened", "refusal"]
