"""Two questions on one way: a round's training asks, in the same message, for the metrics of the weights that came in.

Each site that is asked both gets one message with two requests (:mod:`fed_diffmic.transport.together`) and answers with
one. Everything else is as if they had been asked one after the other: each request has its own line of the log, its own
seal and its own screening; a site that is drawn for one of them alone gets that one; one that asks for patience over
either is asked again for what is missing; and each question has its own quorum.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flwr.app import Message, RecordDict
from flwr.app.message import make_message

from fed_diffmic.exchange.packing import Packing
from fed_diffmic.exchange.payload import HELD, NEED_WEIGHTS, Packed, PayloadError
from fed_diffmic.transport.together import JUDGED, KINDS, joined_message, parts_of
from server.exchange import Outcome
from server.replies import Asking, Channel, Request, Take, hear, release


@dataclass(frozen=True)
class Asked:
    """One of the two questions.

    Attributes:
        requests: at most one a site.
        message_type: Flower's.
        facts: stage and round, for the events.
        needed: good replies; once they are there, sites that ask for patience are waited for no longer.
        take: as :func:`server.replies.ask` takes it.
    """

    requests: Sequence[Request]
    message_type: str
    facts: Mapping[str, Any]
    needed: int = 0
    take: Take | None = None


def ask_together(channel: Channel, first: Asked, second: Asked, deadline: float) -> tuple[Outcome, Outcome]:
    """Ask both questions; what came of each.

    Args:
        channel: how requests travel.
        first: is answered first: what it brings is there when the second is answered.
        second: the other.
        deadline: monotonic seconds, of both.
    """
    both = _Both(channel, first, second, deadline)
    both.send(_by_site(first.requests), _by_site(second.requests))
    hear(channel, both, 0, deadline)
    return both.end()


class _Both:
    """The state of one :func:`ask_together`."""

    def __init__(self, channel: Channel, first: Asked, second: Asked, deadline: float) -> None:
        self._channel = channel
        self._first, self._second = (
            Asking(channel, asked.message_type, deadline, asked.facts, asked.take) for asked in (first, second)
        )
        self._needed = first.needed, second.needed
        self._joined: set[str] = set()

    @property
    def open(self) -> dict[str, Any]:
        """Messages whose replies are waited for."""
        return {**self._first.open, **self._second.open}

    def wanted(self, needed: int) -> bool:
        """Whether there is anything left to wait for."""
        return self._first.wanted(self._needed[0]) or self._second.wanted(self._needed[1])

    def ask_again(self) -> None:
        """Ask the sites whose pause is over, where both are due by one message."""
        self.send(_by_site(self._first.due()), _by_site(self._second.due()))

    def send(self, first: Mapping[str, Request], second: Mapping[str, Request]) -> None:
        """Send requests by site, those to one site together."""
        for site in sorted(first.keys() | second.keys()):
            if site in first and site in second:
                self._send_joined(first[site], None, second[site], None)
            elif site in first:
                self._first.send(first[site])
            else:
                self._second.send(second[site])
        for request in (*first.values(), *second.values()):
            release(request.packed)

    def take(self, reply: Message) -> None:
        """Judge a reply, or each part of it."""
        message_id = reply.metadata.reply_to_message_id
        if message_id not in self._joined:
            (self._first if message_id in self._first.open else self._second).take(reply)
            return
        self._joined.discard(message_id)
        one, two = self._first.open.pop(message_id), self._second.open.pop(message_id)
        self._channel.closed[message_id] = "duplicate"
        parts = _parts(reply)
        lacks = self._first.judge(one, parts[0]), self._second.judge(two, parts[1])
        self._send_lacking(one, two, *lacks)

    def _send_lacking(self, one: Request, two: Request, first_lacks: str, second_lacks: str) -> None:
        """What the site said that it lacks, once: what the first request brings is there when the second is read."""
        first = one.lacking[first_lacks]() if first_lacks else None
        if first_lacks and first_lacks == second_lacks:
            builds = two.carried.get(HELD) == one.payload.header["weights"]
            second = two.lacking[second_lacks]() if second_lacks == NEED_WEIGHTS and not builds else None
            self._send_joined(one, first, two, second)
        else:
            second = two.lacking[second_lacks]() if second_lacks else None
            if first is not None:
                self._first.send(one, first)
            if second is not None:
                self._second.send(two, second)
        for packed in (first, second):
            if packed is not None:
                release(packed)

    def _send_joined(
        self, one: Request, first: Packed | Packing | None, two: Request, second: Packed | Packing | None
    ) -> None:
        own, other = self._first.sealed(one, first), self._second.sealed(two, second)
        sent = ""
        if own is not None and other is not None:
            wires = dict(zip(KINDS, (own, other), strict=True))
            message = joined_message(wires, message_type=JUDGED, **self._second.way(two))
            sent = next((str(i) for i in self._channel.grid.push_messages([message]) if i), "")
        if own is not None:
            self._first.sent(one, sent, first)
        if other is not None:
            self._second.sent(two, sent, second)
        if sent:
            self._joined.add(sent)

    def end(self) -> tuple[Outcome, Outcome]:
        """Whoever did not reply is missing; what came."""
        self._first.end()
        self._second.end()
        return self._first.outcome, self._second.outcome


def _by_site(requests: Sequence[Request]) -> dict[str, Request]:
    return {request.site.name: request for request in requests}


def _parts(reply: Message) -> tuple[Message, Message]:
    """The two parts of a reply; of one that has other parts, two that cannot be read."""
    try:
        found = parts_of(reply)
    except PayloadError:
        found = {kind: make_message(reply.metadata, RecordDict()) for kind in KINDS}
    if not reply.has_error():
        reply.content = RecordDict()  # the parts alone hold what came, and give it up piece by piece
    one, two = (found[kind] for kind in KINDS)
    return one, two
