"""Questions that wait at the SuperLink until there is something to answer.

Flower's SuperNodes and its ServerApp ask again and again whether there is a message for them. Each question is a
request with its signature, its transactions and some milliseconds of processor time, and what comes between two of
them lies there meanwhile. Here a question is held, before Flower sees it, until the **whole** of a message for whoever
asks is in the store, at most :data:`HOLD_S` seconds: so it is answered at once, and a message whose content is still
coming is not handed out, which would let its receiver try for its objects in pauses of a second and more.

A site has one question here: a later one takes the place of an earlier one, which is answered with nothing, for whoever
asked that is gone and only its connection does not know it yet. And it asks for its own node, which Flower judges: a
question for a node that Flower did not yet confirm to be the asker's is not held, and touches no bell.

Whoever holds a question may be gone when it is answered: :mod:`fed_diffmic.transport.again`.
"""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.proto.fleet_pb2 import PullMessagesRequest
from flwr.server.superlink.linkstate.sql_linkstate import SqlLinkState
from flwr.supercore.state.schema.corestate_models import ObjectPushSessionRoot
from flwr.supercore.state.schema.linkstate_models import MessageIns
from flwr.supercore.utils import int64_to_uint64
from sqlalchemy import select

from fed_diffmic.transport.again import give_again

PULLS = "/v1/fleet/pull-messages"
HOLD_S, COORDINATOR_S = 5.0, 2.0
"""Longest waits of a site's question and of the coordinator's, which has deadlines and pauses to look at meanwhile."""
REMEMBERED = 4096
App = Callable[[MutableMapping[str, Any], Any, Any], Awaitable[None]]


class End(Enum):
    """How waiting ended: Flower is asked, whoever asked is gone, or it asked again meanwhile."""

    ASK, GONE, LATER = range(3)


@dataclass
class _Bell:
    """One node's.

    Attributes:
        rung: there may be something for it; so it is at first, for nobody knows what is there.
        later: set when a later question takes the place of the one that waits; none: nothing waits.
    """

    rung: asyncio.Event = field(default_factory=asyncio.Event)
    later: asyncio.Event | None = None

    def __post_init__(self) -> None:
        self.rung.set()


class Bells:
    """One bell for each node: rung where there may be something for it, silent once it asked.

    Args:
        hold_s: seconds that a question waits at most.
    """

    def __init__(self, hold_s: float = HOLD_S) -> None:
        self.hold_s = hold_s
        self._loop: asyncio.AbstractEventLoop | None = None
        self._bells: OrderedDict[int, _Bell] = OrderedDict()
        self._nodes: dict[str, int] = {}

    @classmethod
    def installed(cls, heartbeat_s: float) -> Bells:
        """Bells that this process' SuperLink rings; to be called once, before it serves."""
        bells = cls(min(HOLD_S, heartbeat_s / 4))
        ring_when_whole(bells)
        give_again()
        count_nothing()
        return bells

    def ring(self, node: int) -> None:
        """There may be something for a node; from any thread."""
        if self._loop is not None:
            with suppress(RuntimeError):  # it was closed: nobody waits any more
                self._loop.call_soon_threadsafe(lambda: self._bell(node).rung.set())

    def close(self) -> None:
        """Hold no question any more: the SuperLink ends, and whoever asks is answered before it does."""
        self.hold_s = 0.0
        for bell in self._bells.values():
            bell.rung.set()

    async def answer(
        self, node: int, app: App, scope: MutableMapping[str, Any], receive: Any, send: Any, site: str = ""
    ) -> None:
        """Let the application answer a question once there may be something, or nothing came in time.

        Args:
            node: who asks, as it says.
            app: Flower's application, which judges whether it is so.
            scope, receive, send: of a request whose body is replayed by ``receive`` and then waits for its end.
            site: whose key signed the question; empty: nobody is asked for one.
        """
        self._loop = asyncio.get_running_loop()
        if site and self._nodes.get(site) != node:
            await self._judged(site, node, app, scope, receive, send)
            return
        body, bell = await receive(), self._bell(node)
        hold_s = min(self.hold_s, COORDINATOR_S) if node == SUPERLINK_NODE_ID else self.hold_s
        ended = await _wait(bell, hold_s, receive, alone=node != SUPERLINK_NODE_ID)
        if ended is not End.ASK:  # nothing is given out that nobody takes
            if ended is End.LATER:
                await _nothing(send)
            return
        bell.rung.clear()
        given = [body]

        async def replayed() -> MutableMapping[str, Any]:
            return given.pop() if given else await receive()

        async def watched(message: MutableMapping[str, Any]) -> None:
            if message.get("body") or message.get("status", 200) != 200:
                bell.rung.set()  # something came, and there may be more; or it was refused, and nobody looked
            await send(message)

        await app(scope, replayed, watched)

    async def answer_coordinator(self, app: App, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        """The same for the coordinator's question for replies, whose body (names of requests) is read here."""
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return
            body, more = body + message.get("body", b""), message.get("more_body", False)
        waiting = [{"type": "http.request", "body": body, "more_body": False}]

        async def replayed() -> MutableMapping[str, Any]:
            return waiting.pop() if waiting else await receive()

        await self.answer(SUPERLINK_NODE_ID, app, scope, replayed, send)

    async def _judged(
        self, site: str, node: int, app: App, scope: MutableMapping[str, Any], receive: Any, send: Any
    ) -> None:
        """Let Flower answer a site's question for a node; where it does, that is the site's node from now on."""

        async def watched(message: MutableMapping[str, Any]) -> None:
            if message.get("status") == 200:
                self._bells.pop(self._nodes.get(site, node), None)
                self._nodes[site] = node
            await send(message)

        await app(scope, receive, watched)

    def _bell(self, node: int) -> _Bell:
        found = self._bells.setdefault(node, _Bell())
        self._bells.move_to_end(node)
        while len(self._bells) > REMEMBERED:
            self._bells.popitem(last=False)
        return found


async def _wait(bell: _Bell, hold_s: float, receive: Any, *, alone: bool) -> End:
    """Wait until the bell rings or the time is over.

    Args:
        bell: of whoever asks.
        hold_s: seconds.
        receive: tells when whoever asked is gone.
        alone: an earlier question that still waits ends now, and a later one ends this.
    """
    later = asyncio.Event()
    if alone:
        if bell.later is not None:
            bell.later.set()
        bell.later = later
    waits = [asyncio.ensure_future(one) for one in (bell.rung.wait(), later.wait(), _left(receive))]
    try:
        if not bell.rung.is_set():
            await asyncio.wait(waits, timeout=hold_s, return_when=asyncio.FIRST_COMPLETED)
        if waits[-1].done():
            return End.GONE
        return End.LATER if later.is_set() else End.ASK
    finally:
        for one in waits:
            one.cancel()
        if bell.later is later:
            bell.later = None


async def _nothing(send: Any) -> None:
    """An answer without a message."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


async def _left(receive: Any) -> None:
    """Returns when whoever asked is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


def node_of(body: bytes) -> int | None:
    """Which node a site's question is for, or none if it cannot be read."""
    request = PullMessagesRequest()
    try:
        request.ParseFromString(body)
    except Exception:  # protobuf raises its own type
        return None
    return int(request.node.node_id)


def ring_when_whole(bells: Bells) -> None:
    """Let this process' SuperLink ring once the last object of a message is stored; once, before it serves."""
    end, store = SqlLinkState._cleanup_push_session, SqlLinkState.store_object
    storing = threading.local()

    def end_session(self: SqlLinkState, session_id: str, *, cleanup_messages: bool) -> None:
        nodes = set() if cleanup_messages else receivers(self, session_id)
        end(self, session_id, cleanup_messages=cleanup_messages)
        if getattr(storing, "nodes", None) is None:
            for node in nodes:
                bells.ring(node)
        else:
            storing.nodes |= nodes

    def store_object(self: SqlLinkState, *args: Any, **named: Any) -> bool:
        storing.nodes = set()
        try:
            stored = store(self, *args, **named)  # its transaction is over when it returns
            for node in storing.nodes:
                bells.ring(node)
            return stored
        finally:
            storing.nodes = None

    SqlLinkState._cleanup_push_session = end_session  # type: ignore[method-assign, assignment]
    SqlLinkState.store_object = store_object  # type: ignore[method-assign, assignment]


def count_nothing() -> None:
    """Let this process' SuperLink keep no sum of a run's bytes: each object was two transactions for it, not one.

    Nobody reads it here: the guard counts what comes, the coordinator's events what a round sent.
    """
    SqlLinkState.store_traffic = lambda *_, **__: None  # type: ignore[method-assign]


def receivers(state: SqlLinkState, session_id: str) -> set[int]:
    """For whom the messages are that come in a session: the nodes that are asked, the coordinator for replies."""
    asked = (
        select(ObjectPushSessionRoot.root_object_id, MessageIns.dst_node_id)
        .outerjoin(MessageIns, MessageIns.message_id == ObjectPushSessionRoot.root_object_id)
        .where(ObjectPushSessionRoot.session_id == session_id)
    )
    with state.session() as session:
        rows = session.execute(asked).all()
    return {SUPERLINK_NODE_ID if node is None else int64_to_uint64(node) for _, node in rows}
