"""Waiting: short after something came, never long against how long nothing did, and nobody is given half a request."""

from __future__ import annotations

import hashlib
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.fab import Fab
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.run import Run
from flwr.supernode import start_client_internal
from hypothesis import given
from hypothesis import strategies as st

from fed_diffmic.transport.identity import ensure_task_identity
from fed_diffmic.transport.nodestate import Handlers, KeptStateFactory
from fed_diffmic.transport.pauses import SHARE, Pauses
from fed_diffmic.transport.spool import Spool
from fed_diffmic.transport.supernode import ASK_S, OWN_S, pause

NO_CODE = hashlib.sha256(b"").hexdigest()


def test_pauses_grow_with_the_silence_and_are_short_again_when_something_came() -> None:
    now = [100.0]
    pauses = Pauses(0.1, 2.0, lambda: now[0])
    found = []
    for second in (100.0, 101.0, 110.0, 130.0, 1e6):
        now[0] = second
        found.append(pauses.next())
    assert found == [0.1, 0.1, 0.5, 1.5, 2.0]
    pauses.came()
    assert pauses.next() == 0.1
    assert Pauses(0.1, 0.05).next() == 0.05  # whoever sets the longest one means it


@given(st.floats(0.01, 1e5), st.floats(0.01, 1.0), st.floats(1.0, 60.0))
def test_what_is_lost_by_waiting_is_a_share_of_the_silence_or_the_shortest_pause(
    silence: float, shortest: float, longest: float
) -> None:
    now = [0.0]
    pauses = Pauses(shortest, longest, lambda: now[0])
    while now[0] < silence:
        last = now[0]
        now[0] += pauses.next()
        assert now[0] - last <= min(longest, max(shortest, SHARE * silence)) + 1e-6


def test_the_nodes_loop_looks_often_at_its_own_worker_and_with_measure_at_the_coordinator() -> None:
    now = [0.0]
    pauses = Pauses(ASK_S, 0.5, lambda: now[0])
    assert (pause(3, pauses), pause(0.5, pauses)) == (ASK_S, OWN_S)
    now[0] = 1000.0
    assert (pause(3, pauses), pause(0.5, pauses)) == (0.5, OWN_S)


def test_a_worker_is_given_a_request_once_all_of_it_is_there(tmp_path: Path, monkeypatch: Any) -> None:
    """Flower offers it before its content comes: a worker would ask for that, wait a second, then two, then four."""
    monkeypatch.setattr(start_client_internal, "get_fused_config_from_fab", lambda *_: {})
    ensure_task_identity()
    message = Message(RecordDict({"a": ConfigRecord({"x": 1})}), dst_node_id=1, message_type="query", ttl=60.0)
    message.metadata.__dict__["_run_id"] = 7
    message.metadata.__dict__["_message_id"] = message.object_id
    contents = {key: part.deflate() for key, part in get_all_nested_objects(message).items()}
    tree = get_object_tree(message)
    coming, go_on = threading.Event(), threading.Event()
    spool = Spool(tmp_path)
    state = KeptStateFactory(spool, lambda: None).state()
    state.set_node_id(1)

    def pull_object(run_id: int, object_id: str) -> bytes:
        coming.set()
        assert go_on.wait(30)
        return contents[object_id]

    def pull() -> None:
        start_client_internal._pull_and_store_message(
            state=state, object_store=state.object_store, node_config={}, trusted_entities=None,
            receive=lambda: (message, tree), pull_object=pull_object, confirm_message_received=lambda *_: None,
            get_run=lambda run_id: replace(
                Run.create_empty(run_id), fab_hash=NO_CODE, series_id=1, primary_task_type="flwr-serverapp"
            ),
            get_fab=lambda *_: Fab(NO_CODE, b"", {}),
        )  # fmt: skip

    thread = threading.Thread(target=pull)
    thread.start()
    ask = AcquireTaskRequest(supported_task_types=["flwr-clientapp"])
    assert coming.wait(30)
    assert state.pending() and not Handlers(spool).acquire_task(ask, state).token
    go_on.set()
    thread.join(30)
    assert Handlers(spool).acquire_task(ask, state).token
