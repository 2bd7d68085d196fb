"""One exchange with the sites: requests out, replies in, deadline, screening, bytes.

Everything that waits here has a bound. Replies are matched to requests by message id, never by the
node they seem to come from (Flower answers for a lost node in the SuperLink's name). What is
refused or missing becomes an event with the site's name and a code, and nothing of what was sent.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from flwr.app import Message
from flwr.serverapp import Grid

from fed_diffmic.exchange.payload import Packed, Payload, PayloadError, encode
from fed_diffmic.exchange.screening import Expected, Refusal, screen
from fed_diffmic.transport.messages import failure_of, from_record, task_message

NEED_BASE = "need_base"
EVENTS = {"query": "site_answered", "train": "site_done", "evaluate": "site_evaluated"}


class Events(Protocol):
    """Where facts go (:class:`fed_diffmic.reporting.events.EventLog`)."""

    def emit(self, kind: str, **facts: Any) -> Any:
        """Record one fact."""


@dataclass(frozen=True)
class Site:
    """A site that takes part.

    Attributes:
        name: unique among the sites of the run.
        node: Flower's number for it, which may change when it reconnects.
        images: number of train, val and test images.
        class_counts: training images of each class.
    """

    name: str
    node: int
    images: tuple[int, int, int] = (0, 0, 0)
    class_counts: tuple[int, ...] = ()


@dataclass(frozen=True)
class Request:
    """One request to one site, and what a good reply to it looks like.

    Attributes:
        site: whom to ask.
        payload: header and kind; its tensors are those of ``packed``.
        expected: what a good reply looks like.
        packed: the tensors, packed once for all sites.
        with_base: packs the tensors together with the base, for a site that says it lacks it.
    """

    site: Site
    payload: Payload
    expected: Expected
    packed: Packed
    with_base: Callable[[], Packed] | None = None


@dataclass
class Outcome:
    """What came of an exchange.

    Attributes:
        replies: good replies by site name.
        missing: why each of the others is missing, in fixed sentences.
        bytes_sent: tensor bytes both ways.
    """

    replies: dict[str, Payload] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    bytes_sent: int = 0


def ask(
    grid: Grid,
    requests: Sequence[Request],
    events: Events,
    *,
    message_type: str,
    deadline: float,
    facts: Mapping[str, Any],
    poll_s: float,
) -> Outcome:
    """Send every request, take replies until all came or the deadline passed.

    Args:
        grid: Flower's, in process or real.
        requests: at most one a site.
        events: where facts go.
        message_type: Flower's ``train``, ``evaluate`` or ``query``.
        deadline: monotonic seconds.
        facts: stage and round, for the events.
        poll_s: pause between looking for replies.
    """
    exchange = _Exchange(grid, events, message_type, deadline, facts)
    for request in sorted(requests, key=lambda r: r.site.name):
        exchange.send(request, request.packed)
    while exchange.open and time.monotonic() < deadline:
        replies = list(grid.pull_messages(list(exchange.open)))
        for reply in replies:
            exchange.take(reply)
        if exchange.open and not replies:
            time.sleep(max(0.0, min(poll_s, deadline - time.monotonic())))
    for request in exchange.open.values():
        exchange.fail(request.site.name, "deadline", "it did not reply before the deadline")
    return exchange.outcome


class _Exchange:
    """The state of one :func:`ask`."""

    def __init__(
        self, grid: Grid, events: Events, message_type: str, deadline: float, facts: Mapping[str, Any]
    ) -> None:
        self.grid = grid
        self.events = events
        self.message_type = message_type
        self.deadline = deadline
        self.facts = facts
        self.open: dict[str, Request] = {}
        self.outcome = Outcome()
        self._base_sent: set[str] = set()

    def send(self, request: Request, packed: Packed) -> None:
        """Push one request; a site that cannot be reached counts as missing."""
        site, left = request.site, self.deadline - time.monotonic()
        if left <= 0:
            self.fail(site.name, "deadline", "no time was left to ask it")
            return
        message = task_message(
            encode(request.payload, packed),
            node=site.node,
            message_type=self.message_type,
            ttl=left,
            group=str(self.facts.get("round", 0)),
        )
        ids = [str(i) for i in self.grid.push_messages([message]) if i]
        if not ids:
            self.fail(site.name, "unreachable", "it could not be reached")
            return
        self.outcome.bytes_sent += packed.nbytes
        self.open[ids[0]] = request

    def take(self, reply: Message) -> None:
        """Judge one reply: good, failed, refused, or from a site that asks for the base."""
        request = self.open.pop(reply.metadata.reply_to_message_id, None)
        if request is None:
            self.events.emit("site_refused", site="", code="unexpected", **self.facts)
            return
        site, failure = request.site.name, failure_of(reply)
        if failure is not None:
            self.fail(site, failure[0], failure[1])
            return
        try:
            payload = from_record(reply.content, request.expected.limits)
        except PayloadError:
            self._refuse(site, Refusal("malformed"))
            return
        if payload.kind == NEED_BASE and request.with_base is not None and site not in self._base_sent:
            self._base_sent.add(site)
            self.send(request, request.with_base())
            return
        refusal = screen(payload, request.expected)
        if refusal is not None:
            self._refuse(site, refusal)
            return
        self.outcome.bytes_sent += payload.tensor_bytes
        self.outcome.replies[site] = payload
        figures = {name: value for name, value in payload.metrics.items() if "/" not in name}
        sent = request.packed.nbytes + payload.tensor_bytes
        self.events.emit(EVENTS[self.message_type.split(".")[0]], site=site, bytes=sent, **figures, **self.facts)

    def fail(self, site: str, code: int | str, sentence: str) -> None:
        """A site is missing from this exchange."""
        self.outcome.missing[site] = sentence
        self.events.emit("site_failed", site=site, code=code, reason=sentence, **self.facts)

    def _refuse(self, site: str, refusal: Refusal) -> None:
        self.outcome.missing[site] = refusal.sentence
        self.events.emit("site_refused", site=site, code=refusal.code, reason=refusal.sentence, **self.facts)
