"""How far this machine's clock is from the coordinator's, before it matters.

A site signs each request with its own time, and Flower takes signatures that are at most 5 s in the future and 305 s
in the past. The difference is measured from the ``Date`` of the coordinator's health page, which has whole seconds:
together with half the time of the round trip that is the error of the measurement.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

from fed_diffmic.config.site import CoordinatorConfig
from fed_diffmic.transport.supernode import ca_certificates

if TYPE_CHECKING:
    import httpx

AHEAD_S, BEHIND_S = 5.0, 305.0
MARGIN_S = 2.0
TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Skew:
    """A measured difference.

    Attributes:
        seconds: this machine's clock minus the coordinator's.
        error: at most this far off, seconds.
    """

    seconds: float
    error: float

    @property
    def refused(self) -> bool:
        """Whether the coordinator refuses signatures made at this clock, for certain."""
        return self.seconds - self.error > AHEAD_S or -self.seconds - self.error > BEHIND_S

    @property
    def near(self) -> bool:
        """Whether it is close to that."""
        return self.seconds + self.error > AHEAD_S - MARGIN_S or -self.seconds + self.error > BEHIND_S - 60

    def __str__(self) -> str:
        way = "ahead of" if self.seconds > 0 else "behind"
        return (
            f"this machine's clock is {abs(self.seconds):.1f} s {way} the coordinator's"
            f" (measured to {self.error:.1f} s; allowed: {AHEAD_S:.0f} s ahead, {BEHIND_S:.0f} s behind)"
        )


def http_client(way: CoordinatorConfig, timeout_s: float = TIMEOUT_S) -> httpx.Client:
    """A client for the coordinator's public listener: the configured CA and proxy, nothing from the environment.

    Raises:
        ConfigError: ``coordinator.ca`` cannot be read.
    """
    import httpx

    verify: ssl.SSLContext | bool = False
    if not way.insecure:
        trusted = ca_certificates(way.ca)
        verify = ssl.create_default_context(cadata=None if trusted is None else trusted.decode("ascii"))
    return httpx.Client(verify=verify, timeout=timeout_s, proxy=way.proxy, trust_env=False)


def measure_skew(way: CoordinatorConfig, clock: Callable[[], float] = time.time) -> Skew | None:
    """Ask the coordinator for its time.

    Args:
        way: the way to the coordinator.
        clock: this machine's.

    Returns:
        The difference, or none if it cannot be reached or says no time.
    """
    import httpx  # takes a while to load: a site reaches for its coordinator first

    scheme = "http" if way.insecure else "https"
    try:
        with http_client(way) as client:
            before = clock()
            answer = client.get(f"{scheme}://{way.address}/health")
            after = clock()
        said = parsedate_to_datetime(answer.headers["date"]).timestamp()
    except (httpx.HTTPError, OSError, KeyError, ValueError, TypeError):
        return None
    half = (after - before) / 2
    return Skew(before + half - (said + 0.5), 0.5 + half)
