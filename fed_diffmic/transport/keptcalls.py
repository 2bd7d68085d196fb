"""The calls of a SuperNode's loop, wrapped: a request is kept until its reply is delivered, or will never be.

A request is kept on the disk (:mod:`fed_diffmic.transport.spool`) and handed out again after a crash; nothing that a
coordinator sends is opened here (no bundle is unpacked, no task but a client's is made). A reply that the coordinator
will never take (it does not know the run any more, it waits for it no longer, it is too large) is given up with a line
that says why, and so is one that was refused a bounded number of times for whatever reason: the site is then free
for the next request, where it would otherwise deliver the same reply for ever. Where sites of one machine take turns
(:mod:`fed_diffmic.transport.turn`), nothing of a request's content is asked for before it is this site's turn.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fleet_pb2 import PullMessagesResponse
from flwr.proto.runtime_pb2 import PushAppMessagesRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.inflatable.inflatable_utils import ObjectPushError
from flwr.supercore.run import RunNotRunningException
from flwr.supernode import fleet_http_connection

from fed_diffmic.exchange.failures import REPLY_SIZE, TURN
from fed_diffmic.transport.contact import Reporter
from fed_diffmic.transport.fleet import sentence
from fed_diffmic.transport.messages import failure_message
from fed_diffmic.transport.refusals import TOO_LARGE
from fed_diffmic.transport.spool import DELIVERED, RECEIVED, Spool
from fed_diffmic.transport.turn import Turn

RECEIVES = 10
DELIVERIES = 8
PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0
logger = logging.getLogger(__name__)


@contextmanager
def kept_connection(
    spool: Spool, report: Reporter, turn: Turn, current: list[KeptCalls], *args: Any
) -> Iterator[tuple[Any, ...]]:
    """Flower's connection with its callbacks wrapped; see the module.

    Args:
        spool: of this site.
        report: to the supervisor.
        turn: among the machine's sites.
        current: takes the wrapped callbacks, for who must settle them.
        args: of Flower's ``http_request_response``.
    """
    with fleet_http_connection.http_request_response(*args) as callbacks:
        node_id: int = callbacks[0]
        calls: list[Any] = list(callbacks[1:])
        report.set(connected=True)
        current.append(KeptCalls(spool, report, *calls))
        current[-1].turn = turn
        yield (node_id, *current[-1].callbacks())


class KeptCalls:
    """The callbacks of one connection; the arguments after the report are Flower's, in its order."""

    def __init__(
        self,
        spool: Spool,
        report: Reporter,
        receive: Callable[[], Any],
        send: Callable[..., Any],
        get_run: Callable[[int], Any],
        get_fab: Callable[[str, int], Any],
        pull_object: Callable[[int, str], bytes],
        push_object: Callable[[int, str, str, bytes], None],
        confirm: Callable[[int, str], None],
    ) -> None:
        self._spool, self._report = spool, report
        self._receive, self._send, self._get_run, self._get_fab = receive, send, get_run, get_fab
        self._pull_object, self._push_object, self._confirm = pull_object, push_object, confirm
        self._undelivered: set[str] | None = None
        self._next = 0.0
        self._forgetting = threading.Lock()
        self.over: set[int] = set()
        self.turn = Turn(None, 0.0)
        self._no_turn: int | None = None

    def callbacks(self) -> tuple[Callable[..., Any], ...]:
        """In the order in which Flower's loop takes them."""
        return (self.receive, self.send, self.get_run, self._get_fab, self.pull_object, self.push_object, self.confirm)

    def receive(self) -> Any:
        """Deliver a reply that a crash or a lost link left; then the request in hand, if one is; else the next one."""
        reply = self._spool.reply()
        if reply is not None and not self._delivered(reply):
            return None
        kept = self._spool.request()
        if kept is not None:
            over = _over(kept.messages_list[0].metadata)  # first: nobody waits for a turn with what nobody asks for
            if not over and not self._is_turn(kept.messages_list[0]):
                return None
            if not over and self._spool.count(RECEIVED) <= RECEIVES:
                self._report.set(busy=True)
                return message_from_proto(kept.messages_list[0]), kept.message_object_trees[0]
            logger.warning("a request is given up: its time is over, or its content does not come")
            self._spool.drop()
        self.turn.give()
        self._report.set(busy=False)
        received = self._receive()
        if received is not None:
            message, tree = received
            self._spool.begin(
                PullMessagesResponse(messages_list=[message_to_proto(message)], message_object_trees=[tree])
            )
            self._report.set(busy=True)
            if not self._is_turn(message_to_proto(message)):
                return None
        return received

    def _is_turn(self, request: Any) -> bool:
        """Whether it is this site's turn; where it was waited for too long, the coordinator is told, and asks later."""
        try:
            mine = self.turn.take()
            self._no_turn = None
            if mine:
                return True
        except OSError as error:
            if error.errno != self._no_turn:  # once, not at every look
                logger.warning("the file of the machine's turns (site.turn) cannot be opened: %s", error.strerror)
            self._no_turn = error.errno
        if self.turn.in_vain():
            logger.warning("a request is given back: another site of this machine kept its turn (site.turn_s)")
            self._spool.drop()
            self._say(TURN, message_from_proto(request))
        return False

    def get_run(self, run_id: int) -> Any:
        """The run, as one whose clients are asked, whatever it says it is."""
        run = self._of_run(run_id, self._get_run, run_id)
        run.primary_task_type = TaskType.SERVER_APP
        return run

    def pull_object(self, run_id: int, object_id: str) -> bytes:
        """From the disk if it is there, else from the coordinator and onto the disk."""
        content = self._spool.get(object_id)
        if content is None:
            content = self._of_run(run_id, self._pull_object, run_id, object_id)
            self._spool.put(object_id, content)
        return content

    def confirm(self, run_id: int, message_id: str) -> None:
        """Tell the coordinator that the request arrived whole."""
        self._of_run(run_id, self._confirm, run_id, message_id)

    def send(self, message: Any, tree: Any, runtime: float) -> tuple[set[str], str]:
        """Announce the reply; what of its content the coordinator still lacks follows."""
        self._undelivered = {""}
        missing, session = self._while_wanted(self._send, message, tree, runtime)
        self._undelivered = set(missing)
        return missing, session

    def push_object(self, run_id: int, session: str, object_id: str, content: bytes) -> None:
        """Deliver one object of the reply."""
        self._while_wanted(self._push_object, run_id, session, object_id, content)
        if self._undelivered is not None:
            self._undelivered.discard(object_id)

    def _delivered(self, reply: PushAppMessagesRequest) -> bool:
        """Send a kept reply as the very message that it was; false: it stays, and is tried again after a pause.

        Whatever the coordinator answers, it is asked :data:`DELIVERIES` times at most, over every start of this
        process: an answer that is always the same would otherwise hold the site for ever.

        Raises:
            httpx.TransportError: the way to the coordinator failed for good; the reply stays.
        """
        self._report.set(busy=True)
        if time.monotonic() < self._next:
            return False
        message, tree = message_from_proto(reply.messages_list[0]), reply.message_object_trees[0]
        if _over(message.metadata):
            return self._give_up("its time is over")
        if self._spool.counted(DELIVERED) >= DELIVERIES:
            return self._give_up(f"the coordinator did not take it {DELIVERIES} times")
        tries = self._spool.count(DELIVERED)  # before: an end of this process in the middle of it counts as well
        try:
            whole = self._send_all(message, tree)
        except RunNotRunningException:
            return True
        except httpx.TransportError:
            self._spool.count(DELIVERED, -1)
            raise
        except Exception as error:  # whatever was answered, and whatever Flower makes of it
            self._next = time.monotonic() + min(LONGEST_PAUSE_S, PAUSE_S * 2.0**tries)
            logger.warning("a reply was not taken (%d of %d times): %s", tries, DELIVERIES, sentence(error))
            return False
        if not whole:
            return self._give_up("a part of it is lost")
        self.settle()
        return True

    def _send_all(self, message: Any, tree: Any) -> bool:
        """Announce a reply and deliver what of it is missing there; false: a part of it is not here any more."""
        missing, session = self.send(message, tree, 0.0)
        for object_id in missing:
            content = self._spool.get(object_id)
            if content is None:
                return False
            self.push_object(message.metadata.run_id, session, object_id, content)
        return True

    def _give_up(self, why: str) -> bool:
        """Forget the request and its reply, and say so."""
        logger.warning("an undelivered reply is dropped: %s", why)
        self._report.drop(why)
        self._spool.drop()
        return True

    def settle(self) -> None:
        """After Flower's loop tried to deliver: forget the request if the reply is there, whole."""
        if self._undelivered is not None and not self._undelivered:
            self._spool.drop()
            self.turn.give()
        self._undelivered = None

    def _of_run(self, run_id: int, call: Callable[..., Any], *args: Any) -> Any:
        """A call by which a request comes here; notes the run if it is over meanwhile, for who gave out its task."""
        try:
            return self._while_wanted(call, *args)
        except RunNotRunningException:
            self.over.add(run_id)
            raise

    def _while_wanted(self, call: Callable[..., Any], *args: Any) -> Any:
        try:
            return call(*args)
        except RunNotRunningException:
            self._forget()
            raise

    def _forget(self) -> None:
        """The request in hand, and what is computed for it, once, although pieces travel two at a time."""
        with self._forgetting:
            request, refusal = self._spool.request(), self._report.refusal
            if request is None:
                return
            why = "the run is over" if refusal is None else refusal.sentence
            if self._spool.has_reply():
                self._give_up(why)
            else:
                logger.warning("a request is given up: %s", why)
                self._spool.drop()
        if refusal is TOO_LARGE:
            self._say(REPLY_SIZE, message_from_proto(request.messages_list[0]))

    def _say(self, code: int, request: Any) -> None:
        """Answer with a failure in a reply's place, so that the coordinator need not wait for its deadline."""
        answer = failure_message(code, request)
        answer.metadata.__dict__["_message_id"] = answer.object_id
        content = {name: part.deflate() for name, part in get_all_nested_objects(answer).items()}
        try:
            missing, session = self._send(answer, get_object_tree(answer), 0.0)
            for name in missing:
                self._push_object(request.metadata.run_id, session, name, content[name])
        except (httpx.HTTPError, RunNotRunningException, ObjectPushError) as error:
            logger.warning("the coordinator was not told: %s", sentence(error))


def _over(metadata: Any) -> bool:
    """Whether nobody waits for a message any more."""
    return bool(time.time() >= metadata.created_at + metadata.ttl)
