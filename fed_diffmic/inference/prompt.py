"""HTTP/1.1 for strangers: the head of a request is bounded in bytes by h11, and here in the time that it takes to come.

uvicorn waits without end for a first request and for the rest of a head, and its faster parser bounds no head: who
never finishes one would hold a seat, or memory, for ever. So would who asks and never reads the answers: it waits
without end for room to write them, and a connection that it closes stays until what is left was read.
"""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_S = 10.0
READ_S = 60.0
"""Seconds within which an answer that does not fit into the machine's buffers must have been read."""


class Prompt(H11Protocol):
    """Closes a connection on which no whole head of a request came in :data:`HEAD_S` seconds.

    One whose answers are not read within :data:`READ_S` seconds is cut.
    """

    _late: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Start waiting for the first head."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Stop waiting where a head is whole."""
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """Start waiting for the next head of a connection that is kept."""
        super().on_response_complete()
        self._watch()

    def timeout_keep_alive_handler(self) -> None:
        """Close a connection that was kept, and wait no longer than that for what is left to be read."""
        super().timeout_keep_alive_handler()
        self._watch()

    def pause_writing(self) -> None:
        """Start waiting for a reader."""
        super().pause_writing()
        self._wait_for_reader()

    def resume_writing(self) -> None:
        """There is one."""
        super().resume_writing()
        if not self.transport.is_closing():
            self._forget_reader()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        self._stop()
        self._forget_reader()
        super().connection_lost(exc)

    def _watch(self) -> None:
        closing = self.transport.is_closing()
        if closing:
            self._wait_for_reader()
        if closing or self.conn.their_state is not h11.IDLE:
            self._stop()
        elif self._late is None:
            self._late = self.loop.call_later(HEAD_S, self._close)

    def _close(self) -> None:
        self.transport.close()
        self._watch()

    def _wait_for_reader(self) -> None:
        if self._unread is None:
            self._unread = self.loop.call_later(READ_S, self.transport.abort)

    def _forget_reader(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _stop(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None
