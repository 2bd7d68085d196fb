"""What Flower's connection takes for the end of everything, and what is only a bad moment."""

import hashlib
from dataclasses import replace

import httpx
import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.fab import Fab
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.run import Run, RunNotRunningException
from flwr.supernode import start_client_internal

from fed_diffmic.transport.contact import Reporter
from fed_diffmic.transport.fleet import retry_invoker, sentence
from fed_diffmic.transport.identity import ensure_task_identity
from fed_diffmic.transport.keptcalls import KeptCalls
from fed_diffmic.transport.nodestate import Handlers, KeptStateFactory
from fed_diffmic.transport.spool import Spool

NO_CODE = hashlib.sha256(b"").hexdigest()


@pytest.mark.parametrize(
    ("error", "words", "gives_up"),
    [
        (httpx.ConnectTimeout("_ssl.c:989: The handshake operation timed out"), "in time", False),
        (httpx.ConnectError("[SSL: UNEXPECTED_EOF_WHILE_READING] EOF occurred in violation"), "reached", False),
        (httpx.ConnectError("[Errno 111] Connection refused"), "reached", False),
        (httpx.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED] unable to get local issuer"), "not signed by", True),
        (httpx.ConnectError("[SSL: WRONG_VERSION_NUMBER] wrong version number"), "TLS handshake failed", True),
    ],
)
def test_a_handshake_that_was_only_slow_or_cut_is_tried_again(error, words, gives_up):
    invoker = retry_invoker(1.0, 2.0, 3.0)()
    assert words in sentence(error)
    assert invoker.should_giveup is not None and invoker.should_giveup(error) is gives_up


@pytest.mark.parametrize(
    ("reason", "words"), [("roster", "not in the roster"), ("clock", "clock differs"), ("", "roster (any more), or")]
)
def test_why_a_site_is_not_accepted_is_what_the_coordinator_said(reason, words):
    request = httpx.Request("POST", "https://x")
    answer = httpx.Response(401, headers={"x-fed-diffmic-refused": reason} if reason else {}, request=request)
    assert words in sentence(httpx.HTTPStatusError("401", request=request, response=answer))


@pytest.mark.parametrize("moment", ["content", "confirmation"])
def test_a_run_that_ends_while_its_request_arrives_leaves_no_task_behind(tmp_path, monkeypatch, moment):
    monkeypatch.setattr(start_client_internal, "get_fused_config_from_fab", lambda *_: {})
    ensure_task_identity()
    message = Message(RecordDict({"a": ConfigRecord({"x": 1})}), dst_node_id=1, message_type="query", ttl=60.0)
    message.metadata.__dict__["_run_id"] = 7
    message.metadata.__dict__["_message_id"] = name = message.object_id
    contents = {key: part.deflate() for key, part in get_all_nested_objects(message).items()}
    requests = [(message, get_object_tree(message))]

    def pull_object(run_id: int, object_id: str) -> bytes:
        if moment == "content":
            raise RunNotRunningException
        return contents[object_id]

    def confirm(run_id: int, message_id: str) -> None:
        raise RunNotRunningException

    spool = Spool(tmp_path)
    state = KeptStateFactory(spool, lambda: None).state()
    state.set_node_id(1)
    calls = KeptCalls(
        spool, Reporter(tmp_path), lambda: requests.pop() if requests else None, lambda *_: None,
        lambda run_id: replace(Run.create_empty(run_id), fab_hash=NO_CODE, series_id=1),
        lambda *_: Fab(NO_CODE, b"", {}), pull_object, lambda *_: None, confirm,
    )  # fmt: skip
    names = ("receive", "send", "get_run", "get_fab", "pull_object", "push_object", "confirm_message_received")
    given = dict(zip(names, calls.callbacks(), strict=True))
    pull = {key: value for key, value in given.items() if key not in ("send", "push_object")}
    found = start_client_internal._pull_and_store_message(
        state=state, object_store=state.object_store, node_config={}, trusted_entities=None, **pull
    )
    assert found is None and state.pending() and calls.over == {7}  # as Flower leaves it: a worker would wait for hours
    state.abandon(7)
    assert not state.pending() and not state.msg_store and state.object_store.get(name) is None
    assert not Handlers(spool).acquire_task(AcquireTaskRequest(supported_task_types=["flwr-clientapp"]), state).token
