"""How much of a site's replies the SuperLink's database holds.

A site is asked one thing at a time, and each open request has one reply, so what a site may store is bounded by what
it was asked: a reply in bytes and objects, and all its replies that the coordinator has not fetched yet in bytes. The
account is kept in memory; of a reply that it does not know (the SuperLink was started anew on its database) it counts
what is stored.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

OBJECTS = 256
OBJECTS_PER_MIB = 4  # Flower makes of an array about 4 MiB large two objects, and each record is one


@dataclass(frozen=True)
class Limits:
    """Of one site.

    Attributes:
        reply_bytes: of one reply.
        site_bytes: of all replies of a site that the coordinator has not fetched yet.
    """

    reply_bytes: int = 1024 * 2**20
    site_bytes: int = 2048 * 2**20

    @property
    def objects(self) -> int:
        """Of one reply."""
        return OBJECTS + OBJECTS_PER_MIB * -(-self.reply_bytes // 2**20)


@dataclass
class _Reply:
    node: int
    bytes: int


@dataclass
class Account:
    """Bytes of every reply that is stored or comes.

    Attributes:
        limits: of each site.
    """

    limits: Limits
    _replies: dict[str, _Reply] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def replies_of(self, node: int) -> list[str]:
        """The replies of a site that the account knows, in the order in which they came."""
        with self._lock:
            return [name for name, reply in self._replies.items() if reply.node == node]

    def take(self, node: int, name: str, size: int, stored: Callable[[], int]) -> bool:
        """Count bytes that are about to be stored; false: they are too many, and nothing was counted.

        Args:
            node: the site's.
            name: of the reply.
            size: bytes.
            stored: says how many bytes of the reply are stored, asked once of a reply that is not known.
        """
        with self._lock:
            known = name in self._replies
        before = 0 if known else stored()
        with self._lock:
            reply = self._replies.setdefault(name, _Reply(node, before))
            total = sum(other.bytes for other in self._replies.values() if other.node == node)
            if reply.bytes + size > self.limits.reply_bytes or total + size > self.limits.site_bytes:
                return False
            reply.bytes += size
            return True

    def give_back(self, name: str, size: int) -> None:
        """What was counted was not stored."""
        with self._lock:
            if name in self._replies:
                self._replies[name].bytes -= size

    def forget(self, name: str) -> None:
        """The reply is fetched, or removed."""
        with self._lock:
            self._replies.pop(name, None)
