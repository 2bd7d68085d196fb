"""Replies are handed to the coordinator once they are whole.

Flower's SuperLink hands out a reply as soon as a site has announced it, forgets the request, and lets the coordinator
wait for the reply's content, for up to two hours: a site whose link is cut in the middle of its delivery (or that
means harm) would hold up every other site's reply, beyond the round's deadline, and could not deliver again. Here
a reply that is announced but not whole does not count as there yet: nobody waits for it, its request stays, and the
site delivers the rest, or the whole, when it is back. A site that no longer has what it had begun to deliver (it
withdrew, its disk lost it) may give another reply in its place, which Flower refuses while the first one is announced.

And what nobody will fetch does not stay: with a request that is over go its content, which its site never took, and
a reply that was never whole or never fetched; Flower deletes their rows and keeps their content to the end of the run.
A request whose time is over goes when its site is asked the next thing, for nobody may ask for its reply again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from flwr.server.superlink.linkstate.sql_linkstate import SqlLinkState
from flwr.supercore.object_store.sql_object_store import SqlObjectStore
from flwr.supercore.state.schema.corestate_models import ObjectPushSessionRoot
from flwr.supercore.state.schema.linkstate_models import MessageIns, MessageRes
from flwr.supercore.state.schema.objectstore_models import ObjectChild, StoredObject
from flwr.supercore.utils import uint64_to_int64
from sqlalchemy import delete, select


def only_complete_replies() -> None:
    """Let this process' SuperLink hand out whole replies only; to be called once, before it serves."""
    inner = SqlLinkState.get_message_res

    def get_message_res(self: SqlLinkState, message_ids: set[str], run_id: int) -> list[Any]:
        return complete_replies(self, message_ids, lambda ids: inner(self, ids, run_id))

    store = SqlLinkState.store_message_res

    def store_message_res(self: SqlLinkState, message: Any) -> str | None:
        make_way(self, message)
        return store(self, message)

    ask, drop = SqlLinkState.store_message_ins, SqlLinkState.delete_messages

    def store_message_ins(self: SqlLinkState, message: Any) -> str | None:
        self.delete_messages(too_late(self, message.metadata.dst_node_id))
        return ask(self, message)

    def delete_messages(self: SqlLinkState, message_ins_ids: set[str]) -> None:
        with self.session():
            forget_content(self, message_ins_ids)
            drop(self, message_ins_ids)

    SqlLinkState.get_message_res = get_message_res  # type: ignore[method-assign]
    SqlLinkState.store_message_res = store_message_res  # type: ignore[method-assign]
    SqlLinkState.store_message_ins = store_message_ins  # type: ignore[method-assign]
    SqlLinkState.delete_messages = delete_messages  # type: ignore[method-assign]


def make_way(state: SqlLinkState, message: Any) -> None:
    """Forget what a node announced in reply to the same request and never delivered whole, for what it says now.

    A reply that is whole, that was handed out, or that another node gave stays: the new one is refused then.
    """
    store, metadata = state.object_store, message.metadata
    if not isinstance(store, SqlObjectStore):  # in memory: never ours
        return
    asked = select(MessageRes.message_id).where(
        MessageRes.reply_to_message_id == metadata.reply_to_message_id,
        MessageRes.message_id != metadata.message_id,
        MessageRes.src_node_id == uint64_to_int64(metadata.src_node_id),
        MessageRes.delivered_at == "",
    )
    with state.session() as session:
        for other in session.scalars(asked).all():
            if lacks_content(store, str(other)):
                forget_reply(state, str(other))


def forget_reply(state: SqlLinkState, reply: str) -> None:
    """Remove a reply: its row, what came of its content, the sessions in which that came; not one that is handed out.

    Of one that is handed out the coordinator still fetches the content, row or no row.
    """
    with state.session() as session:
        row = select(MessageRes.delivered_at).where(MessageRes.message_id == reply)
        if session.scalar(row):
            return
        session.execute(delete(MessageRes).where(MessageRes.message_id == reply))
        pushed = select(ObjectPushSessionRoot.session_id).where(ObjectPushSessionRoot.root_object_id == reply)
        for session_id in session.scalars(pushed).all():
            state._cleanup_push_session(session_id, cleanup_messages=False)
        state.object_store.delete(reply)


def too_late(state: SqlLinkState, node: int) -> set[str]:
    """The requests to a node whose time is over: nobody asks for their replies any more."""
    asked = select(MessageIns.message_id).where(
        MessageIns.dst_node_id == uint64_to_int64(node), MessageIns.created_at + MessageIns.ttl <= time.time()
    )
    with state.session() as session:
        return {str(name) for name in session.scalars(asked)}


def forget_content(state: SqlLinkState, requests: set[str]) -> None:
    """Remove the content of requests that are over, and of replies to them that were not handed out."""
    if not requests or not isinstance(state.object_store, SqlObjectStore):  # in memory: never ours
        return
    waiting = select(MessageRes.message_id).where(
        MessageRes.reply_to_message_id.in_(requests), MessageRes.delivered_at == ""
    )
    with state.session() as session:
        for reply in session.scalars(waiting).all():
            forget_reply(state, str(reply))
    for request in requests:
        state.object_store.delete(request)


class _AnnouncedMeanwhileError(Exception):
    """Undoes the transaction in which replies were claimed that are not whole."""

    def __init__(self, requests: set[str]) -> None:
        super().__init__()
        self.requests = requests


def complete_replies(state: SqlLinkState, message_ids: set[str], claim: Callable[[set[str]], list[Any]]) -> list[Any]:
    """The replies that ``claim`` hands out, whole ones only.

    A reply may be announced between the look at what is there and the claim: what was claimed is looked at again, and
    the claim undone where it is not whole.

    Args:
        state: the SuperLink's.
        message_ids: the requests.
        claim: Flower's own; marks replies as delivered.
    """
    left = set(message_ids)
    while True:
        left -= begun(state, left)
        try:
            with state.session():
                replies = claim(set(left))
                late = {m.metadata.reply_to_message_id for m in replies if _lacks_content(state, m.metadata.message_id)}
                if late:
                    raise _AnnouncedMeanwhileError(late)
                return replies
        except _AnnouncedMeanwhileError as error:
            left -= error.requests


def _lacks_content(state: SqlLinkState, object_id: str) -> bool:
    store = state.object_store
    return isinstance(store, SqlObjectStore) and bool(object_id) and lacks_content(store, object_id)


def begun(state: SqlLinkState, message_ids: set[str]) -> set[str]:
    """Those requests whose reply was announced and is not whole."""
    if not message_ids:
        return set()
    store = state.object_store
    if not isinstance(store, SqlObjectStore):  # in memory: never ours
        return set()
    asked = (  # of a request whose time is over Flower says so itself, and forgets both
        select(MessageRes.message_id, MessageRes.reply_to_message_id)
        .join(MessageIns, MessageIns.message_id == MessageRes.reply_to_message_id)
        .where(MessageRes.reply_to_message_id.in_(message_ids), MessageRes.delivered_at == "")
        .where(MessageIns.created_at + MessageIns.ttl > time.time())
    )
    with state.session() as session:
        replies = session.execute(asked).all()
    return {str(request) for reply, request in replies if lacks_content(store, str(reply))}


def lacks_content(store: SqlObjectStore, object_id: str) -> bool:
    """Whether an object that was announced, or one below it, has not come yet."""
    with store.session() as session:
        found, level = {object_id}, {object_id}
        while level:
            below = session.scalars(select(ObjectChild.child_id).where(ObjectChild.parent_id.in_(level)))
            level = set(below) - found
            found |= level
        missing = select(StoredObject.object_id).where(
            StoredObject.object_id.in_(found), StoredObject.is_available == 0
        )
        return session.scalars(missing.limit(1)).first() is not None
