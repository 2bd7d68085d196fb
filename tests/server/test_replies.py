"""Replies that nobody waits for: each is called what it is, and is nobody's."""

import time
from types import SimpleNamespace

import pytest

from fed_diffmic.exchange.failures import LATER, LOST
from fed_diffmic.exchange.payload import Payload, pack
from fed_diffmic.exchange.screening import REFUSALS, Expected
from server import replies
from server.exchange import Site
from server.replies import Asking, Channel, Request
from tests.toy import Events

FACTS = {"arm": "federated", "stage": "plain", "round": 2}
HEADER = {"run": "r", "arm": "federated", "stage": "plain", "round": 2, "site": "a"}


def request(site="a"):
    payload = Payload("train", {**HEADER, "site": site})
    return Request(Site(site, 1), payload, Expected(kind="train.reply", header={}, fields={}), pack({}))


class Grid:
    def __init__(self):
        self.pushed = []

    def push_messages(self, messages):
        self.pushed += messages
        return [f"m{len(self.pushed)}"]


def exchange(closed=None, left=60.0):
    events, grid = Events([]), Grid()
    channel = Channel(grid, events, closed={} if closed is None else closed)
    made = Asking(channel, "train", time.monotonic() + left, FACTS)
    return made, events, grid


def reply_to(message):
    return SimpleNamespace(metadata=SimpleNamespace(reply_to_message_id=message))


def refusals(events):
    return [(e["site"], e["code"], e["reason"], e["round"]) for e in events.of("site_refused")]


def test_a_reply_after_the_deadline_is_late_a_second_one_a_duplicate_and_any_other_unexpected(monkeypatch):
    monkeypatch.setattr(replies, "read_reply", lambda *_: (7, "it failed"))
    closed = {}
    first, events, _ = exchange(closed)
    for site in ("a", "b"):
        first.send(request(site), request(site).packed)
    assert set(first.open) == {"m1", "m2"}
    first.take(reply_to("m2"))
    first.take(reply_to("m2"))
    first.end()
    assert refusals(events) == [("", "duplicate", REFUSALS["duplicate"], 2)]
    assert first.outcome.codes == {"a": "deadline", "b": 7}
    second, events, _ = exchange(closed)  # the next round: replies of the one before arrive
    for message in ("m1", "m2", "m77"):
        second.take(reply_to(message))
    assert [code for _, code, _, _ in refusals(events)] == ["late", "duplicate", "unexpected"]
    assert second.outcome.codes == {} == second.outcome.replies


def test_what_is_remembered_of_closed_messages_is_bounded_and_the_oldest_goes(monkeypatch):
    monkeypatch.setattr(replies, "KEPT_CLOSED", 2)
    closed = {"m-2": "late", "m-1": "late"}
    made, _, _ = exchange(closed)
    made.send(request(), request().packed)
    made.end()
    assert list(closed) == ["m-1", "m1"]


@pytest.mark.parametrize(("code", "first", "longest"), [(min(LATER), 15.0, 600.0), (min(LOST), 2.0, 30.0)])
def test_a_site_that_asks_for_patience_is_asked_again_after_pauses_that_double(monkeypatch, code, first, longest):
    now = [1000.0]
    monkeypatch.setattr(replies.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(replies, "read_reply", lambda *_: (code, "not now"))
    made, events, grid = exchange(left=0.0)
    made.deadline = now[0] + 3600.0
    made.send(request(), request().packed)
    pauses = []
    for number in range(1, 9):
        made.take(reply_to(f"m{number}"))
        pauses.append(events.of("site_waits")[-1]["again_s"])
        now[0] += pauses[-1] - 0.5
        made.ask_again()
        assert len(grid.pushed) == number, "not before its pause is over"
        now[0] += 1.0
        made.ask_again()
        assert len(grid.pushed) == number + 1
    assert pauses == [min(first * 2**n, longest) for n in range(8)]
    made.deadline = now[0] + 1.0  # no time is left for another pause: it is missing now
    made.take(reply_to("m9"))
    assert made.outcome.codes == {"a": code} and not made._waiting
