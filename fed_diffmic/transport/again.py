"""Requests that are lost on the way to a site are handed out again.

Whoever asks for a request may be gone when it is answered, without a word where a link is cut; Flower counts the
message as delivered. A site asks for a request only when it has none, and confirms one that it has whole. So what was
handed out and never confirmed is handed out again to a site that asks.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from flwr.common.constant import SUPERLINK_NODE_ID, Status
from flwr.server.superlink.linkstate.sql_linkstate import SqlLinkState
from flwr.supercore.date import now
from flwr.supercore.object_store.sql_object_store import SqlObjectStore
from flwr.supercore.state.schema.linkstate_models import MessageIns, MessageRes
from flwr.supercore.state.schema.objectstore_models import StoredObject
from flwr.supercore.utils import int64_to_uint64, uint64_to_int64
from sqlalchemy import exists, select, update

REMEMBERED = 4096
AGAIN = 5


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
    lost = (
        MessageIns.dst_node_id == uint64_to_int64(node),
        MessageIns.delivered_at != "",
        MessageIns.created_at + MessageIns.ttl > now().timestamp(),
        exists().where(StoredObject.object_id == MessageIns.message_id),
        ~exists().where(MessageRes.reply_to_message_id == MessageIns.message_id),
    )
    asked = select(MessageIns.message_id, MessageIns.run_id).where(*lost)
    with state.session() as session:
        found = {str(name): int64_to_uint64(run) for name, run in session.execute(asked) if run is not None}
        found = {name: run for name, run in found.items() if given.get(name, 0) < AGAIN}
        known = state.get_run_status(set(found.values())) if found else {}
        back = [name for name, run in found.items() if run in known and known[run].status != Status.FINISHED]
        for name in back:
            given[name] = given.get(name, 0) + 1
            given.move_to_end(name)
        while len(given) > REMEMBERED:
            given.popitem(last=False)
        if back:  # looked at again where it is written: a confirmation may have come in between
            session.execute(update(MessageIns).where(MessageIns.message_id.in_(back), *lost).values(delivered_at=""))
