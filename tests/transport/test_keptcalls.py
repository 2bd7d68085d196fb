"""What becomes of a request and its reply at a site, on a folder of its own and calls that answer as they are told."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.common.serde import message_to_proto
from flwr.proto.fleet_pb2 import PullMessagesResponse
from flwr.proto.runtime_pb2 import PushAppMessagesRequest
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.run import RunNotRunningException

from fed_diffmic.exchange.failures import REPLY_SIZE
from fed_diffmic.transport import keptcalls
from fed_diffmic.transport.contact import Reporter
from fed_diffmic.transport.identity import ensure_task_identity
from fed_diffmic.transport.keptcalls import DELIVERIES, RECEIVES, KeptCalls
from fed_diffmic.transport.refusals import NOT_ASKED, TOO_LARGE, Refusal
from fed_diffmic.transport.spool import Spool


def named(message: Message) -> Message:
    message.metadata.__dict__["_message_id"] = ""
    message.metadata.__dict__["_message_id"] = message.object_id
    return message


def request(number: int = 1, ttl: float = 600.0, age: float = 0.0) -> Message:
    ensure_task_identity()
    message = Message(RecordDict({"a": ConfigRecord({"x": number})}), dst_node_id=9, message_type="train", ttl=ttl)
    message.metadata.__dict__["_created_at"] = time.time() - age
    return named(message)


class Site:
    """A folder, and calls of a coordinator that answers as the test says."""

    def __init__(self, folder: Path, waiting: list[Message]) -> None:
        self.folder, self.waiting = folder, waiting
        self.spool, self.report = Spool(folder), Reporter(folder)
        self.announced: list[Message] = []
        self.pushed: list[str] = []
        self.answer: Callable[[], None] = lambda: None
        self.calls = self.fresh()

    def fresh(self) -> KeptCalls:
        """As after a start of the SuperNode."""
        ask = lambda: (lambda m: (m, get_object_tree(m)))(self.waiting.pop(0)) if self.waiting else None  # noqa: E731
        nothing: Any = lambda *_: None  # noqa: E731
        self.calls = KeptCalls(
            self.spool, self.report, ask, self._send, nothing, nothing, nothing, self._push, nothing
        )  # fmt: skip
        return self.calls

    def _send(self, message: Message, tree: Any, _: float) -> tuple[set[str], str]:
        self.announced.append(message)
        self.answer()
        return {tree.object_id}, "session"

    def _push(self, run_id: int, session: str, object_id: str, content: bytes) -> None:
        self.pushed.append(object_id)

    def keep_reply(self) -> Message:
        """The request in hand is answered, and the answer not delivered."""
        kept = self.calls.receive()
        assert kept is not None
        reply = named(Message(RecordDict({"b": ConfigRecord({"y": 2})}), reply_to=kept[0]))
        for name, part in get_all_nested_objects(reply).items():
            self.spool.put(name, part.deflate())
        tree = get_object_tree(reply)
        self.spool.keep_reply(
            PushAppMessagesRequest(messages_list=[message_to_proto(reply)], message_object_trees=[tree])
        )
        return reply


def status(code: int) -> Callable[[], None]:
    def fail() -> None:
        answer = httpx.Response(code, request=httpx.Request("POST", "https://x/v1/fleet/push-messages"))
        raise httpx.HTTPStatusError(f"{code}", request=answer.request, response=answer)

    return fail


def over(site: Site, refusal: Refusal | None = None) -> Callable[[], None]:
    def fail() -> None:
        site.report.refusal = refusal
        raise RunNotRunningException

    return fail


@pytest.fixture
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keptcalls, "PAUSE_S", 0.0)


def received(site: Site) -> Any:
    found = site.calls.receive()
    return None if found is None else found[0].metadata.message_id


def test_a_request_in_hand_is_handed_out_again(tmp_path: Path) -> None:
    first, second = request(1), request(2)
    site = Site(tmp_path, [first, second])
    assert received(site) == first.metadata.message_id
    site.fresh()
    assert received(site) == first.metadata.message_id


def test_a_request_whose_time_is_over_is_not_handed_out_again(tmp_path: Path) -> None:
    late, second = request(1, ttl=5.0, age=5.5), request(2)
    site = Site(tmp_path, [second])
    site.spool.begin(
        PullMessagesResponse(messages_list=[message_to_proto(late)], message_object_trees=[get_object_tree(late)])
    )
    assert received(site) == second.metadata.message_id
    assert site.spool.request().messages_list[0].metadata.message_id == second.metadata.message_id  # type: ignore[union-attr]


def test_a_reply_whose_time_is_over_is_dropped_unsent_and_the_site_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = request(2, ttl=10**6)
    site = Site(tmp_path, [request(1), second])
    site.keep_reply()
    real = time.time
    monkeypatch.setattr(keptcalls.time, "time", lambda: real() + 3600.0)
    assert received(site) == second.metadata.message_id
    assert site.announced == [] and site.pushed == []
    assert (site.report.now.dropped, site.report.now.why) == (1, "its time is over")


def test_a_request_that_never_comes_whole_is_given_up_over_any_number_of_starts(tmp_path: Path) -> None:
    first, second = request(1), request(2)
    site = Site(tmp_path, [first, second])
    given = []
    for _ in range(RECEIVES + 2):
        given.append(received(site))
        site.fresh()
    assert given == [first.metadata.message_id] * (RECEIVES + 1) + [second.metadata.message_id]


@pytest.mark.parametrize("code", [400, 404, 409, 500])
def test_a_reply_that_is_never_taken_is_dropped_and_the_site_is_free(
    tmp_path: Path, no_pause: None, code: int, caplog: pytest.LogCaptureFixture
) -> None:
    site = Site(tmp_path, [request(1), request(2)])
    site.keep_reply()
    site.answer = status(code)
    with caplog.at_level(logging.WARNING):
        for _ in range(DELIVERIES):
            assert received(site) is None
            site.fresh()  # a start of the SuperNode is no new patience
        second = received(site)
    assert second is not None and second == site.spool.request().messages_list[0].metadata.message_id  # type: ignore[union-attr]
    assert len(site.announced) == DELIVERIES
    assert len([line for line in caplog.messages if "an undelivered reply is dropped" in line]) == 1
    assert site.report.now.dropped == 1 and "did not take it" in site.report.now.why


def test_between_tries_of_a_reply_there_are_pauses(tmp_path: Path) -> None:
    site = Site(tmp_path, [request(1)])
    site.keep_reply()
    site.answer = status(500)
    for _ in range(5):
        assert received(site) is None
    assert len(site.announced) == 1


def test_a_reply_that_is_taken_later_is_delivered(tmp_path: Path, no_pause: None) -> None:
    site = Site(tmp_path, [request(1), request(2)])
    reply = site.keep_reply()
    site.answer = status(500)
    assert received(site) is None
    site.answer = lambda: None
    second = received(site)
    assert second is not None and site.pushed == [reply.metadata.message_id]
    assert site.report.now.dropped == 0


@pytest.mark.parametrize("refusal", [None, NOT_ASKED])
def test_a_reply_that_nobody_waits_for_is_dropped_at_once(
    tmp_path: Path, refusal: Refusal | None, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = request(1), request(2)
    site = Site(tmp_path, [first, second])
    site.keep_reply()
    site.answer = over(site, refusal)
    with caplog.at_level(logging.WARNING):
        assert received(site) == second.metadata.message_id
    assert len(site.announced) == 1
    why = "the run is over" if refusal is None else refusal.sentence
    assert caplog.messages == [f"an undelivered reply is dropped: {why}"]
    assert site.report.now.why == why


def test_a_reply_that_is_too_large_is_answered_with_a_failure(tmp_path: Path) -> None:
    site = Site(tmp_path, [request(1), request(2)])
    reply = site.keep_reply()

    def too_large() -> None:
        if not site.announced[-1].has_error():
            over(site, TOO_LARGE)()

    site.answer = too_large
    assert received(site) is not None
    failure = site.announced[-1]
    assert failure.error.code == REPLY_SIZE
    assert failure.metadata.reply_to_message_id == reply.metadata.reply_to_message_id
    assert site.pushed == [failure.metadata.message_id]


def test_a_way_that_fails_is_no_fault_of_the_reply(tmp_path: Path, no_pause: None) -> None:
    site = Site(tmp_path, [request(1)])
    site.keep_reply()

    def cut() -> None:
        raise httpx.ConnectError("certificate verify failed")

    site.answer = cut
    for _ in range(2 * DELIVERIES):
        with pytest.raises(httpx.ConnectError):
            site.calls.receive()
        site.fresh()
    assert site.spool.has_reply()
