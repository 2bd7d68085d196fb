"""How a run stands, for people: a small file that is replaced as it goes, and its text."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fed_diffmic.errors import FedDiffmicError, MachineError, ModelFileError, UsageError
from fed_diffmic.exchange.remedies import at_coordinator
from fed_diffmic.exchange.screening import REFUSALS
from fed_diffmic.files import read_json, write_json
from fed_diffmic.reporting.events import Event
from fed_diffmic.reporting.view import duration
from fed_diffmic.transport.processes import lock_file
from server.unnamed import UNNAMED

STATUS, LOCK = "status.json", "run.lock"
OVER = ("done", "failed", "interrupted")


@dataclass
class SiteStatus:
    """A site as the coordinator sees it.

    Attributes:
        contact: Unix time of its last request; 0: none yet.
        state: ``expected``, ``ready``, ``asked``, ``replied``, ``waits`` (asks for patience), ``failed`` or
            ``removed``.
        round: last round to which it replied.
        reason: why it failed last, or for what it waits.
        since: Unix time at which that began; 0: there is no reason.
        remedy: what the coordinator's people can do about it.
        images: training images it said it has.
    """

    contact: float = 0.0
    state: str = "expected"
    round: int = 0
    reason: str = ""
    images: int = 0
    since: float = 0.0
    remedy: str = ""

    def is_well(self, state: str) -> None:
        """It does what it should."""
        self.state, self.reason, self.since, self.remedy = state, "", 0.0, ""

    def is_not(self, state: str, event: Event) -> None:
        """It does not, and why; since when stays as long as the reason does."""
        reason = str(event.get("reason") or event.get("code") or "")
        if reason != self.reason:
            self.since = time.time()
        self.state, self.reason, self.remedy = state, reason, at_coordinator(event.get("code"))


@dataclass
class RunStatus:
    """A run as it stands; written as ``status.json``.

    Attributes:
        state: ``starting``, ``waiting`` (for sites), ``running``, ``done``, ``failed`` or ``interrupted``.
        quorum: sites that a round needs.
        round_seconds: of the rounds of this stage so far, for the time that is left.
    """

    run: str
    address: str
    insecure: bool
    state: str = "starting"
    stage: str = ""
    round: int = 0
    rounds: int = 0
    quorum: int = 0
    bytes_sent: int = 0
    restarts: int = 0
    message: str = ""
    started: float = field(default_factory=time.time)
    updated: float = 0.0
    round_seconds: list[float] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    sites: dict[str, SiteStatus] = field(default_factory=dict)
    refused: dict[str, int] = field(default_factory=dict)
    connections: int = 0

    @property
    def left_s(self) -> float | None:
        """Seconds that the rest of the stage takes if its rounds go on as they did."""
        if not self.round_seconds or self.rounds <= self.round or self.state in OVER:
            return None
        return sum(self.round_seconds) / len(self.round_seconds) * (self.rounds - self.round)


class StatusWriter:
    """Follows a run's events and the guard's counts, and keeps ``status.json`` current.

    Args:
        folder: the run's.
        status: to start from.
        counts: what the guard saw, or none while there is no SuperLink.
        quorum: sites needed of a number of sites.
        pause_s: how often it is written.
    """

    def __init__(
        self,
        folder: Path,
        status: RunStatus,
        counts: Callable[[], Mapping[str, Any] | None],
        quorum: Callable[[int], int],
        *,
        pause_s: float = 2.0,
    ) -> None:
        self.status = status
        self._path = folder / STATUS
        self._counts = counts
        self._quorum = quorum
        self._pause_s = pause_s
        self._lock = threading.RLock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._tick, daemon=True, name="status")

    def start(self) -> None:
        """Write now and from here on."""
        self.write()
        self._thread.start()

    def finish(self, state: str, message: str = "") -> None:
        """Write how it ended, and no more."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join(timeout=10)
        with self._lock:
            self.status.state, self.status.message = state, message
        self.write()

    def write(self) -> None:
        """Replace ``status.json``."""
        with self._lock:
            self.status.updated = time.time()
            self.status.quorum = self._quorum(len(self.status.sites))
            value = {**asdict(self.status), "left_s": self.status.left_s}
        write_json(self._path, value)

    def __call__(self, event: Event) -> None:
        """Take one event into account."""
        with self._lock:
            self._follow(event)
        if event["kind"] in ("stage_started", "round_started", "round_done", "site_found"):
            self.write()

    def _tick(self) -> None:
        while not self._over.wait(self._pause_s):
            counts = self._counts()
            with self._lock:
                if counts is not None:
                    self.status.refused = dict(counts["refused"])
                    self.status.connections = int(counts["open"])
                    for name, at in counts["contact"].items():
                        self.site(name).contact = float(at)
            try:
                self.write()
            except MachineError as error:  # a full disk ends the run where results are written, not here
                self.status.message = error.cause

    def site(self, name: str) -> SiteStatus:
        """The status of a site, from now on listed."""
        return self.status.sites.setdefault(name, SiteStatus())

    def _follow(self, event: Event) -> None:
        status, kind = self.status, event["kind"]
        site = self.site(str(event["site"])) if event.get("site") and kind.startswith("site_") else None
        if kind == "stage_started":
            status.state, status.stage, status.round_seconds = "running", str(event["stage"]), []
            status.round, status.rounds = int(event.get("round") or 0), int(event.get("rounds") or 0)
        elif kind == "round_started":
            status.state, status.round, status.rounds = "running", int(event["round"]) - 1, int(event["rounds"])
            for name in event.get("sites") or []:
                self.site(name).state = "asked"
        elif kind == "round_done":
            status.round = int(event["round"])
            status.round_seconds.append(float(event["seconds"] or 0))
            status.bytes_sent += int(event.get("bytes_sent") or 0)
            status.metrics = {k: v for k, v in (event.get("figures") or {}).items() if v is not None}
        elif kind == "link_lost":
            status.restarts += 1
        elif site is not None and not str(event["site"]).startswith(UNNAMED):
            _follow_site(site, kind, event)
        elif site is not None:
            del status.sites[str(event["site"])]


def _follow_site(site: SiteStatus, kind: str, event: Event) -> None:
    if kind == "site_found":
        site.is_well("ready")
        site.images = int((event.get("images") or {}).get("train", 0))
    elif kind in ("site_done", "site_evaluated"):
        site.is_well("replied")
        site.round = max(site.round, int(event.get("round") or 0))
    elif kind == "site_removed":
        site.is_not("removed", {**event, "code": "roster", "reason": REFUSALS["roster"]})
    elif kind == "site_admitted" and site.state == "removed":
        site.is_well("expected")
    elif site.state == "removed":  # whatever its node does now, that is why
        return
    elif kind == "site_waits":
        site.is_not("waits", event)
    elif kind in ("site_failed", "site_refused"):
        site.is_not("failed", event)


def show_status(folder: Path) -> str:
    """What ``flower-server status RUN`` prints.

    Raises:
        UsageError: no such run.
    """
    try:
        value = read_json(folder / STATUS)
    except ModelFileError as error:
        raise UsageError(f"{folder} is not the folder of a run of flower-server", "Give run.dir of the run.") from error
    state = str(value["state"])
    if state not in OVER and not is_held(folder):
        state = "not running (the coordinator was killed; continue with --resume)"
    lines = [f"run      {value['run']}: {state}" + (f" ({value['message']})" if value.get("message") else "")]
    if value.get("insecure"):
        lines[0] = f"INSECURE {lines[0]}"
    over = state in OVER
    if over:
        lines.append(f"ended    {_age(value['updated'])}; it listened on {value['address']}")
    else:
        lines.append(f"listens  {value['address']}, {value['connections']} connections, {_age(value['updated'])}")
    if value["stage"]:
        lines.append(f"stage    {value['stage']}, {value['round']} of {value['rounds']} rounds done")
    if value["metrics"]:
        lines.append("last     " + ", ".join(f"{k} {v:.3f}" for k, v in value["metrics"].items()))
    sent = f"{value['bytes_sent'] / 1e6:,.1f} MB of tensors"
    left = duration(round(value["left_s"])) if value["left_s"] is not None else "unknown"
    lines.append(f"sent     {sent}" if over else f"left     {left} in this stage; {sent} so far")
    lines.append(f"quorum   {value['quorum']} of {len(value['sites'])} sites; {value['restarts']} restarts of the link")
    if value["refused"]:
        lines.append("refused  " + ", ".join(f"{k} {v}" for k, v in sorted(value["refused"].items())))
    lines.append(f"{'site':<24} {'state':<9} {'round':>5} {'images':>7}  last contact")
    for name, site in sorted(value["sites"].items()):
        contact = _age(site["contact"]) if site["contact"] else "none yet"
        lines.append(f"{name:<24} {site['state']:<9} {site['round']:>5} {site['images']:>7}  {contact}")
        if site["reason"]:
            since = f" (since {_age(site['since'])})" if site.get("since") else ""
            lines.append(f"  {name}: {site['reason']}{since}")
            if site.get("remedy"):
                lines.append(f"    {site['remedy']}")
    return "\n".join(lines)


def is_held(folder: Path) -> bool:
    """Whether a coordinator works in the run's folder now."""
    if not (folder / LOCK).exists():
        return False
    try:
        with lock_file(folder / LOCK):
            return False
    except FedDiffmicError:
        return True


def _age(at: float) -> str:
    seconds = max(0, round(time.time() - at))
    stamp = datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S")
    return f"{stamp} UTC, {duration(seconds)} ago"
