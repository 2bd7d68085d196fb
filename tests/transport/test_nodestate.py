"""A site's SuperNode and its worker in one process: what the worker handed in is kept, whatever the loop waits for."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_to_proto
from flwr.proto.fleet_pb2 import PullMessagesResponse
from flwr.proto.message_pb2 import PushObjectRequest
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    PullAppMessagesRequest,
    PullTaskInputRequest,
    PushAppMessagesRequest,
    PushTaskOutputRequest,
)
from flwr.supercore.fab import Fab
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.run import Run
from flwr.supernode import start_client_internal

from fed_diffmic.transport.identity import ensure_task_identity
from fed_diffmic.transport.nodestate import Handlers, KeptNodeState, KeptStateFactory
from fed_diffmic.transport.spool import Spool

NO_CODE = hashlib.sha256(b"").hexdigest()
BOUND_S = 60.0


def named(message: Message) -> Message:
    message.metadata.__dict__.update(_run_id=7)
    message.metadata.__dict__.update(_message_id=message.object_id)
    return message


@contextmanager
def unconfirmed(state: KeptNodeState, request: Message) -> Iterator[None]:
    """Flower's loop, which stands in the confirmation of a request that came whole."""
    contents = {key: part.deflate() for key, part in get_all_nested_objects(request).items()}
    stands, go_on = threading.Event(), threading.Event()

    def confirm(run_id: int, message_id: str) -> None:
        stands.set()
        assert go_on.wait(BOUND_S)

    def pull() -> None:
        start_client_internal._pull_and_store_message(
            state=state, object_store=state.object_store, node_config={}, trusted_entities=None,
            receive=lambda: (request, get_object_tree(request)), pull_object=lambda _, key: contents[key],
            get_run=lambda run_id: replace(
                Run.create_empty(run_id), fab_hash=NO_CODE, series_id=1, primary_task_type="flwr-serverapp"
            ),
            get_fab=lambda *_: Fab(NO_CODE, b"", {}), confirm_message_received=confirm,
        )  # fmt: skip

    loop = threading.Thread(target=pull)
    loop.start()
    try:
        assert stands.wait(BOUND_S)
        yield
    finally:
        go_on.set()
        loop.join(BOUND_S)


def work(state: KeptNodeState, spool: Spool) -> Message:
    """Take the task, answer it and hand the answer in, as a worker does call by call."""
    hand = Handlers(spool)
    given = hand.acquire_task(AcquireTaskRequest(supported_task_types=["flwr-clientapp"]), state)
    task = state.get_task_by_token(given.token)
    hand.pull_task_input(PullTaskInputRequest(), state, task)
    assert hand.pull_messages(PullAppMessagesRequest(), state, task).messages_list
    (asked,) = [entry.message for entry in state.msg_store.values()]
    content = RecordDict({"said": ConfigRecord({"x": 2})})
    reply = named(Message(content, reply_to=asked))
    contents = {key: part.deflate() for key, part in get_all_nested_objects(reply).items()}
    told = hand.push_messages(
        PushAppMessagesRequest(
            messages_list=[message_to_proto(remove_content_from_message(reply))],
            message_object_trees=[get_object_tree(reply)],
        ),
        state,
        task,
    )
    for key in told.objects_to_push:
        pushed = PushObjectRequest(session_id=told.session_id, object_id=key, object_content=contents[key])
        assert hand.push_object(pushed, state, task).stored
    hand.push_task_output(PushTaskOutputRequest(sub_status="completed"), state, task)
    return reply


@pytest.fixture
def request_in_hand(monkeypatch: pytest.MonkeyPatch) -> Message:
    monkeypatch.setattr(start_client_internal, "get_fused_config_from_fab", lambda *_: {})
    ensure_task_identity()
    return named(Message(RecordDict({"a": ConfigRecord({"x": 1})}), dst_node_id=1, message_type="query", ttl=60.0))


def test_a_reply_is_kept_while_the_coordinator_does_not_take_the_confirmation(
    request_in_hand: Message, tmp_path: Path
) -> None:
    spool = Spool(tmp_path)
    state = KeptStateFactory(spool, lambda: None).state()
    state.set_node_id(1)
    received = PullMessagesResponse(
        messages_list=[message_to_proto(request_in_hand)], message_object_trees=[get_object_tree(request_in_hand)]
    )
    spool.begin(received)
    with unconfirmed(state, request_in_hand):
        reply = work(state, spool)
        kept = Spool(tmp_path).reply()  # as the next process finds it, were this one killed now
        assert kept is not None and kept.messages_list[0].metadata.message_id == reply.metadata.message_id
        before = (tmp_path / "reply.pb").stat().st_ino
    (sent,) = state.get_messages_legacy(is_reply=True)  # the loop goes on: it sends that one, and writes it once
    assert sent.metadata.message_id == reply.metadata.message_id
    assert (tmp_path / "reply.pb").stat().st_ino == before


def test_nothing_is_kept_of_a_request_that_was_given_up_meanwhile(request_in_hand: Message, tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    state = KeptStateFactory(spool, lambda: None).state()
    state.set_node_id(1)
    with unconfirmed(state, request_in_hand):
        work(state, spool)
        assert not spool.has_reply()
