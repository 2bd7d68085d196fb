"""A SuperNode's way to the SuperLink, as Flower has it, with what Flower leaves out.

The callbacks that Flower's loop uses are wrapped: a request is kept on the disk until its reply is delivered
(:mod:`fed_diffmic.transport.spool`) and handed out again after a crash; nothing that a coordinator sends is opened
here (no bundle is unpacked, no task but a client's is made); a heartbeat that fails once does not end all heartbeats;
every failure becomes a sentence for the supervisor.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fleet_pb2 import ActivateNodeRequest, ActivateNodeResponse, PullMessagesResponse
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import PushAppMessagesRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.heartbeat import HeartbeatSender
from flwr.supercore.retry import RetryInvoker, make_simple_http_retry_invoker
from flwr.supercore.retry.retry_invoker import exponential
from flwr.supercore.run import RunNotRunningException
from flwr.supernode import fleet_http_connection
from flwr.supernode.fleet_http_client import FleetHttpClient

from fed_diffmic.files import atomic_write
from fed_diffmic.transport.contact import Reporter
from fed_diffmic.transport.spool import Spool

RECEIVES = 5
logger = logging.getLogger(__name__)
UNKNOWN = (
    "the coordinator does not accept this site: its key is not in the roster (any more), or this machine's clock is"
    " wrong, or the coordinator was started anew"
)
PASSING = ("timed out", "unexpected_eof", "eof occurred")
STATUS_WORDS = {
    401: UNKNOWN,
    403: "the coordinator refuses this site",
    404: "the address does not answer as a coordinator does",
    407: "the proxy wants a user and a password",
    412: UNKNOWN,
    413: "the coordinator finds a message too large",
    429: "the coordinator has too many connections from this address",
}


def sentence(error: BaseException) -> str:
    """What is wrong with the way to the coordinator, in words (no address, no file)."""
    if isinstance(error, httpx.HTTPStatusError):
        code = error.response.status_code
        return STATUS_WORDS.get(code, f"the coordinator answered with status {code}")
    text = str(error).lower()
    if passes(error):
        return "the coordinator does not answer in time" if "timed out" in text else "the coordinator cannot be reached"
    if any(word in text for word in ("certificate", "ssl", "tls")):
        return f"no trusted connection: {_tls_words(text)}"
    if isinstance(error, httpx.ProxyError):
        return "the proxy does not let the connection through"
    if isinstance(error, httpx.TimeoutException):
        return "the coordinator does not answer in time"
    if isinstance(error, httpx.TransportError):
        return "the coordinator cannot be reached"
    return f"the connection failed ({type(error).__name__})"


def passes(error: BaseException) -> bool:
    """Whether TLS failed as any connection may, by silence or an end; Flower takes that for a wrong certificate."""
    text = str(error).lower()
    return isinstance(error, httpx.TransportError) and any(words in text for words in PASSING)


def _tls_words(text: str) -> str:
    if "expired" in text:
        return "the coordinator's certificate has expired (or this machine's clock is wrong)"
    if "hostname" in text or "ip address mismatch" in text:
        return "the coordinator's certificate is for another name than coordinator.address"
    if (
        "self-signed" in text
        or "self signed" in text
        or "unable to get local issuer" in text
        or "verify failed" in text
    ):
        return "the coordinator's certificate is not signed by the CA in coordinator.ca"
    return "the TLS handshake failed"


def watched_client(report: Reporter, node_file: Path | None) -> type[FleetHttpClient]:
    """Flower's client of the fleet endpoints that tells the supervisor how it goes, and stays the node that it was.

    A SuperLink does not let a node in that it believes to be online, as it does for two heartbeats after a SuperNode
    was killed; and when they are over it answers for the node that it is not there. So a SuperNode that is started
    again goes on as the same node, by a heartbeat, where the SuperLink takes it from this key.

    Args:
        report: to the supervisor.
        node_file: keeps the node's number; none: the node has no key of its own.
    """

    class Watched(FleetHttpClient):
        def _unary_unary(self, **call: Any) -> Any:
            try:
                result = super()._unary_unary(**call)
            except (httpx.HTTPError, ValueError) as error:
                if isinstance(error, httpx.HTTPStatusError) and error.response.status_code == 403:
                    report.heard()  # it says so of a run that is over, too
                else:
                    report.set(problem=sentence(error))
                raise
            report.heard()
            return result

        def ActivateNode(self, request: ActivateNodeRequest) -> ActivateNodeResponse:  # noqa: N802 - Flower's name
            """Go on as the node that this site was, else become one."""
            known = None if node_file is None else _known_node(node_file)
            if known is not None:
                beat = SendNodeHeartbeatRequest(node=Node(node_id=known), heartbeat_interval=request.heartbeat_interval)
                try:
                    if self.SendNodeHeartbeat(beat).success:
                        return ActivateNodeResponse(node_id=known)
                except httpx.HTTPStatusError as error:  # another SuperLink, to which that number means nothing
                    logger.info("the node's number is not taken: status %d", error.response.status_code)
            response = super().ActivateNode(request)
            if node_file is not None:
                atomic_write(node_file, str(response.node_id).encode(), 0o600)
            return response

    return Watched


def _known_node(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


class SteadyHeartbeat(HeartbeatSender):
    """Flower's heartbeat, whose thread ends at the first surprise; here a surprise is a beat that is tried again."""

    def __init__(self, heartbeat_fn: Callable[[], bool]) -> None:
        def steady() -> bool:
            try:
                return heartbeat_fn()
            except (httpx.HTTPError, RuntimeError, ValueError):
                return False

        super().__init__(steady)


def retry_invoker(first_s: float, longest_s: float, give_up_s: float) -> Callable[[], RetryInvoker]:
    """Flower's rules of what is worth another try, with the configured pauses (jittered by Flower) and bound."""

    def make() -> RetryInvoker:
        invoker = make_simple_http_retry_invoker()
        gives_up = invoker.should_giveup
        invoker.should_giveup = lambda error: not passes(error) and bool(gives_up and gives_up(error))
        invoker.wait_gen_factory = lambda: exponential(base_delay=first_s, max_delay=longest_s)  # type: ignore[arg-type]
        invoker.max_time = give_up_s
        return invoker

    return make


@contextmanager
def kept_connection(spool: Spool, report: Reporter, current: list[KeptCalls], *args: Any) -> Iterator[tuple[Any, ...]]:
    """Flower's connection with its callbacks wrapped; see the module.

    Args:
        spool: of this site.
        report: to the supervisor.
        current: takes the wrapped callbacks, for who must settle them.
        args: of Flower's ``http_request_response``.
    """
    with fleet_http_connection.http_request_response(*args) as callbacks:
        node_id: int = callbacks[0]
        calls: list[Any] = list(callbacks[1:])
        report.set(connected=True)
        current.append(KeptCalls(spool, report, *calls))
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
        self._received = 0
        self.over: set[int] = set()

    def callbacks(self) -> tuple[Callable[..., Any], ...]:
        """In the order in which Flower's loop takes them."""
        return (self.receive, self.send, self.get_run, self._get_fab, self.pull_object, self.push_object, self.confirm)

    def receive(self) -> Any:
        """Deliver a reply that a crash or a lost link left; then the request in hand, if one is; else the next one."""
        reply = self._spool.reply()
        if reply is not None:
            self._report.set(busy=True)
            self._deliver(reply)
        kept = self._spool.request()
        self._received = self._received + 1 if kept is not None else 0
        if kept is not None:
            metadata = kept.messages_list[0].metadata
            if time.time() < metadata.created_at + metadata.ttl and self._received <= RECEIVES:
                self._report.set(busy=True)
                return message_from_proto(kept.messages_list[0]), kept.message_object_trees[0]
            self._spool.drop()
        self._received = 0
        self._report.set(busy=False)
        received = self._receive()
        if received is not None:
            message, tree = received
            self._spool.begin(
                PullMessagesResponse(messages_list=[message_to_proto(message)], message_object_trees=[tree])
            )
            self._report.set(busy=True)
        return received

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

    def _deliver(self, reply: PushAppMessagesRequest) -> None:
        """Send a kept reply as the very message that it was.

        Raises:
            httpx.HTTPError: the way to the coordinator failed for good; the reply stays.
        """
        message, tree = message_from_proto(reply.messages_list[0]), reply.message_object_trees[0]
        if time.time() >= message.metadata.created_at + message.metadata.ttl:
            self._spool.drop()
            return
        try:
            missing, session = self.send(message, tree, 0.0)
            for object_id in missing:
                content = self._spool.get(object_id)
                if content is None:
                    self._spool.drop()
                    return
                self.push_object(message.metadata.run_id, session, object_id, content)
        except RunNotRunningException:
            return
        self.settle()

    def settle(self) -> None:
        """After Flower's loop tried to deliver: forget the request if the reply is there, whole."""
        if self._undelivered is not None and not self._undelivered:
            self._spool.drop()
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
            self._spool.drop()
            raise
