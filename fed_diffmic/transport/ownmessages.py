"""Which messages and objects in the SuperLink's database are a node's own."""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import Any

from flwr.proto.message_pb2 import Metadata
from flwr.supercore.state.schema.corestate_models import ObjectPushSessionRoot
from flwr.supercore.state.schema.linkstate_models import MessageIns, MessageRes
from flwr.supercore.state.schema.objectstore_models import ObjectChild, StoredObject
from flwr.supercore.utils import int64_to_uint64, uint64_to_int64
from sqlalchemy import func, select

from fed_diffmic.transport.complete import lacks_content

REMEMBERED = 1024


def is_asked(state: Any, node: int, metadata: Metadata) -> bool:
    """Whether a reply answers a request that is open: to this node, of this run, in its time, not answered.

    A reply that was announced and did not come whole does not count; the node may give another (see
    :mod:`fed_diffmic.transport.complete`).
    """
    with state.session() as session:
        request = session.get(MessageIns, metadata.reply_to_message_id) if metadata.reply_to_message_id else None
        if request is None or request.dst_node_id != uint64_to_int64(node):
            return False
        if request.run_id != uint64_to_int64(metadata.run_id) or request.created_at + request.ttl <= time.time():
            return False
        given = session.scalars(
            select(MessageRes).where(MessageRes.reply_to_message_id == metadata.reply_to_message_id)
        ).first()
        if given is None or given.message_id == metadata.message_id:
            return True
        own = given.src_node_id == uint64_to_int64(node) and given.delivered_at == ""
        return own and lacks_content(state.object_store, str(given.message_id))


def is_request_to(state: Any, node: int, run_id: int, message_id: str) -> bool:
    """Whether the message is a request to this node."""
    return message_id in requests_to(state, node, run_id)


def requests_to(state: Any, node: int, run_id: int) -> set[str]:
    """The requests to a node that the coordinator waits for."""
    asked = select(MessageIns.message_id).where(
        MessageIns.dst_node_id == uint64_to_int64(node), MessageIns.run_id == uint64_to_int64(run_id)
    )
    with state.session() as session:
        return {str(name) for name in session.scalars(asked)}


class Readable:
    """Which objects a node may read: those of the requests to it."""

    def __init__(self) -> None:
        self._objects: OrderedDict[str, frozenset[str]] = OrderedDict()  # of each request, which never changes

    def holds(self, state: Any, node: int, run_id: int, object_id: str) -> bool:
        """Whether the object is part of a request to this node."""
        return any(object_id in self._below(state, request) for request in requests_to(state, node, run_id))

    def _below(self, state: Any, request: str) -> frozenset[str]:
        known = self._objects.get(request)
        if known is None:
            known = frozenset(objects_below(state, request))
            self._objects[request] = known
            while len(self._objects) > REMEMBERED:
                self._objects.popitem(last=False)
        return known


def objects_below(state: Any, root: str) -> set[str]:
    """A message's objects, itself included."""
    with state.session() as session:
        found, level = {root}, {root}
        while level:
            below = session.scalars(select(ObjectChild.child_id).where(ObjectChild.parent_id.in_(level)))
            level = set(below) - found
            found |= level
        return found


def stored_bytes(state: Any, root: str) -> int:
    """Bytes of a message's objects that came."""
    size = select(func.coalesce(func.sum(func.length(StoredObject.content)), 0))
    with state.session() as session:
        return int(session.scalar(size.where(StoredObject.object_id.in_(objects_below(state, root)))))


def reply_of_session(state: Any, session_id: str) -> tuple[str, int | None] | None:
    """The reply that a session of pushing objects is for, and whose it is (none: nobody waits for it); or none."""
    with state.session() as session:
        root = session.scalar(
            select(ObjectPushSessionRoot.root_object_id).where(ObjectPushSessionRoot.session_id == session_id)
        )
        if root is None:
            return None
        source = session.scalar(select(MessageRes.src_node_id).where(MessageRes.message_id == root))
        return str(root), None if source is None else int64_to_uint64(source)


def unfinished(state: Any, names: list[str]) -> tuple[list[str], list[str]]:
    """Of replies: those that are still coming, and those of which nothing is stored any more."""
    coming, gone = [], []
    for name in names:
        if name not in state.object_store:
            gone.append(name)
        elif lacks_content(state.object_store, name):
            coming.append(name)
    return coming, gone
