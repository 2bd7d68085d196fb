"""The SuperNode's memory, with one change: a task whose worker is gone goes to the next worker.

Stock Flower waits two heartbeats for a worker that was killed and then tells the coordinator that the site failed.
Here the supervisor starts a new worker, and its first question for work puts the task back (the worker has one
task at a time, so one that asks for another has lost what was given out before). The new worker answers from the
kept update if there is one. A request that was given out :data:`ATTEMPTS` times, each time to a worker that did not
live to answer, is answered with Flower's own error.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from flwr.app import Message
from flwr.common.constant import Status, SubStatus
from flwr.common.serde import message_to_proto
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    AcquireTaskResponse,
    PushAppMessagesRequest,
    PushTaskOutputRequest,
    PushTaskOutputResponse,
)
from flwr.proto.task_pb2 import Task, TaskStatus
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.object_store.object_store import NoObjectInStoreError
from flwr.supernode.nodestate.in_memory_nodestate import CLIENT_APP_CRASHED_ERROR, InMemoryNodeState, MessageEntry
from flwr.supernode.nodestate.nodestate_factory import NodeStateFactory
from flwr.supernode.servicer.runtime import runtime_handlers

from fed_diffmic.transport.spool import Spool

ATTEMPTS = 5
LOOK_S = 0.02
logger = logging.getLogger(__name__)


class KeptNodeState(InMemoryNodeState):
    """Tasks whose worker is gone are put back instead of failed.

    Args:
        object_store: Flower's.
        spool: where the content of the request in hand still is.
        seen: called whenever the worker is heard of.
    """

    def __init__(self, object_store: Any, spool: Spool, seen: Callable[[], None]) -> None:
        super().__init__(object_store)
        self.lock_task_store: Any = threading.RLock()  # Flower's cannot be taken twice; always before that of messages
        self.spool = spool
        self.seen = seen
        self._kept = ""

    def get_task_by_token(self, token: str) -> Task | None:
        """The task that a worker's token stands for; every call of a worker comes through here."""
        self.seen()
        return super().get_task_by_token(token)

    def _cleanup_expired_task_tokens_locked(self) -> None:
        """Nothing expires by the clock: the supervisor watches the worker, and a new one puts tasks back."""

    def get_messages_legacy(
        self, *, run_ids: Sequence[int] | None = None, is_reply: bool | None = None, limit: int | None = None
    ) -> Sequence[Message]:
        """Flower's, but a reply is seen once it is whole and kept: nothing is sent of one that may never be."""
        if is_reply:
            with self.lock_task_store, self.lock_msg_store:
                partial = [
                    entry
                    for entry in self.msg_store.values()
                    if entry.message.metadata.reply_to_message_id and not entry.is_retrieved and not self._keep(entry)
                ]
                for entry in partial:
                    entry.is_retrieved = True
                found = super().get_messages_legacy(run_ids=run_ids, is_reply=is_reply, limit=limit)
                for entry in partial:
                    entry.is_retrieved = False
                return found
        return super().get_messages_legacy(run_ids=run_ids, is_reply=is_reply, limit=limit)

    def keep_replies(self) -> None:
        """Keep what is handed in for the request in hand, whoever sends it and whenever.

        The loop that sends replies may stand for days in the confirmation of the request, where the coordinator
        cannot be reached; what was computed meanwhile would be lost with this process.
        """
        with self.lock_task_store, self.lock_msg_store, self.spool.lock:
            kept = self.spool.request()
            asked = "" if kept is None else kept.messages_list[0].metadata.message_id
            for entry in self.msg_store.values():
                if asked and entry.message.metadata.reply_to_message_id == asked and not entry.is_retrieved:
                    self._keep(entry)

    def _keep(self, entry: MessageEntry) -> bool:
        """Whether a reply is whole; then it is kept on the disk from here on."""
        message_id = entry.message.metadata.message_id
        if self._kept == message_id and self.spool.has_reply():
            return True
        if not self._is_whole(message_id):
            return False
        tree = self.object_store.get_object_tree(message_id)
        for node in iterate_object_tree(tree):
            self.spool.put(node.object_id, self.object_store.get(node.object_id) or b"")
        self.spool.keep_reply(
            PushAppMessagesRequest(messages_list=[message_to_proto(entry.message)], message_object_trees=[tree])
        )
        self._kept = message_id
        return True

    def put_back(self) -> None:
        """Make tasks that were given out but not finished available again, with their content."""
        with self.lock_task_store:
            given = [t for t in self.task_store.values() if t.status.status in (Status.STARTING, Status.RUNNING)]
            for task in given:
                record = self.task_token_store.pop(task.task_id, None)
                if record is not None:
                    self.task_token_to_task_id.pop(record.token, None)
                if not self.spool.has_reply() and self._restore(task.run_id):
                    logger.warning("the worker that had a task is gone; the task goes to the next one")
                    task.starting_at = task.running_at = ""
                    task.status.CopyFrom(TaskStatus(status=Status.PENDING, sub_status="", details=""))
                else:
                    self._end(task)

    def give_up(self) -> None:
        """Answer the request in hand with an error: no worker lives to do it."""
        with self.lock_task_store:
            pending = [t for t in self.task_store.values() if t.status.status == Status.PENDING]
            for task in pending:
                self._end(task)
        with self.lock_msg_store:
            for entry in self.msg_store.values():
                entry.is_retrieved = entry.is_retrieved or not entry.message.metadata.reply_to_message_id
        self._store_error_replies({task.run_id for task in pending}, CLIENT_APP_CRASHED_ERROR)

    def abandon(self, run_id: int) -> None:
        """End what is in hand of a run that is over.

        A request whose content will never come whole would hold its worker, which asks for it again and again, for two
        hours; and the next request would find nobody.
        """
        with self.lock_task_store, self.lock_msg_store:
            for task in self.task_store.values():
                if task.run_id == run_id and task.status.status != Status.FINISHED:
                    record = self.task_token_store.pop(task.task_id, None)
                    if record is not None:
                        self.task_token_to_task_id.pop(record.token, None)
                    self._end(task)
            over = [key for key, entry in self.msg_store.items() if entry.message.metadata.run_id == run_id]
            self.delete_messages(message_ids=over)
            for message_id in over:
                self.object_store.delete(message_id)

    def pending(self) -> bool:
        """Whether a task waits for a worker."""
        with self.lock_task_store:
            return any(t.status.status == Status.PENDING for t in self.task_store.values())

    def comes(self) -> bool:
        """Whether a request that no worker was given yet is still on its way.

        A worker that is given one asks for what is not there, and asks again after a second, after two, after four.
        """
        with self.lock_task_store, self.lock_msg_store:
            waiting = [
                entry.message.metadata.message_id
                for entry in self.msg_store.values()
                if not entry.message.metadata.reply_to_message_id and not entry.is_retrieved
            ]
            return any(not self._is_whole(message_id) for message_id in waiting)

    def _is_whole(self, message_id: str) -> bool:
        try:
            tree = self.object_store.get_object_tree(message_id)
        except NoObjectInStoreError:
            return False
        return all(self.object_store.get(node.object_id) for node in iterate_object_tree(tree))

    def _restore(self, run_id: int) -> bool:
        """Put the request's content back into the store; false if the request was answered or is not whole."""
        kept = self.spool.request()
        if kept is None:
            return False
        message_id = kept.messages_list[0].metadata.message_id
        with self.lock_msg_store:
            entry = self.msg_store.get(message_id)
            if entry is None or entry.message.metadata.run_id != run_id:
                return False
            for object_id in self.object_store.preregister(run_id, kept.message_object_trees[0]):
                content = self.spool.get(object_id)
                if content is None:
                    return False
                self.object_store.put(object_id, content)
            for other in list(self.msg_store.values()):  # what the lost worker had begun to hand in
                if other.message.metadata.reply_to_message_id == message_id:
                    self.msg_store.pop(other.message.metadata.message_id, None)
                    self.object_store.delete(other.message.metadata.message_id)
            entry.is_retrieved = False
        return True

    def _end(self, task: Task) -> None:
        task.status.CopyFrom(
            TaskStatus(status=Status.FINISHED, sub_status=SubStatus.FAILED, details="no worker lived to finish it")
        )


class KeptStateFactory(NodeStateFactory):
    """Hands out one :class:`KeptNodeState`."""

    def __init__(self, spool: Spool, seen: Callable[[], None]) -> None:
        super().__init__(ObjectStoreFactory())
        self._state = KeptNodeState(self.objectstore_factory.store(), spool, seen)

    def state(self) -> KeptNodeState:
        """The one state of this SuperNode."""
        return self._state


class Handlers:
    """Flower's handlers of the worker's calls; those that give out a task and take what came of it are ours.

    Args:
        spool: counts how often the request in hand is given out.
        hold_s: seconds that a worker's question waits for a task at most. Looking here costs nothing, where another
            question costs both processes some milliseconds.
    """

    def __init__(self, spool: Spool, hold_s: float = 0.0) -> None:
        self._spool, self._hold = spool, hold_s

    def __getattr__(self, name: str) -> Any:
        return getattr(runtime_handlers, name)

    def acquire_task(self, request: AcquireTaskRequest, state: KeptNodeState) -> AcquireTaskResponse:
        """Give out the waiting task, first putting back what the worker (a new one) was given before."""
        state.seen()
        state.put_back()
        if state.pending() and self._spool.attempts >= ATTEMPTS:
            logger.error("a request ended %d workers and is not given to another", ATTEMPTS)
            state.give_up()
        until = time.monotonic() + self._hold
        while (state.comes() or not state.pending()) and time.monotonic() < until:
            time.sleep(LOOK_S)
        if state.comes():
            return AcquireTaskResponse()
        response = runtime_handlers.acquire_task(request, state)
        if response.token:
            self._spool.attempt()
        return response

    def push_task_output(
        self, request: PushTaskOutputRequest, state: KeptNodeState, task: Task
    ) -> PushTaskOutputResponse:
        """The worker has handed everything in: keep it before it is told so."""
        state.keep_replies()
        return runtime_handlers.push_task_output(request, state, task)
