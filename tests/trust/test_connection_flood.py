"""Strangers who hold every connection that they can, over real sockets and TLS, and a site that comes meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import pytest

from fed_diffmic.provision.keys import make_site_key
from fed_diffmic.provision.roster import Roster
from fed_diffmic.transport.seats import Bounds
from tests.transport.test_guard import PULL, Server, open_connections, signed

ADDRESSES, EACH = 16, 8
BOUNDS = Bounds(
    header_s=10.0, body_s=10.0, body_bytes=10_000, per_address=EACH, total=ADDRESSES * EACH, reserved=64,
    new_per_s=1e6, handshakes=32,
)  # fmt: skip


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    roster = Roster().enrol("alpha", make_site_key(tmp_path / "alpha"), "Hospital")
    started = Server(tmp_path, roster.save(tmp_path / "roster.json"), BOUNDS)
    yield started
    started.close()


class Strangers:
    """Connections from sixteen addresses of loopback, two fewer than there may be; what is closed is opened again.

    Args:
        server: whom they hold.
        what: ``health``, asked again and again over one connection; ``silence`` after the TLS handshake; ``no
            handshake`` at all.
    """

    def __init__(self, server: Server, what: str) -> None:
        self._server, self._what = server, what
        self._loop = asyncio.new_event_loop()
        self.opened = 0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            self._task = self._loop.create_task(self._all())
            self._loop.run_until_complete(self._task)

    async def _all(self) -> None:
        ones = [f"127.0.1.{1 + n % ADDRESSES}" for n in range(ADDRESSES * EACH - 2)]
        await asyncio.gather(*(self._one(address) for address in ones))

    async def _one(self, address: str) -> None:
        tls = {"ssl": self._server.tls, "server_hostname": "127.0.0.1"} if self._what != "no handshake" else {}
        while True:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, TimeoutError):
                reader, writer = await asyncio.open_connection(
                    "127.0.0.1", self._server.port, local_addr=(address, 0), **tls
                )
                self.opened += 1
                try:
                    while True:
                        if self._what == "health":
                            writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
                            await writer.drain()
                            await reader.readuntil(b"\r\n\r\n")
                            await asyncio.sleep(2)
                        elif not await reader.read(100):
                            break
                finally:
                    writer.transport.abort()
            await asyncio.sleep(1.0)

    def end(self) -> None:
        self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join(10)


@pytest.mark.parametrize("what", ["health", "silence", "no handshake"])
def test_a_site_gets_in_within_a_second_every_time(server: Server, tmp_path: Path, what: str) -> None:
    strangers = Strangers(server, what)
    try:
        until = time.monotonic() + 20
        while strangers.opened < ADDRESSES * EACH - 2 and time.monotonic() < until:
            time.sleep(0.05)
        assert strangers.opened >= ADDRESSES * EACH - 2
        seconds = []
        for _ in range(12):
            server.gate.seats._heard.clear()  # each time as if it came for the first time
            headers, started = signed(tmp_path, "alpha"), time.monotonic()
            answer, _body = server.request(PULL, headers, b"abc")
            seconds.append(time.monotonic() - started)
            assert answer.status == 200
            time.sleep(0.1)
        assert median(seconds) < 1.0 and max(seconds) < 3.0, seconds  # the machine is shared with the strangers
        assert server.gate.counts.open.total() <= BOUNDS.total
    finally:
        strangers.end()
    assert len(server.app.calls) == 12


def test_a_stranger_holds_nothing_by_asking_for_health(server: Server) -> None:
    with server.connect() as sock:
        sock.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: keep-alive\r\n\r\n")
        said = b""
        sock.settimeout(5)
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            while part := sock.recv(4096):
                said += part
    assert said.startswith(b"HTTP/1.1 200") and b"connection: close" in said.lower()
    assert open_connections(server) == 0


def test_handshakes_that_never_come_are_bounded_in_number_and_time(server: Server) -> None:
    held = []
    for n in range(64):
        sock = socket.socket()
        sock.bind((f"127.0.2.{1 + n % 32}", 0))
        sock.connect(("127.0.0.1", server.port))
        held.append(sock)
    try:
        until = time.monotonic() + 5
        while server.gate.counts.refused["handshakes"] < 32 and time.monotonic() < until:
            time.sleep(0.02)
        assert server.gate.counts.refused["handshakes"] == 32
        assert server.gate.seats.handshakes == 32
    finally:
        for sock in held:
            sock.close()
    assert open_connections(server) == 0
    assert server.gate.seats.handshakes == 0
