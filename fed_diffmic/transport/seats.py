"""Who holds a connection at the public listener, how many there may be, and who goes first when there are too many.

A stranger can open connections without end, and an address tells little: a hospital shows one for many sites, a
stranger has many. So a connection is a stranger's until a request came over it that a key of the roster signed. From
then on it counts for that site, wherever it comes from, and not for its address, and:

- strangers together hold a share of the connections only; the rest is reserved for sites, and for addresses from which
  a site was heard of lately;
- where a connection is one too many, the address that holds the most strangers' connections loses its oldest one, and
  the new one is let in: a site that comes for the first time needs a second at most, a flood its own turn;
- a site holds so many and no more, from all addresses together: its oldest one goes, and no other site's;
- new connections of one address are counted by a token bucket, TLS handshakes under way in all.

IPv6 addresses count by their /64, which is what one subscriber is given; IPv4 addresses written as IPv6 as IPv4.
"""

from __future__ import annotations

import ipaddress
import json
import logging
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

RECENT_S = 3600.0
REMEMBERED = 4096
BURST = 2.0
_log = logging.getLogger("fed_diffmic.guard")


@dataclass(frozen=True)
class Bounds:
    """Limits of the public listener.

    Attributes:
        header_s: seconds for a request's header, TLS handshake included.
        body_s: seconds for a body.
        body_bytes: of a body.
        per_address: open connections of one address, without those that count for a site.
        per_site: open connections of one site. It needs four (a question that waits, a heartbeat, two objects), and
            for seconds as many again after its link was cut.
        total: open connections in all.
        reserved: so many of them are not for strangers.
        new_per_s: new connections of one address in a second, beyond :data:`BURST` times ``per_address`` at once.
        handshakes: TLS handshakes under way in all.
    """

    header_s: float = 10.0
    body_s: float = 120.0
    body_bytes: int = 32 * 2**20
    per_address: int = 64
    per_site: int = 16
    total: int = 1024
    reserved: int = 512
    new_per_s: float = 10.0
    handshakes: int = 256


@dataclass
class Counts:
    """What the guard saw, for status and metrics.

    Attributes:
        open: connections now, by address.
        accepted: connections so far.
        refused: refusals by reason.
        contact: Unix time of each site's last admitted request.
        bytes_in: bytes of admitted bodies.
        logged: refusals of a site by reason, for which lines are sparse too.
    """

    open: Counter[str] = field(default_factory=Counter)
    accepted: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    contact: dict[str, float] = field(default_factory=dict)
    bytes_in: int = 0
    logged: Counter[tuple[str, str]] = field(default_factory=Counter)

    def to_json(self) -> bytes:
        """For the supervisor."""
        return json.dumps(
            {
                "open": self.open.total(),
                "accepted": self.accepted,
                "refused": dict(self.refused),
                "contact": self.contact,
                "bytes_in": self.bytes_in,
            }
        ).encode()

    def refuse(self, reason: str, address: str, site: str = "") -> None:
        """Count a refusal; the first, tenth, hundredth, ... of a reason (of a site) is logged."""
        self.refused[reason] += 1
        self.logged[reason, site] += 1
        count = self.logged[reason, site]
        if str(count).strip("0") == "1":
            _log.warning("refused (%s) from %s%s, %d so far", reason, address, f", site {site}" if site else "", count)


def address_of(peer: str) -> str:
    """What a peer is counted by: its IPv4 address, or its IPv6 network of 64 bits."""
    try:
        found = ipaddress.ip_address(peer.partition("%")[0])
    except ValueError:
        return peer
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is None:
            return str(ipaddress.ip_network((found, 64), strict=False))
        found = found.ipv4_mapped
    return str(found)


@dataclass(eq=False)
class Seat:
    """One connection.

    Attributes:
        address: that it counts for.
        known: whether a site was heard of from there lately, when it came.
        close: ends the connection at once.
        over: whether it is given up.
        site: for which it counts; empty: for its address.
    """

    address: str
    known: bool
    close: Callable[[], None] = lambda: None
    over: bool = False
    site: str = ""


Groups = dict[str, dict[Seat, None]]  # by address or site; of each, in the order in which they came


class Seats:
    """The connections that are open.

    Args:
        bounds: limits.
        counts: are kept.
        clock: seconds, never going back.
    """

    def __init__(self, bounds: Bounds, counts: Counts, clock: Callable[[], float] = time.monotonic) -> None:
        self._bounds, self._counts, self._clock = bounds, counts, clock
        self._strangers: Groups = {}
        self._shaking: Groups = {}
        self._sites: Groups = {}
        self._of_sites: Counter[str] = Counter()  # by address
        self._heard: OrderedDict[str, float] = OrderedDict()
        self._rate = Rate(bounds.new_per_s, BURST * bounds.per_address, clock)

    @property
    def strangers(self) -> int:
        """Connections over which no key of the roster signed a request yet."""
        return sum(map(len, self._strangers.values()))

    @property
    def handshakes(self) -> int:
        """TLS handshakes under way."""
        return sum(map(len, self._shaking.values()))

    def take(self, peer: str) -> Seat | None:
        """A seat for a new connection, for which another may lose its own; none: it must be closed.

        Args:
            peer: address of the other end.
        """
        address, bounds, counts = address_of(peer), self._bounds, self._counts
        if not self._rate.take(address):
            counts.refuse("connection_rate", address)
            return None
        seat = Seat(address, self._clock() - self._heard.get(address, float("-inf")) < RECENT_S)
        own = {address: self._strangers.get(address, {})}
        full = counts.open[address] - self._of_sites[address] >= bounds.per_address
        if not self._room(seat, "connections_per_address", full, own):
            return None
        if not self._room(seat, "handshakes", self.handshakes >= bounds.handshakes, self._shaking):
            return None
        strangers = not seat.known and self.strangers >= bounds.total - bounds.reserved
        if not self._room(seat, "connections", strangers or counts.open.total() >= bounds.total, self._strangers):
            return None
        for groups in (self._strangers, self._shaking):
            groups.setdefault(address, {})[seat] = None
        counts.open[address] += 1
        counts.accepted += 1
        return seat

    def shaken(self, seat: Seat) -> None:
        """The TLS handshake is done."""
        _remove(self._shaking, seat)

    def admit(self, seat: Seat, site: str = "") -> None:
        """A key of the roster signed a request that came over it: it is a site's, and so is its address for a while.

        Args:
            seat: the connection.
            site: whose key it was; empty where nobody is asked for one (insecure trials), and addresses alone count.
        """
        _remove(self._strangers, seat)
        if site and not seat.site and not seat.over:
            self._count_for(site, seat)
        self._heard[seat.address] = self._clock()
        self._heard.move_to_end(seat.address)
        while len(self._heard) > REMEMBERED:
            self._heard.popitem(last=False)

    def leave(self, seat: Seat) -> None:
        """The connection is over; said twice, it counts once."""
        if seat.over:
            return
        seat.over = True
        _remove(self._strangers, seat)
        _remove(self._shaking, seat)
        if seat.site:
            _remove(self._sites, seat, seat.site)
            self._of_sites[seat.address] -= 1
            if self._of_sites[seat.address] <= 0:
                del self._of_sites[seat.address]
        self._counts.open[seat.address] -= 1
        if self._counts.open[seat.address] <= 0:
            del self._counts.open[seat.address]

    def _count_for(self, site: str, seat: Seat) -> None:
        """Count a connection for its site, whose oldest one is ended where that is one too many."""
        seat.site = site
        self._of_sites[seat.address] += 1
        group = self._sites.setdefault(site, {})
        group[seat] = None
        if len(group) > self._bounds.per_site:
            oldest = next(iter(group))
            self._counts.refuse("connections_per_site", oldest.address, site)
            self.leave(oldest)
            oldest.close()

    def _room(self, new: Seat, reason: str, full: bool, groups: Groups) -> bool:
        """Whether there is room for the new one, after another lost its own if it is full."""
        if not full:
            return True
        loser = _loser(new, groups)
        self._counts.refuse(reason, (loser or new).address)
        if loser is None:
            return False
        self.leave(loser)
        loser.close()
        return True


def _loser(new: Seat, groups: Groups) -> Seat | None:
    """The oldest connection of the address that holds the most; a stranger's newcomer ends none of a known address."""
    found, most = None, 0
    for address, seats in groups.items():
        oldest = next((s for s in seats if new.known or not s.known or address == new.address), None)
        if oldest is not None and len(seats) > most:
            found, most = oldest, len(seats)
    return found


def _remove(groups: Groups, seat: Seat, name: str = "") -> None:
    """Take a connection out, and its address (or the site that is named) with the last one."""
    name = name or seat.address
    group = groups.get(name, {})
    group.pop(seat, None)
    if not group:
        groups.pop(name, None)


class Rate:
    """A token bucket for each address.

    Args:
        per_s: tokens that come in a second.
        most: so many an address has at most, and at first.
        clock: seconds.
    """

    def __init__(self, per_s: float, most: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_s, self._most, self._clock = per_s, most, clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, address: str) -> bool:
        """Whether there was a token; it is gone now."""
        now = self._clock()
        left, at = self._buckets.get(address, (self._most, now))
        left = min(self._most, left + (now - at) * self._per_s)
        given = left >= 1
        self._buckets[address] = (left - given, now)
        self._buckets.move_to_end(address)
        while len(self._buckets) > REMEMBERED:
            self._buckets.popitem(last=False)  # the one that came least lately: its bucket is the fullest
        return given
