"""The file of the machine's turns may be anything, and anybody's: nobody hangs, and nobody takes it for a turn."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from fed_diffmic.exchange.failures import TURN
from fed_diffmic.transport import turn as module
from fed_diffmic.transport.turn import Turn
from tests.transport.test_keptcalls import Site, request


def pipe(path: Path) -> None:
    os.mkfifo(path)


def link(path: Path) -> None:
    path.symlink_to(path.with_name("elsewhere"))


def link_to_a_file(path: Path) -> None:
    path.with_name("other").touch()
    path.symlink_to(path.with_name("other"))


@pytest.mark.parametrize("make", [pipe, link, link_to_a_file, Path.mkdir])
def test_what_is_no_file_is_refused_at_once(make: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """And the site says so, does nothing of the request, and gives it back in the end."""
    path, now = tmp_path / "turn", [0.0]
    make(path)
    site = Site(tmp_path / "inbox", [request()])
    site.calls.turn = Turn(str(path), 10.0, lambda: now[0])
    looked = threading.Thread(target=site.calls.receive, daemon=True)
    looked.start()
    looked.join(10.0)
    assert not looked.is_alive() and site.announced == [] and site.spool.request() is not None
    assert "site.turn) cannot be opened" in caplog.text
    assert not path.with_name("elsewhere").exists()
    now[0] = 11.0
    assert site.calls.receive() is None
    assert [message.error.code for message in site.announced] == [TURN] and site.spool.request() is None


def test_a_file_that_was_replaced_while_it_was_opened_is_no_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "turn"
    first, second, opened = Turn(str(path), 1.0), Turn(str(path), 1.0), module._opened

    def replaced(at: Path) -> int:
        file = opened(at)
        at.unlink()
        at.touch()
        return file

    monkeypatch.setattr(module, "_opened", replaced)
    assert not first.take()
    monkeypatch.setattr(module, "_opened", opened)
    assert second.take() and not first.take()


def test_a_turn_makes_the_file_young_and_leaves_what_is_in_it(tmp_path: Path) -> None:
    path = tmp_path / "turn"
    path.write_text("why this file is here")
    os.utime(path, (1.0, 1.0))
    assert Turn(str(path), 1.0).take()
    assert path.stat().st_mtime > 1e9 and path.read_text() == "why this file is here"


def hold(path: str, held: Any) -> None:
    assert Turn(path, 1.0).take()
    held.set()
    signal.pause()


def test_a_holder_that_is_stopped_makes_the_others_give_back_and_nothing_is_begun(tmp_path: Path) -> None:
    """What was not begun was not charged either: the request never came to the worker."""
    path, now = str(tmp_path / "turn"), [0.0]
    context = multiprocessing.get_context("fork")
    held = context.Event()
    holder = context.Process(target=hold, args=(path, held))
    holder.start()
    try:
        assert held.wait(30)
        os.kill(holder.pid or 0, signal.SIGSTOP)
        site = Site(tmp_path / "inbox", [request(1), request(2)])
        site.calls.turn = Turn(path, 30.0, lambda: now[0])
        for now[0] in (0.0, 29.0, 31.0):
            assert site.calls.receive() is None
        assert [message.error.code for message in site.announced] == [TURN]
        assert site.calls.receive() is None and site.spool.request() is not None  # the next one waits anew
    finally:
        holder.kill()
        holder.join(30)
    assert site.calls.receive() is not None
