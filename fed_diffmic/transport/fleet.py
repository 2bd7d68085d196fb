"""A SuperNode's way to the SuperLink, as Flower has it, with what Flower leaves out.

A heartbeat that fails once does not end all heartbeats; a node that is started again goes on as the node that it was;
every failure becomes a sentence for the supervisor. What is asked and answered on that way:
:mod:`fed_diffmic.transport.keptcalls`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from flwr.proto.fleet_pb2 import ActivateNodeRequest, ActivateNodeResponse
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.heartbeat import HeartbeatSender
from flwr.supercore.retry import RetryInvoker, make_simple_http_retry_invoker
from flwr.supercore.retry.retry_invoker import exponential
from flwr.supernode.fleet_http_client import FleetHttpClient

from fed_diffmic.files import atomic_write
from fed_diffmic.transport.contact import Reporter
from fed_diffmic.transport.guard import REASON_HEADER
from fed_diffmic.transport.refusals import refusal_of

RECEIVES = 10
DELIVERIES = 8
LONGEST_PAUSE_S = 30.0
logger = logging.getLogger(__name__)
UNKNOWN = (
    "the coordinator does not accept this site: its key is not in the roster (any more), or this machine's clock is"
    " wrong, or the coordinator was started anew"
)
UNKNOWN_BY = {
    "roster": "the coordinator does not accept this site: its key is not in the roster (any more)",
    "clock": "the coordinator does not accept this site: this machine's clock differs too much from the coordinator's",
    "signature": "the coordinator does not accept this site: what it signed cannot be verified",
}
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
        code, reason = error.response.status_code, error.response.headers.get(REASON_HEADER.decode(), "")
        if code == 401 and reason in UNKNOWN_BY:
            return UNKNOWN_BY[reason]
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
                    report.refusal = refusal_of(error.response.text)
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
