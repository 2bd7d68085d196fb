"""One exchange with the sites: requests out, replies in, deadline, screening, bytes.

Everything that waits here has a bound. A site that is paused, that works at other hours, or whose process or
connection Flower lost, is asked again while the round needs it and its time lasts. Replies are matched to requests by
message id, never by the node they seem to come from (Flower answers for a lost node in the SuperLink's name). What is
refused or missing becomes an event with the site's name and a code, and nothing of what was sent.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fed_diffmic.exchange.audit_facts import place, request_facts
from fed_diffmic.exchange.failures import LATER, LOST
from fed_diffmic.exchange.masking.fixed_point import FixedPointError
from fed_diffmic.exchange.packing import Packing
from fed_diffmic.exchange.payload import Packed, Payload, Wire, encode, request_name
from fed_diffmic.exchange.screening import REFUSALS, Expected, Refusal
from fed_diffmic.transport.messages import task_message, wire_of
from server.exchange import Outcome, Site
from server.hooks import Hooks
from server.reading import Read, read_reply

AGAIN_S, LONGEST_AGAIN_S = 15.0, 600.0
LOST_S, LONGEST_LOST_S = 2.0, 30.0
POLL_SHARE, LONGEST_POLL_S = 0.02, 2.0
KEPT_CLOSED = 100_000
Take = Callable[[str, Payload], None]
"""Takes the tensors of a site's good reply; raises FixedPointError, with nothing changed, where they are too large."""
EVENTS = {"query": "site_answered", "train": "site_done", "evaluate": "site_evaluated"}


class Events(Protocol):
    """Where facts go (:class:`fed_diffmic.reporting.events.EventLog`)."""

    def emit(self, kind: str, **facts: Any) -> Any:
        """Record one fact."""


@dataclass(frozen=True)
class Request:
    """One request to one site, and what a good reply to it looks like.

    Attributes:
        site: whom to ask.
        payload: header and kind; its tensors are those of ``packed``.
        expected: what a good reply looks like.
        packed: the tensors that are sent first, packed once for all sites.
        carried: header fields that say what these build on (:data:`fed_diffmic.exchange.payload.CARRIED`).
        lacking: what a site may answer that lacks something, and what packs everything that it is sent then.
    """

    site: Site
    payload: Payload
    expected: Expected
    packed: Packed | Packing
    carried: Mapping[str, str] = field(default_factory=dict)
    lacking: Mapping[str, Callable[[], Packed | Packing]] = field(default_factory=dict)


@dataclass(frozen=True)
class Channel:
    """How requests travel, the same for all exchanges of a run.

    Attributes:
        grid: Flower's, in process or real.
        events: where facts go.
        poll_s: shortest pause between looking for replies, in seconds; after long silence it is longer, as each look
            costs the SuperLink some milliseconds and a round may take hours.
        hooks: what a real coordinator adds.
        closed: message ids of earlier exchanges, with what another reply to them is called; added to.
    """

    grid: Grid
    events: Events
    poll_s: float = 0.1
    hooks: Hooks = field(default_factory=Hooks)
    closed: MutableMapping[str, str] = field(default_factory=dict)


def ask(
    channel: Channel,
    requests: Sequence[Request],
    *,
    message_type: str,
    deadline: float,
    facts: Mapping[str, Any],
    needed: int = 0,
    take: Take | None = None,
) -> Outcome:
    """Send every request, take replies until all came or the deadline passed.

    Args:
        channel: how requests travel.
        requests: at most one a site.
        message_type: Flower's ``train``, ``evaluate`` or ``query``.
        deadline: monotonic seconds.
        facts: stage and round, for the events.
        needed: good replies; once they are there, sites that ask for patience are waited for no longer.
        take: what becomes of the tensors of each good reply, which are then dropped; none: they stay in the outcome.
    """
    asking = Asking(channel, message_type, deadline, facts, take)
    for request in sorted(requests, key=lambda r: r.site.name):
        asking.send(request)
    for request in requests:
        release(request.packed)
    hear(channel, asking, needed, deadline)
    asking.end()
    return asking.outcome


class Listening(Protocol):
    """Whoever takes replies."""

    @property
    def open(self) -> dict[str, Any]:
        """Whose reply is awaited, by the message's id."""

    def wanted(self, needed: int) -> bool:
        """Whether there is anything left to wait for."""

    def ask_again(self) -> None:
        """Ask those whose pause is over."""

    def take(self, reply: Message) -> None:
        """Judge a reply."""


def hear(channel: Channel, asking: Listening, needed: int, deadline: float) -> None:
    """Take replies as they come, until nothing is left to wait for or the deadline passed."""
    heard = time.monotonic()
    while asking.wanted(needed) and time.monotonic() < deadline:
        asking.ask_again()
        asked = time.monotonic()
        # Each is brought when the one before it was judged, and held no longer than that takes.
        came = sum(1 for _ in map(asking.take, channel.grid.pull_messages(list(asking.open)))) if asking.open else 0
        if came:
            heard = time.monotonic()
        elif asking.wanted(needed):
            waited = time.monotonic() - asked  # the SuperLink holds a question that it cannot answer yet
            pause = max(channel.poll_s, min(LONGEST_POLL_S, POLL_SHARE * (time.monotonic() - heard)))
            time.sleep(max(0.0, min(pause - waited, deadline - time.monotonic())))


def release(packed: Packed | Packing) -> None:
    """Let go of what was packed, where it can be packed again."""
    if isinstance(packed, Packing):
        packed.release()


class Asking:
    """The state of one :func:`ask`."""

    def __init__(
        self, channel: Channel, message_type: str, deadline: float, facts: Mapping[str, Any], take: Take | None = None
    ) -> None:
        self.grid = channel.grid
        self.events = channel.events
        self.message_type = message_type
        self.deadline = deadline
        self.facts = facts
        self.open: dict[str, Request] = {}
        self.outcome = Outcome()
        self._take = take
        self._hooks = channel.hooks
        self._closed = channel.closed
        self._lacked: set[tuple[str, str]] = set()
        self._waiting: dict[str, tuple[float, Request, int, str]] = {}
        self._pauses: dict[str, float] = {}

    def wanted(self, needed: int) -> bool:
        """Whether there is anything left to wait for."""
        return bool(self.open) or (bool(self._waiting) and len(self.outcome.replies) < needed)

    def ask_again(self) -> None:
        """Ask the sites whose pause is over."""
        for request in self.due():
            self.send(request)
            release(request.packed)

    def due(self) -> list[Request]:
        """Requests to the sites whose pause is over, which wait no longer."""
        over = [request for when, request, _, _ in self._waiting.values() if time.monotonic() >= when]
        for request in over:
            del self._waiting[request.site.name]
            self._lacked -= {(request.site.name, what) for what in request.lacking}
        return over

    def end(self) -> None:
        """Whoever did not reply is missing."""
        for message_id, request in self.open.items():
            self._closed[message_id] = "late"
            self.fail(request, "deadline", "it did not reply before the deadline")
        for _, request, code, sentence in self._waiting.values():
            self.fail(request, code, sentence)
        while len(self._closed) > KEPT_CLOSED:
            self._closed.pop(next(iter(self._closed)))

    def send(self, request: Request, packed: Packed | Packing | None = None) -> None:
        """Push one request; a site that cannot be reached counts as missing.

        Args:
            packed: everything that the site needs; none: what is sent first.
        """
        wire = self.sealed(request, packed)
        if wire is None:
            return
        message = task_message(wire, message_type=self.message_type, **self.way(request))
        ids = [str(i) for i in self.grid.push_messages([message]) if i]
        self.sent(request, ids[0] if ids else "", packed)

    def sealed(self, request: Request, packed: Packed | Packing | None = None) -> Wire | None:
        """A request as it travels, with its line in the log; none: the site is missing, and it is said why."""
        if self.deadline <= time.monotonic():
            self.fail(request, "deadline", "no time was left to ask it")
            return None
        payload = request.payload
        if packed is None:
            packed, payload = request.packed, replace(payload, header={**payload.header, **request.carried})
        wire = encode(payload, packed)
        facts = request_facts(payload, wire.digest, packed.nbytes)
        self._hooks.log("request", site=request.site.name, **facts)
        sealed = self._hooks.sealed(wire, request.site.node, request.site.name)
        if sealed is None:
            self.fail(request, "roster", REFUSALS["roster"])
        return sealed

    def way(self, request: Request) -> dict[str, Any]:
        """Whom a request's message is for, and how long."""
        left = max(0.001, self.deadline - time.monotonic())
        return {"node": request.site.node, "ttl": left, "group": str(self.facts.get("round", 0))}

    def sent(self, request: Request, message_id: str, packed: Packed | Packing | None = None) -> None:
        """The request went out in that message; empty: it could not."""
        if not message_id:
            self.fail(request, "unreachable", "it could not be reached")
            return
        self.outcome.bytes_sent += (request.packed if packed is None else packed).nbytes
        self.open[message_id] = request

    def take(self, reply: Message) -> None:
        """Judge one reply: good, failed, refused, not now, or from a site that asks for what it lacks and gets it."""
        message_id = reply.metadata.reply_to_message_id
        request = self.open.pop(message_id, None)
        if request is None:
            code = self._closed.get(message_id, "unexpected")
            self.events.emit("site_refused", site="", code=code, reason=REFUSALS[code], **self.facts)
            self._hooks.log("refusal", site="", code=code, **self.facts)
            return
        self._closed[message_id] = "duplicate"
        lacking = self.judge(request, reply)
        if lacking:
            everything = request.lacking[lacking]()
            self.send(request, everything)
            release(everything)

    def judge(self, request: Request, reply: Message) -> str:
        """Judge the reply to a request.

        Returns:
            what the site lacks, of :attr:`Request.lacking`, if it is to be sent that; else empty.
        """
        read = read_reply(reply, request.expected, request.site.name, lambda: self._opened(request, reply))
        if isinstance(read, tuple):
            self._failed(request, *read)
            return ""
        payload, refusal = read.payload, read.refusal
        if payload is None:
            self._refuse(request, refusal or Refusal("malformed"))
            return ""
        lacked = (request.site.name, payload.kind)
        if payload.kind in request.lacking and lacked not in self._lacked:
            self._log_reply(request, read)
            self._lacked.add(lacked)
            return payload.kind
        if refusal is None:
            # First: a coordinator that dies now must not forget what was spent.
            self._hooks.saw(request.site.name, payload.header)
            refusal = self._taken(request, payload)
        self._log_reply(request, read, "" if refusal is None else refusal.code)
        if refusal is not None:
            self._refuse(request, refusal)
        else:
            self._accept(request, payload if self._take is None else replace(payload, tensors={}), read)
        return ""

    def _taken(self, request: Request, payload: Payload) -> Refusal | None:
        """Hand a good reply's tensors over; all of them are taken, or none."""
        try:
            if self._take is not None:
                self._take(request.site.name, payload)
        except FixedPointError:
            return Refusal("norm")
        return None

    def _opened(self, request: Request, reply: Message) -> tuple[Wire, dict[str, str]]:
        """A reply as its site encoded it, and what its seal adds to the line of the log.

        Raises:
            SealError: it is not the site's own answer to this request.
            PayloadError: it cannot be read.
        """
        wire = wire_of(reply.content)
        if self._hooks.seals is not None:
            reply.content = RecordDict()  # only the wire holds what came, and gives it up piece by piece
        site, name = request.site, request_name(request.payload.header)
        return self._hooks.opened(wire, site.node, site.name, request=name, limits=request.expected.limits)

    def fail(self, request: Request, code: int | str, sentence: str) -> None:
        """A site is missing from this exchange."""
        site = request.site.name
        self.outcome.missing[site] = sentence
        self.outcome.codes[site] = code
        self.events.emit("site_failed", site=site, code=code, reason=sentence, **self.facts)
        self._hooks.log("failure", **self._named(request), code=code, reason=sentence)

    def _accept(self, request: Request, payload: Payload, read: Read) -> None:
        site = request.site.name
        self.outcome.bytes_sent += read.nbytes
        self.outcome.replies[site] = payload
        self.outcome.digests[site] = read.digest
        if read.head is not None:
            self.outcome.heads[site] = read.head
        metrics = {name: value for name, value in payload.metrics.items() if "/" not in name}
        sent = request.packed.nbytes + read.nbytes
        self.events.emit(EVENTS[self.message_type.split(".")[0]], site=site, bytes=sent, **metrics, **self.facts)

    def _failed(self, request: Request, code: int, sentence: str) -> None:
        site = request.site.name
        if self._hooks.is_removed(request.site.node, site):  # Flower says only that its node is not there
            self._refuse(request, Refusal("roster"))
            return
        first, longest = (LOST_S, LONGEST_LOST_S) if code in LOST else (AGAIN_S, LONGEST_AGAIN_S)
        pause = min(self._pauses.get(site, first), longest)
        if code not in LATER | LOST or time.monotonic() + pause >= self.deadline:
            self.fail(request, code, sentence)
            return
        self._pauses[site] = min(2.0 * pause, longest)
        self._waiting[site] = (time.monotonic() + pause, request, code, sentence)
        self.events.emit("site_waits", site=site, code=code, reason=sentence, again_s=pause, **self.facts)

    def _refuse(self, request: Request, refusal: Refusal) -> None:
        site = request.site.name
        self.outcome.missing[site] = refusal.sentence
        self.outcome.codes[site] = refusal.code
        self.events.emit("site_refused", site=site, code=refusal.code, reason=refusal.sentence, **self.facts)
        self._hooks.log("refusal", **self._named(request), code=refusal.code)

    def _log_reply(self, request: Request, read: Read, refused: str = "") -> None:
        anchor = {} if read.head is None else {"anchor": {"length": read.head.length, "digest": read.head.digest}}
        judged = {"refused": refused} if refused else {}
        self._hooks.log("reply", **self._named(request), **read.facts, **anchor, **judged, **read.proof)

    def _named(self, request: Request) -> dict[str, Any]:
        header = request.payload.header
        return {"site": request.site.name, **place(header), "request": request_name(header)}
