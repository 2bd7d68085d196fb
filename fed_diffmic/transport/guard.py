"""The public listener in front of the SuperLink: what a stranger may do, how long, how much.

uvicorn bounds neither the time of a header or a body nor their number of connections, and Flower's
application serves its whole control interface to whoever can reach it. So the public socket is accepted here:

- connections are counted, by address, by site and in all, before a byte is read, TLS handshakes included, and some are
  reserved for sites (:mod:`fed_diffmic.transport.seats`, :mod:`fed_diffmic.transport.listener`);
- a request's header must be there within ``header_s``, its body within ``body_s`` and ``body_bytes``;
- health, after which the connection is closed, and the exact paths of Flower's fleet interface exist, everything
  else is 404;
- a fleet request must carry the key of a site of the roster and a fresh signature **before its body is read**,
  and the roster is looked at again after it: a site that was removed is refused at once.

Flower's own authentication (a key may act for its own node only) follows behind.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import datetime
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, Protocol

from flwr.common.constant import SYSTEM_TIME_TOLERANCE, TIMESTAMP_HEADER, TIMESTAMP_TOLERANCE
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.primitives.asymmetric import bytes_to_public_key, verify_signature
from uvicorn.protocols.http.h11_impl import H11Protocol

from fed_diffmic.transport.bells import PULLS, Bells, node_of
from fed_diffmic.transport.seats import Bounds, Counts, Seat, Seats

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = Mapping[bytes, bytes]

FLEET = frozenset(
    f"/v1/fleet/{name}"
    for name in (
        "register-node", "activate-node", "deactivate-node", "unregister-node", "send-node-heartbeat",
        "pull-messages", "push-messages", "get-run", "get-fab", "push-object", "pull-object",
        "confirm-message-received",
    )
)  # fmt: skip
REASON_HEADER = b"x-fed-diffmic-refused"
VERSIONS_HEADER = b"x-fed-diffmic-versions"
ABOUT_SITES = ("key", "signature", "clock", "roster")


class Admission(Protocol):
    """Who is admitted."""

    def name_of(self, public_pem: bytes) -> str | None:
        """The site whose key this is, or none."""


class BoundedProtocol(H11Protocol):
    """uvicorn's HTTP/1.1, with a bound on the time between requests, a request's header included."""

    def __init__(self, gate: Gate, seat: Seat, **of_uvicorn: Any) -> None:
        super().__init__(**of_uvicorn)
        self.gate = gate
        self.seat = seat
        self.address = seat.address
        self.app = self._app
        self.ws_protocol_class = None
        self._timer: asyncio.TimerHandle | None = None
        self._served: object = None
        self._idle_since = 0.0

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.gate(scope, receive, send, self)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The TLS handshake is done; a header must come."""
        super().connection_made(transport)
        self.gate.seats.shaken(self.seat)
        self.seat.close = transport.abort
        self._arm()

    def handle_events(self) -> None:
        """A request whose header is complete is bounded by the gate from here on."""
        super().handle_events()
        if self.cycle is not None and self.cycle is not self._served:
            self._served = self.cycle
            self._disarm()

    def on_response_complete(self) -> None:
        """The next header must come."""
        self._arm()
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone and counts no more."""
        self._disarm()
        self.gate.seats.leave(self.seat)
        super().connection_lost(exc)

    def abort(self, reason: str) -> None:
        """Close at once, whatever is still to be sent."""
        if not self.transport.is_closing():
            self.gate.counts.refuse(reason, self.address)
        self.transport.abort()

    def _arm(self) -> None:
        self._disarm()
        self._idle_since = self.loop.time()
        self._timer = self.loop.call_later(self.gate.bounds.header_s, self._late)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _late(self) -> None:
        waited = self.loop.time() - self._idle_since
        if self.transport.get_write_buffer_size() and waited < self.gate.bounds.body_s:
            self._timer = self.loop.call_later(1.0, self._late)  # a slow line still takes the answer
            return
        fresh = self.cycle is None or not self.cycle.response_complete
        begun = bool(self.conn.trailing_data[0])
        if fresh or begun:
            self.abort("header_time")
        else:
            self.transport.abort()  # an idle connection that was used before: nothing to be counted


class Gate:
    """Decides about each request on the public listener.

    Args:
        app: the SuperLink's application.
        bounds: limits.
        admission: who is admitted; none: everyone (insecure trials only).
        versions: what health tells about this installation.
        bells: hold a site's question for its next request until there is one; none: it is answered at once.
    """

    def __init__(
        self, app: App, bounds: Bounds, admission: Admission | None, versions: str, bells: Bells | None = None
    ) -> None:
        self.app = app
        self.bounds = bounds
        self.admission = admission
        self.counts = Counts()
        self.seats = Seats(bounds, self.counts)
        self._versions = versions.encode("ascii", "replace")
        self._bells = bells

    async def __call__(self, scope: Scope, receive: Receive, send: Send, connection: BoundedProtocol) -> None:
        """Serve one request, or refuse it and close the connection."""
        send = self._bounded(send, connection)
        path, method = scope["path"], scope["method"]
        if path == "/health" and method in ("GET", "HEAD"):
            await _answer(send, 200, [(VERSIONS_HEADER, self._versions), (b"connection", b"close")])
            return  # whoever asks for it holds no connection by it
        if path not in FLEET or method != "POST":
            await self._refuse(send, 404, "path", connection)
            return
        headers = _single(scope["headers"])
        site, reason = self._site_of(headers)
        if site is None or headers is None:
            await self._refuse(send, 401, reason, connection)
            return
        self.seats.admit(connection.seat, site)
        body, reason = await self._body(headers, receive)
        if body is None:
            if reason == "body_time":
                connection.abort(reason)
            elif reason != "disconnected":
                await self._refuse(send, 413, reason, connection, site)
            return
        if self.admission is not None and self.admission.name_of(_key(headers)) != site:
            await self._refuse(send, 401, "roster", connection, site)
            return
        self.counts.bytes_in += len(body)
        if site:
            self.counts.contact[site] = time.time()
        node = node_of(body) if path == PULLS and self._bells is not None else None
        if node is None or self._bells is None:
            await self.app(scope, _replay(body, receive), send)
        else:
            await self._bells.answer(node, self._still(site, headers), scope, _replay(body, receive), send, site)

    def _still(self, site: str, headers: Headers) -> App:
        """The application, for a site that was admitted when its question came and may not be any more."""

        async def still(scope: Scope, receive: Receive, send: Send) -> None:
            if self.admission is not None and self.admission.name_of(_key(headers)) != site:
                self.counts.refuse("roster", "", site)
                await _answer(send, 401, [(REASON_HEADER, b"roster"), (b"connection", b"close")])
                return
            await self.app(scope, receive, send)

        return still

    def _site_of(self, headers: Headers | None) -> tuple[str | None, str]:
        """The admitted site that signed the request (``""``: nobody is asked), or none and why."""
        if headers is None:
            return None, "headers"
        if self.admission is None:
            return "", ""
        site = self.admission.name_of(_key(headers))
        if site is None:
            return None, "roster"
        try:
            stamp = headers[TIMESTAMP_HEADER.encode()].decode("ascii")
            signature = base64.b64decode(headers[FLEET_HTTP_SIGNATURE_HEADER.encode()], validate=True)
            at = datetime.datetime.fromisoformat(stamp)
            age = (datetime.datetime.now(datetime.UTC) - at).total_seconds()
        except (KeyError, ValueError, TypeError, binascii.Error):
            return None, "signature"
        if not verify_signature(bytes_to_public_key(_key(headers)), stamp.encode("ascii"), signature):
            return None, "signature"
        if not -SYSTEM_TIME_TOLERANCE < age < TIMESTAMP_TOLERANCE + SYSTEM_TIME_TOLERANCE:
            return None, "clock"
        return site, ""

    async def _body(self, headers: Headers, receive: Receive) -> tuple[bytes | None, str]:
        """The whole body, or none and why not."""
        said = headers.get(b"content-length", b"0")
        if not said.isdigit() or len(said) > 15 or int(said) > self.bounds.body_bytes:
            return None, "body_size"
        body = bytearray()
        try:
            async with asyncio.timeout(self.bounds.body_s):
                while True:
                    message = await receive()
                    if message["type"] != "http.request":
                        return None, "disconnected"
                    body += message.get("body", b"")
                    if len(body) > self.bounds.body_bytes:
                        return None, "body_size"
                    if not message.get("more_body", False):
                        return bytes(body), ""
        except TimeoutError:
            return None, "body_time"

    def _bounded(self, send: Send, connection: BoundedProtocol) -> Send:
        """``send``, whose reader must take what it is sent in the time of a body."""

        async def bounded(message: MutableMapping[str, Any]) -> None:
            try:
                async with asyncio.timeout(self.bounds.body_s):
                    await send(message)
            except TimeoutError:
                connection.abort("slow_reader")

        return bounded

    async def _refuse(
        self, send: Send, status: int, reason: str, connection: BoundedProtocol, site: str | None = None
    ) -> None:
        self.counts.refuse(reason, connection.address, site or "")
        told = [(REASON_HEADER, reason.encode())] if reason in ABOUT_SITES else []
        await _answer(send, status, [*told, (b"connection", b"close")])


def _single(headers: list[tuple[bytes, bytes]]) -> dict[bytes, bytes] | None:
    """Headers by name, or none if one that decides is given twice."""
    decisive = {h.encode() for h in (FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER, TIMESTAMP_HEADER)} | {
        b"content-length"
    }
    names = [name for name, _ in headers if name in decisive]
    return dict(headers) if len(names) == len(set(names)) else None


def _key(headers: Headers) -> bytes:
    try:
        return base64.b64decode(headers.get(FLEET_HTTP_PUBLIC_KEY_HEADER.encode(), b""), validate=True)
    except binascii.Error:
        return b""


def _replay(body: bytes, receive: Receive) -> Receive:
    """A ``receive`` that gives the body once, then what really happens."""
    given = False

    async def replayed() -> MutableMapping[str, Any]:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed


async def _answer(send: Send, status: int, headers: list[tuple[bytes, bytes]]) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [*headers, (b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})
