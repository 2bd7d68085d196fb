"""Questions that wait at the SuperLink until there is something to answer, and requests that are lost on the way.

Flower's SuperNodes and its ServerApp ask again and again whether there is a message for them. Each question is a
request with its signature, its transactions and some milliseconds of processor time, and what comes between two of
them lies there meanwhile. Here a question is held, before Flower sees it, until the **whole** of a message for whoever
asks is in the store, at most :data:`HOLD_S` seconds: so it is answered at once, and a message whose content is still
coming is not handed out, which would let its receiver try for its objects in pauses of a second and more.

Whoever holds a question may be gone when it is answered, without a word where a link is cut; Flower counts the message
as delivered. A site asks for a request only when it has none, and confirms one that it has whole. So what was handed
out and never confirmed is handed out again to a site that asks.
"""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from flwr.common.constant import SUPERLINK_NODE_ID, Status
from flwr.proto.fleet_pb2 import PullMessagesRequest
from flwr.server.superlink.linkstate.sql_linkstate import SqlLinkState
from flwr.supercore.date import now
from flwr.supercore.object_store.sql_object_store import SqlObjectStore
from flwr.supercore.state.schema.corestate_models import ObjectPushSessionRoot
from flwr.supercore.state.schema.linkstate_models import MessageIns, MessageRes
from flwr.supercore.state.schema.objectstore_models import StoredObject
from flwr.supercore.utils import int64_to_uint64, uint64_to_int64
from sqlalchemy import exists, select, update

PULLS = "/v1/fleet/pull-messages"
HOLD_S, COORDINATOR_S = 5.0, 2.0
"""Longest waits of a site's question and of the coordinator's, which has deadlines and pauses to look at meanwhile."""
REMEMBERED = 4096
AGAIN = 5
App = Callable[[MutableMapping[str, Any], Any, Any], Awaitable[None]]


class Bells:
    """One bell for each node: rung where there may be something for it, silent once it asked.

    Args:
        hold_s: seconds that a question waits at most.
    """

    def __init__(self, hold_s: float = HOLD_S) -> None:
        self.hold_s = hold_s
        self._loop: asyncio.AbstractEventLoop | None = None
        self._rung: OrderedDict[int, asyncio.Event] = OrderedDict()

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
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(lambda: self._bell(node).set())

    def close(self) -> None:
        """Hold no question any more: the SuperLink ends, and whoever asks is answered before it does."""
        self.hold_s = 0.0
        for bell in self._rung.values():
            bell.set()

    async def answer(self, node: int, app: App, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        """Let the application answer a question once there may be something, or nothing came in time.

        Args:
            node: who asks, as it says.
            app: Flower's application, which judges whether it is so.
            scope, receive, send: of a request whose body is replayed by ``receive`` and then waits for its end.
        """
        self._loop = asyncio.get_running_loop()
        body = await receive()
        if not await self._wait(node, receive):
            return  # whoever asked is gone: nothing is given out that nobody takes
        bell = self._bell(node)
        bell.clear()
        given = [body]

        async def replayed() -> MutableMapping[str, Any]:
            return given.pop() if given else await receive()

        async def watched(message: MutableMapping[str, Any]) -> None:
            if message.get("body") or message.get("status", 200) != 200:
                bell.set()  # something came, and there may be more; or the node's question was asked by another one
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

    async def _wait(self, node: int, receive: Any) -> bool:
        """Whether whoever asked is still there when the bell rings, or the time is over."""
        bell = self._bell(node)
        if bell.is_set():
            return True
        hold_s = min(self.hold_s, COORDINATOR_S) if node == SUPERLINK_NODE_ID else self.hold_s
        rung, gone = asyncio.ensure_future(bell.wait()), asyncio.ensure_future(_left(receive))
        try:
            done, _ = await asyncio.wait({rung, gone}, timeout=hold_s, return_when=asyncio.FIRST_COMPLETED)
            return gone not in done
        finally:
            rung.cancel()
            gone.cancel()

    def _bell(self, node: int) -> asyncio.Event:
        """A node's; of one that was not heard of it is rung, for nobody knows what is there."""
        found = self._rung.get(node)
        if found is None:
            found = self._rung[node] = asyncio.Event()
            found.set()
        self._rung.move_to_end(node)
        while len(self._rung) > REMEMBERED:
            self._rung.popitem(last=False)
        return found


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


def give_again() -> None:
    """Let this process' SuperLink hand out again what no site confirmed; once, before it serves."""
    inner = SqlLinkState.get_message_ins
    given: OrderedDict[str, int] = OrderedDict()

    def get_message_ins(self: SqlLinkState, node_id: int, limit: int | None, **named: Any) -> list[Any]:
        with self.session():
            if node_id != SUPERLINK_NODE_ID:
                take_back(self, node_id, given)
            return inner(self, node_id, limit, **named)

    SqlLinkState.get_message_ins = get_message_ins  # type: ignore[method-assign]


def take_back(state: SqlLinkState, node: int, given: OrderedDict[str, int]) -> None:
    """What was handed out to a node that asks for its next request, and that it never confirmed, is its next one.

    A confirmed request has no content here any more, and one to which a reply was announced was received. A site gives
    up a request of a run that is over, and one whose content does not come: neither is handed out without end.

    Args:
        state: the SuperLink's.
        node: who asks.
        given: how often each was handed out again; added to.
    """
    if not isinstance(state.object_store, SqlObjectStore):  # in memory: never ours
        return
    lost = select(MessageIns.message_id, MessageIns.run_id).where(
        MessageIns.dst_node_id == uint64_to_int64(node),
        MessageIns.delivered_at != "",
        MessageIns.created_at + MessageIns.ttl > now().timestamp(),
        exists().where(StoredObject.object_id == MessageIns.message_id),
        ~exists().where(MessageRes.reply_to_message_id == MessageIns.message_id),
    )
    with state.session() as session:
        found = {str(name): int64_to_uint64(run) for name, run in session.execute(lost) if run is not None}
        found = {name: run for name, run in found.items() if given.get(name, 0) < AGAIN}
        known = state.get_run_status(set(found.values())) if found else {}
        back = [name for name, run in found.items() if run in known and known[run].status != Status.FINISHED]
        for name in back:
            given[name] = given.get(name, 0) + 1
            given.move_to_end(name)
        while len(given) > REMEMBERED:
            given.popitem(last=False)
        if back:
            session.execute(update(MessageIns).where(MessageIns.message_id.in_(back)).values(delivered_at=""))
