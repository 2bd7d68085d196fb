"""Replies are handed to the coordinator once they are whole.

Flower's SuperLink hands out a reply as soon as a site has announced it, forgets the request, and lets the coordinator
wait for the reply's content, for up to two hours: a site whose link is cut in the middle of its delivery (or that
means harm) would hold up every other site's reply, beyond the round's deadline, and could not deliver again. Here
a reply that is announced but not whole does not count as there yet: nobody waits for it, its request stays, and the
site delivers the rest, or the whole, when it is back. A site that no longer has what it had begun to deliver (it
withdrew, its disk lost it) may give another reply in its place, which Flower refuses while the first one is announced.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flwr.server.superlink.linkstate.sql_linkstate import SqlLinkState
from flwr.supercore.object_store.sql_object_store import SqlObjectStore
from flwr.supercore.state.schema.linkstate_models import MessageRes
from flwr.supercore.state.schema.objectstore_models import ObjectChild, StoredObject
from flwr.supercore.utils import uint64_to_int64
from sqlalchemy import delete, select


def only_whole_replies() -> None:
    """Let this process' SuperLink hand out whole replies only; to be called once, before it serves."""
    inner = SqlLinkState.get_message_res

    def get_message_res(self: SqlLinkState, message_ids: set[str], run_id: int) -> list[Any]:
        return whole_replies(self, message_ids, lambda ids: inner(self, ids, run_id))

    store = SqlLinkState.store_message_res

    def store_message_res(self: SqlLinkState, message: Any) -> str | None:
        make_way(self, message)
        return store(self, message)

    SqlLinkState.get_message_res = get_message_res  # type: ignore[method-assign]
    SqlLinkState.store_message_res = store_message_res  # type: ignore[method-assign]


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
                session.execute(delete(MessageRes).where(MessageRes.message_id == other))
                store.delete(str(other))


class _AnnouncedMeanwhileError(Exception):
    """Undoes the transaction in which replies were claimed that are not whole."""

    def __init__(self, requests: set[str]) -> None:
        super().__init__()
        self.requests = requests


def whole_replies(state: SqlLinkState, message_ids: set[str], claim: Callable[[set[str]], list[Any]]) -> list[Any]:
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
    asked = select(MessageRes.message_id, MessageRes.reply_to_message_id).where(
        MessageRes.reply_to_message_id.in_(message_ids), MessageRes.delivered_at == ""
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
