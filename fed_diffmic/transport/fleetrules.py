"""What a node that is authenticated may do at our SuperLink: answer what it was asked, and no more.

Flower authenticates a node by its key and then takes whatever it says: a message that names the coordinator as its
sender and another node as its receiver is stored and delivered as a request, and a message to oneself is stored as
often as one likes. Here each of Flower's handlers of the fleet's calls is asked first whether the message or object
is the node's own, and how much of its replies is stored (:mod:`fed_diffmic.transport.quota`). What is refused is
refused with a code that the SuperNode understands (:mod:`fed_diffmic.transport.refusals`), an unknown run included.
"""

from __future__ import annotations

import importlib
import threading
from functools import partial
from typing import Any

from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.proto.fleet_pb2 import PushMessagesRequest, PushMessagesResponse
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    ConfirmMessageReceivedResponse,
    PullObjectRequest,
    PullObjectResponse,
    PushObjectRequest,
    PushObjectResponse,
)

from fed_diffmic.transport.complete import forget_reply
from fed_diffmic.transport.ownmessages import (
    Readable,
    is_asked,
    is_request_to,
    reply_of_session,
    stored_bytes,
    unfinished,
)
from fed_diffmic.transport.quota import Account, Limits
from fed_diffmic.transport.refusals import (
    MALFORMED,
    NOT_ASKED,
    NOT_YOURS,
    RUN_UNKNOWN,
    TOO_LARGE,
    install_refusals,
    refused,
)
from fed_diffmic.transport.replyshape import one_reply

HANDLERS = "flwr.superlink.servicer.fleet.fleet_handlers"
RULED = ("push_messages", "push_object", "pull_object", "confirm_message_received")


def own_messages_only(limits: Limits) -> None:
    """Put our rules before this process' fleet handlers; to be called once, before it serves."""
    handlers: Any = importlib.import_module(HANDLERS)
    install_refusals()
    rules = FleetRules(handlers, limits)
    for name in RULED:
        setattr(handlers, name, getattr(rules, name))


class FleetRules:
    """Flower's handlers with our questions before them.

    Args:
        handlers: Flower's module, or its likeness.
        limits: of each site.
    """

    def __init__(self, handlers: Any, limits: Limits) -> None:
        self._inner = {name: getattr(handlers, name) for name in RULED}
        self._account = Account(limits)
        self._readable = Readable()
        self._announcing = threading.Lock()
        self._runs: set[int] = set()  # that are known

    def push_messages(self, request: PushMessagesRequest, state: Any) -> PushMessagesResponse:
        """Take the announcement of a reply to an open request of this node's."""
        node = request.node.node_id
        message, _ = one_reply(request, self._account.limits.objects)
        metadata = message.metadata
        self._check_run(state, node, metadata.run_id)  # first: on another database a site is another node, too
        if metadata.src_node_id != node or metadata.dst_node_id != SUPERLINK_NODE_ID:
            raise refused(NOT_YOURS, node, f"a message from {metadata.src_node_id} to {metadata.dst_node_id}")
        with self._announcing:  # two announcements at once would each find the other's not there
            if not is_asked(state, node, metadata):
                raise refused(NOT_ASKED, node, f"a reply to {metadata.reply_to_message_id or 'nothing'}")
            self._make_room(state, node, metadata.message_id)
            response: PushMessagesResponse = self._inner["push_messages"](request=request, state=_Strict(state, node))
            if not response.objects_to_push:  # nothing will come that would end the session
                state._cleanup_push_session(response.session_id, cleanup_messages=False)
            return response

    def push_object(self, request: PushObjectRequest, state: Any) -> PushObjectResponse:
        """Take one object of a reply that this node announced, while there is room."""
        node, size = request.node.node_id, len(request.object_content)
        self._check_run(state, node, request.run_id)
        if not request.session_id:  # Flower would look for somebody's
            raise refused(NOT_YOURS, node, "an object of no reply")
        found = reply_of_session(state, request.session_id)
        if found is None:
            return PushObjectResponse(stored=False)  # announce it again
        reply, source = found
        if source is None:
            forget_reply(state, reply)
            self._account.forget(reply)
            raise refused(NOT_ASKED, node, "an object of a reply that nobody waits for")
        if source != node:
            raise refused(NOT_YOURS, node, f"an object of a reply of {source}")
        if not self._take(state, node, reply, size):
            forget_reply(state, reply)
            self._account.forget(reply)
            raise refused(TOO_LARGE, node, f"{size} bytes more of a reply")
        response: PushObjectResponse = PushObjectResponse()
        try:
            response = self._inner["push_object"](request=request, state=state)
        finally:
            if not response.stored:
                self._account.give_back(reply, size)
        return response

    def pull_object(self, request: PullObjectRequest, state: Any) -> PullObjectResponse:
        """Give out an object of a request to this node."""
        node = request.node.node_id
        self._check_run(state, node, request.run_id)
        if not self._readable.holds(state, node, request.run_id, request.object_id):
            raise refused(NOT_YOURS, node, "an object of no request to it")
        response: PullObjectResponse = self._inner["pull_object"](request=request, state=state)
        return response

    def confirm_message_received(
        self, request: ConfirmMessageReceivedRequest, state: Any, store: Any
    ) -> ConfirmMessageReceivedResponse:
        """Forget the content of a request to this node, which has it now."""
        node = request.node.node_id
        self._check_run(state, node, request.run_id)
        if not is_request_to(state, node, request.run_id, request.message_object_id):
            raise refused(NOT_YOURS, node, "the confirmation of no request to it")
        response: ConfirmMessageReceivedResponse = self._inner["confirm_message_received"](
            request=request, state=state, store=store
        )
        return response

    def _check_run(self, state: Any, node: int, run_id: int) -> None:
        """Say it where a run is not known; Flower would answer that it failed itself. No run is ever removed."""
        if run_id in self._runs:
            return
        if run_id not in state.get_run_status({run_id}):
            raise refused(RUN_UNKNOWN, node, f"run {run_id}")
        self._runs.add(run_id)

    def _take(self, state: Any, node: int, reply: str, size: int) -> bool:
        """Count an object; what the coordinator fetched meanwhile is looked for before it is one too many."""
        take = partial(self._account.take, node, reply, size, lambda: stored_bytes(state, reply))
        if take():
            return True
        for gone in unfinished(state, self._account.replies_of(node))[1]:
            self._account.forget(gone)
        return take()

    def _make_room(self, state: Any, node: int, name: str) -> None:
        """A node does one task at a time: what it had begun to deliver before this reply will not come."""
        coming, gone = unfinished(state, [other for other in self._account.replies_of(node) if other != name])
        for other in coming:
            forget_reply(state, other)
        for other in (*coming, *gone):
            self._account.forget(other)


class _Strict:
    """The SuperLink's state, where a message that is not stored is refused: Flower answers that all is well."""

    def __init__(self, state: Any, node: int) -> None:
        self._state, self._node = state, node

    def __getattr__(self, name: str) -> Any:
        return getattr(self._state, name)

    def store_message_and_object_tree(self, message: Any, tree: Any, session_id: str) -> tuple[bool, list[str]]:
        """Flower's, or a refusal that leaves nothing behind."""
        stored = False
        try:
            stored, missing = self._state.store_message_and_object_tree(message, tree, session_id)
        except ValueError as error:
            raise refused(MALFORMED, self._node, str(error)) from error
        finally:
            if not stored:
                self._state._cleanup_push_session(session_id, cleanup_messages=False)
        if not stored:
            raise refused(NOT_ASKED, self._node, "the reply was not stored")
        return stored, missing
