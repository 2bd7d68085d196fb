"""Prometheus metrics and health of the coordinator, on a loopback port."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from fed_diffmic.reporting.events import Event
from fed_diffmic.transport.loopback import LoopbackPages
from server.status import OVER, RunStatus
from server.unnamed import UNNAMED

_SECONDS = (1, 5, 15, 60, 300, 900, 3600, 4 * 3600, 12 * 3600, 86400)


class Monitor:
    """Metrics made from a run's events and its status; an observer of the event log.

    Args:
        status: kept current by :class:`server.status.StatusWriter`.
        port: 0 chooses one.
        stale_s: health is 503 when the status was not written for so long.

    Raises:
        MachineError: the port is taken.
    """

    def __init__(self, status: RunStatus, port: int = 0, *, stale_s: float = 30.0) -> None:
        self._status = status
        self._stale_s = stale_s
        self._lock = threading.Lock()
        self._registry = registry = CollectorRegistry()
        self._round = Gauge("fed_diffmic_round", "rounds done in the stage", ["stage"], registry=registry)
        self._rounds = Gauge("fed_diffmic_rounds", "rounds of the stage", ["stage"], registry=registry)
        self._up = Gauge("fed_diffmic_run_active", "1 while the run goes on", registry=registry)
        self._seconds = Histogram(
            "fed_diffmic_round_seconds", "duration of a round", ["stage"], buckets=_SECONDS, registry=registry
        )
        self._bytes = Counter("fed_diffmic_tensor_bytes", "tensor bytes both ways", registry=registry)
        self._replies = Counter(
            "fed_diffmic_site_replies", "replies of a site by outcome", ["site", "outcome"], registry=registry
        )
        self._contact = Gauge(
            "fed_diffmic_site_contact_timestamp_seconds", "last contact with a site", ["site"], registry=registry
        )
        self._figure = Gauge("fed_diffmic_figure", "last validation figure", ["name"], registry=registry)
        self._restarts = Gauge("fed_diffmic_link_restarts", "restarts of the SuperLink", registry=registry)
        self._open = Gauge("fed_diffmic_connections", "open public connections", registry=registry)
        self._refused = Gauge("fed_diffmic_refused", "refused by the guard", ["reason"], registry=registry)
        self._pages = LoopbackPages(port, {"/metrics": self._metrics, "/health": self._health})
        self.port = self._pages.port

    def close(self) -> None:
        """Stop serving."""
        self._pages.close()

    def __call__(self, event: Event) -> None:
        """Take one event into account."""
        kind = event["kind"]
        if kind == "round_done":
            self._seconds.labels(event["stage"]).observe(float(event["seconds"] or 0))
            self._bytes.inc(float(event.get("bytes_sent") or 0))
        elif kind in ("site_done", "site_evaluated", "site_failed", "site_refused"):
            site = str(event.get("site") or "unknown")
            if not site.startswith(UNNAMED):
                self._replies.labels(site, kind.removeprefix("site_")).inc()

    def _metrics(self) -> tuple[int, str, bytes]:
        status = self._status
        with self._lock:
            if status.stage:
                self._round.labels(status.stage).set(status.round)
                self._rounds.labels(status.stage).set(status.rounds)
            self._up.set(0 if status.state in OVER else 1)
            self._restarts.set(status.restarts)
            self._open.set(status.connections)
            for reason, count in list(status.refused.items()):
                self._refused.labels(reason).set(count)
            for name, value in list(status.metrics.items()):
                self._figure.labels(name).set(value)
            for name, site in list(status.sites.items()):
                self._contact.labels(name).set(site.contact)
            return 200, CONTENT_TYPE_LATEST, generate_latest(self._registry)

    def _health(self) -> tuple[int, str, bytes]:
        status = self._status
        age = time.time() - status.updated
        well = age < self._stale_s and status.state != "failed"
        told: dict[str, Any] = {"run": status.run, "state": status.state, "age_s": round(age, 1)}
        return 200 if well else 503, "application/json", json.dumps(told).encode()
