"""Processes of one account meet in bounded time, whoever of that account connects besides.

Faults seen: a leading process that goes on accepting for as long as somebody connects.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from fed_diffmic.transport.meeting import meet

WAIT_S = 1.0


def waits(folder: Path, others: Callable[[], None]) -> tuple[Any, float]:
    """What the leading process of two comes to while others connect, and how long it took."""
    found: list[Any] = []

    def leads() -> None:
        begun = time.monotonic()
        try:
            found.append(meet(folder, 0, 2, WAIT_S))
        except OSError as error:
            found.append(error)
        found.append(time.monotonic() - begun)

    thread = threading.Thread(target=leads, daemon=True)
    thread.start()
    until = time.monotonic() + 20 * WAIT_S
    while len(found) < 2 and time.monotonic() < until:
        with suppress(OSError):
            others()
    return found[0] if found else None, found[1] if len(found) > 1 else 20 * WAIT_S


def connected(folder: Path) -> socket.socket:
    peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    peer.connect(str(folder / "group"))
    return peer


@pytest.mark.parametrize("said", [b"\x00", b"\x02", b"\xff", b""])
def test_who_connects_again_and_again_as_nobody_does_not_make_the_wait_longer(
    said: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One always waits to be let in, with what it says at hand."""
    until = time.monotonic() + 10 * WAIT_S

    def accept(self: socket.socket) -> Any:
        assert time.monotonic() < until
        time.sleep(0.01)
        ours, theirs = socket.socketpair()
        with theirs:
            theirs.sendall(said)
        return ours, ""

    monkeypatch.setattr(socket.socket, "accept", accept)
    with pytest.raises(TimeoutError):
        meet(tmp_path, 0, 2, WAIT_S / 5)


def test_who_connects_and_says_nothing_does_not_make_the_wait_longer(tmp_path: Path) -> None:
    held: list[socket.socket] = []

    def others() -> None:
        if not held:
            held.append(connected(tmp_path))
        time.sleep(0.01)

    found, seconds = waits(tmp_path, others)
    assert isinstance(found, OSError) and seconds < 10 * WAIT_S
    held[0].close()


def test_who_says_another_rank_is_passed_over_and_the_right_one_let_in(tmp_path: Path) -> None:
    def others() -> None:
        with connected(tmp_path) as wrong:
            wrong.sendall(b"\x07")
        (right,) = meet(tmp_path, 1, 2, WAIT_S)
        right.close()

    found, _ = waits(tmp_path, others)
    assert len(found) == 1 and found[0].gettimeout() == WAIT_S and not (tmp_path / "group").exists()
    found[0].close()
