"""Sites of one machine take turns: one holds a request at a time, a dead one frees it, a wait in vain is said."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from flwr.supercore.inflatable.inflatable_object import get_object_tree

from fed_diffmic.exchange.failures import LATER, TURN
from fed_diffmic.transport.turn import Turn
from tests.transport.test_keptcalls import Site, request


def hold(path: str, held: Any) -> None:
    assert Turn(path, 1.0).take()
    held.set()
    signal.pause()


def test_one_at_a_time_and_who_dies_frees_it(tmp_path: Path) -> None:
    path = str(tmp_path / "turn")
    first, second = Turn(path, 1.0), Turn(path, 1.0)
    assert first.take() and first.take() and not second.take()
    first.give()
    assert second.take() and not first.take()
    second.give()
    context = multiprocessing.get_context("fork")
    held = context.Event()
    other = context.Process(target=hold, args=(path, held))
    other.start()
    try:
        assert held.wait(30) and not first.take()
        os.kill(other.pid or 0, signal.SIGKILL)
    finally:
        other.kill()
        other.join(30)
    assert first.take()


def test_without_a_file_it_is_always_ones_turn() -> None:
    assert all(Turn(None, 0.0).take() for _ in range(2))


def test_a_wait_is_in_vain_after_its_time_and_begins_anew(tmp_path: Path) -> None:
    now, path = [0.0], str(tmp_path / "turn")
    first, second = Turn(path, 10.0), Turn(path, 10.0, lambda: now[0])
    assert first.take() and not second.in_vain()
    for at, vain in ((5.0, False), (9.0, False), (15.1, True), (15.2, False), (24.0, False), (25.3, True)):
        now[0] = at
        assert not second.take() and second.in_vain() is vain, at
    first.give()
    assert second.take() and not second.in_vain()


def test_a_request_is_not_begun_before_the_turn_and_kept_meanwhile(tmp_path: Path) -> None:
    path = str(tmp_path / "turn")
    site, other = Site(tmp_path / "inbox", [request()]), Turn(path, 60.0)
    site.calls.turn = Turn(path, 60.0)
    assert other.take()
    assert [site.calls.receive() for _ in range(15)] == [None] * 15  # more often than a request is begun anew
    assert site.spool.request() is not None and site.report.now.busy
    other.give()
    assert site.calls.receive() is not None
    assert not other.take()
    site.keep_reply()
    site.calls.receive()  # delivers it, and has nothing else to do
    assert site.spool.request() is None and other.take()


def test_a_turn_is_over_when_the_reply_is_there(tmp_path: Path) -> None:
    path = str(tmp_path / "turn")
    site, other = Site(tmp_path / "inbox", [request()]), Turn(path, 60.0)
    site.calls.turn = Turn(path, 60.0)
    assert site.calls.receive() is not None and not other.take()
    message = site.keep_reply()
    tree = get_object_tree(message)
    site.calls.send(message, tree, 0.0)
    site.calls.push_object(1, "session", tree.object_id, b"")
    assert not other.take()
    site.calls.settle()  # before it asks for the next request, which it may wait for
    assert other.take()


def test_a_wait_in_vain_is_told_to_the_coordinator_which_asks_later(tmp_path: Path) -> None:
    path, now = str(tmp_path / "turn"), [0.0]
    site, other = Site(tmp_path / "inbox", [request(1), request(2)]), Turn(path, 60.0)
    site.calls.turn = Turn(path, 30.0, lambda: now[0])
    assert other.take() and site.calls.receive() is None and site.announced == []
    now[0] = 31.0
    assert site.calls.receive() is None
    assert [message.error.code for message in site.announced] == [TURN] and site.pushed
    assert TURN in LATER and site.spool.request() is None
    other.give()
    assert site.calls.receive() is not None  # the next request


def test_a_request_whose_time_is_over_waits_for_no_turn(tmp_path: Path) -> None:
    """The next one does, and of that the coordinator is told when it waited in vain."""
    path, late, now = str(tmp_path / "turn"), request(2), [0.0]
    site, other = Site(tmp_path / "inbox", [request(1, ttl=0.2), late]), Turn(path, 60.0)
    site.calls.turn = Turn(path, 30.0, lambda: now[0])
    assert other.take() and site.calls.receive() is None
    time.sleep(0.25)
    assert site.calls.receive() is None
    kept = site.spool.request()
    assert kept is not None and kept.messages_list[0].metadata.message_id == late.metadata.message_id
    now[0] = 31.0
    assert site.calls.receive() is None
    assert [(m.error.code, m.metadata.reply_to_message_id) for m in site.announced] == [
        (TURN, late.metadata.message_id)
    ]


def test_a_file_that_cannot_be_opened_is_a_wait(tmp_path: Path) -> None:
    site = Site(tmp_path / "inbox", [request()])
    site.calls.turn = Turn(str(tmp_path / "gone" / "turn"), 0.2)
    assert site.calls.receive() is None and site.announced == []
    time.sleep(0.25)
    assert site.calls.receive() is None and [m.error.code for m in site.announced] == [TURN]


def test_that_the_file_cannot_be_opened_is_said_once_until_it_can(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    site, folder = Site(tmp_path / "inbox", [request()]), tmp_path / "gone"
    site.calls.turn = Turn(str(folder / "turn"), 60.0)
    for looks in (5, 7):  # and anew where it was there in between
        assert [site.calls.receive() for _ in range(looks)] == [None] * looks
        folder.mkdir()
        other = Turn(str(folder / "turn"), 60.0)
        assert other.take() and site.calls.receive() is None
        other.give()
        shutil.rmtree(folder)
    said = [record.message for record in caplog.records if "cannot be opened" in record.message]
    assert said == ["the file of the machine's turns (site.turn) cannot be opened: No such file or directory"] * 2
