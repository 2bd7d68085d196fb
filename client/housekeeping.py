"""What a site does beside its work: look at the clock, remove what is old, keep its logs short."""

from __future__ import annotations

import logging
import shutil
import threading
from pathlib import Path

from client.clock import measure_skew
from client.start import LOGS
from fed_diffmic.config.site import SiteConfig
from fed_diffmic.errors import FedDiffmicError
from fed_diffmic.transport.spool import Spool
from fed_diffmic.transport.supernode import INBOX

CLOCK_S = 900.0
CLOCK_LEAST_S = 20.0
PURGE_S = 86400.0
LOG_BYTES = 10 * 2**20
KEPT = ("bases", "states", "updates")

logger = logging.getLogger(__name__)


class Housekeeping:
    """Chores of a running site; none of them blocks or ends it.

    Args:
        config: of the site.
        folder: its own.
    """

    def __init__(self, config: SiteConfig, folder: Path) -> None:
        self._config, self._folder = config, folder
        self._next_clock = self._next_purge = 0.0
        self._last_clock = 0.0
        self._thread: threading.Thread | None = None

    def step(self, now: float) -> None:
        """Start what is due."""
        if now >= self._next_clock and (self._thread is None or not self._thread.is_alive()):
            self._next_clock, self._last_clock = now + CLOCK_S, now
            self._thread = threading.Thread(target=self._look_at_clock, daemon=True, name="clock")
            self._thread.start()
        if now >= self._next_purge:
            self._next_purge = now + PURGE_S
            self._purge(now)

    def clock_due(self) -> None:
        """The coordinator complained: it may be about the clock."""
        self._next_clock = min(self._next_clock, self._last_clock + CLOCK_LEAST_S)

    def stop(self) -> None:
        """Nothing to wait for: what runs is a daemon that only reads."""
        self._next_clock = self._next_purge = float("inf")

    def forget(self) -> None:
        """Remove what was kept of bases, states and updates, and the reply to the request in hand.

        The request itself, which holds nothing of this site's, stays until it is answered, with the code of the
        site's decision: a coordinator that hears nothing would wait until the round's deadline.
        """
        for part in KEPT:
            shutil.rmtree(self._folder / part, ignore_errors=True)
        Spool(self._folder / INBOX).drop_reply()
        logger.warning("kept updates, states and bases, and what was computed for the request in hand, were removed")

    def _look_at_clock(self) -> None:
        try:
            skew = measure_skew(self._config.coordinator)
        except FedDiffmicError as error:
            logger.warning("the clock could not be compared: %s", error.cause)
            return
        if skew is None:
            return
        if skew.refused:
            logger.error("%s: the coordinator refuses this site until its clock is right", skew)
        elif skew.near:
            logger.warning("%s", skew)
        else:
            logger.debug("%s", skew)

    def _purge(self, now: float) -> None:
        oldest = now - self._config.site.keep_days * 86400.0
        removed = 0
        for part in KEPT:
            for path in (self._folder / part).rglob("*"):
                try:
                    if path.is_file() and path.stat().st_mtime < oldest:
                        path.unlink()
                        removed += 1
                except OSError as error:
                    logger.warning("something old could not be removed: %s", error.strerror)
        if removed:
            logger.info("%d kept files older than %g days were removed", removed, self._config.site.keep_days)


def shorten_logs(folder: Path) -> None:
    """Set aside a child's log that has grown long (one old part is kept); to be called before the child starts."""
    for path in (folder / LOGS).glob("*.log"):
        if path.stat().st_size > LOG_BYTES:
            path.replace(path.with_suffix(".log.1"))
