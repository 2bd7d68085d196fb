"""Accepts the public socket: a connection is counted before a byte is read, its TLS handshake bounded in time."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from contextlib import suppress
from functools import partial
from typing import Any

from fed_diffmic.transport.guard import BoundedProtocol, Gate
from fed_diffmic.transport.seats import Seat

_log = logging.getLogger("fed_diffmic.guard")


class Listener:
    """Accepts the public socket.

    Args:
        gate: counts and decides.
        sock: bound and listening.
        tls: the coordinator's certificate; none: plain (insecure trials only).
        of_uvicorn: what uvicorn's protocol needs (``config``, ``server_state``, ``app_state``).
    """

    def __init__(self, gate: Gate, sock: socket.socket, tls: ssl.SSLContext | None, of_uvicorn: dict[str, Any]) -> None:
        self.gate = gate
        self.sock = sock
        self.tls = tls
        self.of_uvicorn = of_uvicorn
        self._starting: set[asyncio.Task[None]] = set()

    async def serve(self) -> None:
        """Accept until cancelled."""
        loop = asyncio.get_running_loop()
        self.sock.setblocking(False)
        while True:
            try:
                sock, peer = await loop.sock_accept(self.sock)
            except OSError as error:  # no descriptor left, or the peer was gone at once: the listener stays
                _log.warning("cannot accept a connection: %s", error.strerror)
                await asyncio.sleep(0.1)
                continue
            seat = self.gate.seats.take(str(peer[0]))
            if seat is None:
                sock.close()
                continue
            seat.close = partial(_end, sock)  # while the handshake is under way
            task = loop.create_task(self._start(sock, seat))
            self._starting.add(task)
            task.add_done_callback(self._starting.discard)

    async def _start(self, sock: socket.socket, seat: Seat) -> None:
        loop = asyncio.get_running_loop()
        made: list[BoundedProtocol] = []

        def protocol() -> BoundedProtocol:
            made.append(BoundedProtocol(self.gate, seat, _loop=loop, **self.of_uvicorn))
            return made[0]

        handshake = {"ssl": self.tls, "ssl_handshake_timeout": self.gate.bounds.header_s} if self.tls else {}
        try:
            await loop.connect_accepted_socket(protocol, sock, **handshake)  # type: ignore[arg-type]
        except (OSError, TimeoutError) as error:  # ssl.SSLError is an OSError
            if not seat.over:
                self.gate.counts.refuse("handshake", seat.address)
            _log.debug("handshake with %s failed: %s", seat.address, error)
            self.gate.seats.leave(seat)
            sock.close()


def _end(sock: socket.socket) -> None:
    """End a connection whose handshake is under way, without closing its descriptor: the event loop still looks at
    it, and would look at the next connection that is given the same number.
    """
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
