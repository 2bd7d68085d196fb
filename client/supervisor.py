"""A site: a SuperNode and a worker, started, watched and started again until somebody says stop.

The supervisor computes nothing and talks to nobody but the coordinator's health page (for the clock). Whatever ends
or hangs below it is started again after a jittered, growing, bounded pause; what ends it is a signal, no contact for
``coordinator.give_up_s``, or a worker that cannot even start. Its own death, however sudden, ends its children.
"""

from __future__ import annotations

import logging
import os
import random
import secrets
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from client.control import RUNNING, WITHDRAW, control_text, read_control
from client.housekeeping import Housekeeping, shorten_logs
from client.journal import Journal
from client.start import LOGS, RUN, STATE, site_audit, start_worker
from client.status import worker_state
from client.watch import DOING
from client.watchdog import Watchdog, record
from fed_diffmic.config.site import CoordinatorConfig, SiteConfig
from fed_diffmic.console import INTERRUPTED, TERMINATED
from fed_diffmic.errors import FedDiffmicError, MachineError
from fed_diffmic.exchange.policy_text import names_nothing
from fed_diffmic.files import hold
from fed_diffmic.provision.keys import load_private, load_public
from fed_diffmic.transport.contact import Contact, read_contact
from fed_diffmic.transport.processes import Child, lock_file
from fed_diffmic.transport.supernode import NodeSettings, ca_certificates, start_supernode

STEP_S = 0.2
GRACE_S = 8.0
END_S = 3.0
STEADY_S = 60.0
READY_S = 300.0
STARTS = 8
QUIET_S = 120.0

logger = logging.getLogger(__name__)


def run_site(config: SiteConfig) -> int:
    """Take part until a signal comes.

    Args:
        config: checked by :func:`fed_diffmic.config.network_checks.check_site_start`.

    Returns:
        130 or 143: the signal that ended it (once: cleanly; twice: at once).

    Raises:
        ConfigError: a key or certificate cannot be used.
        MachineError: the folder or the key is in use, nothing was heard of the coordinator for too long, or the
            worker does not start.
    """
    folder = Path(str(config.site.folder))
    for path in (folder, folder / RUN, folder / LOGS):
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.chmod(0o700)
    shorten_logs(folder)
    way = config.coordinator
    if not way.insecure:
        ca_certificates(way.ca)
        load_private(str(way.key), way.key_passphrase)
        load_public(str(way.public_key))
    with ExitStack() as held:
        held.enter_context(lock_file(folder / RUN / "site.lock", f"the folder of site {config.site.name}"))
        if way.key is not None:
            held.enter_context(lock_key(Path(way.key)))
        return _Site(config, folder).run()


@contextmanager
def lock_key(path: Path) -> Iterator[None]:
    """Hold a site's key while it runs: two clients with one key would take each other's work.

    The key file itself is locked, so that it may lie where nothing can be written.

    Raises:
        MachineError: another process holds it.
    """
    with path.open("rb") as stream:
        hold(
            stream.fileno(),
            MachineError(
                f"the key {path} is in use by another client on this machine", "Stop that one; a key is one site's."
            ),
        )
        yield


@dataclass
class Keeper:
    """One child: started, and started again after a pause that doubles from failure to failure, with jitter.

    Attributes:
        name: for messages.
        start: starts it.
        first_s, longest_s: bounds of the pause.
        rng: of the jitter.
        why: says why it ended, where that is known.
    """

    name: str
    start: Callable[[], Child]
    first_s: float
    longest_s: float
    rng: random.Random = field(default_factory=random.Random)
    why: Callable[[], str] = str
    child: Child | None = None
    started: float = 0.0
    due: float = 0.0
    failures: int = 0

    def step(self, now: float) -> bool:
        """Start it if it is due, notice its end; true where it just ended."""
        if self.child is None:
            if now >= self.due:
                self.child, self.started = self.start(), now
                logger.info("%s started (process %d)", self.name, self.child.pid)
            return False
        code = self.child.poll()
        if code is None:
            if now - self.started > STEADY_S:
                self.failures = 0
            return False
        pause = self.pause()
        logger.warning("%s ended (%s); started again in %.1f s", self.name, self.why() or ending(code), pause)
        self.child, self.due = None, now + pause
        self.failures += 1
        return True

    def pause(self) -> float:
        """Seconds before the next start: between half of and the whole doubled pause, never above the longest."""
        longest = min(self.longest_s, self.first_s * 2.0 ** min(self.failures, 30))
        return self.rng.uniform(longest / 2, longest)

    def kill(self, why: str) -> None:
        """SIGKILL; the next step starts it again at once."""
        if self.child is not None:
            logger.warning("%s is ended: %s", self.name, why)
            self.child.kill()
            self.child, self.due = None, 0.0

    def end(self, why: str, grace_s: float) -> None:
        """SIGTERM, and SIGKILL after ``grace_s``; the next step starts it again at once."""
        if self.child is not None:
            logger.warning("%s is ended: %s", self.name, why)
            self.child.terminate(grace_s)
            self.child, self.due = None, 0.0

    def stop(self, grace_s: float) -> None:
        """End it for good."""
        if self.child is not None:
            self.child.terminate(grace_s)
            self.child = None


def ending(code: int) -> str:
    """How a process ended, in words."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


class _Site:
    """The running site."""

    def __init__(self, config: SiteConfig, folder: Path) -> None:
        self.config, self.folder, self.run_folder = config, folder, folder / RUN
        way = config.coordinator
        secret = secrets.token_hex(32)
        self.port = 0
        pauses = (way.retry_min_s, way.retry_max_s)
        self.node = Keeper("SuperNode", lambda: self._start_node(way, secret), *pauses, why=self._problem)
        self.worker = Keeper("worker", lambda: self._start_worker(secret), way.retry_min_s, way.retry_max_s)
        self.control = read_control(folder)
        self.audit = site_audit(config)
        self.housekeeping = Housekeeping(config, folder)
        self.journal = Journal(self.run_folder)
        self.watchdog = Watchdog(config.policy.limits, self.run_folder)
        self.signal: int | None = None
        self.last_contact = time.time()
        self.connected = False
        self.problem = ""
        self.said = 0.0
        self.dropped = (0, 0)

    def run(self) -> int:
        """Until a signal; children are gone when it returns or raises."""
        before = {number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        way = self.config.coordinator
        logger.info("site %s: coordinator %s", self.config.site.name, way.address)
        if way.insecure:
            logger.warning("INSECURE: no TLS, nobody is authenticated; for trials on one machine only")
        if self.control.state != RUNNING:
            logger.warning("this site is %s", control_text(self.control))
        if self.control.state == WITHDRAW:  # decided while nobody ran, or what was begun then was not finished
            self.housekeeping.forget()
        if closed := names_nothing(self.config.policy):
            logger.warning("%s", closed)
        self.journal.forget()
        try:
            while self.signal is None:
                self.step(time.time())
                time.sleep(STEP_S)
        finally:
            self._stop()
            for number, handler in before.items():
                signal.signal(number, handler)
        logger.info("stopped")
        return TERMINATED if self.signal == signal.SIGTERM else INTERRUPTED

    def step(self, now: float) -> None:
        """Look once at everything.

        Raises:
            MachineError: it makes no sense to go on.
        """
        self._follow_control()
        if self.node.step(now):
            self._without_node()
        self.worker.step(now)
        self._watch_worker()
        for entry in self.journal.news():
            logger.log(logging.WARNING if entry.code else logging.INFO, "%s", entry.sentence())
        contact = self._contact()
        if contact is not None:
            self._follow(contact, now)
        if self.worker.failures >= STARTS:
            raise MachineError(
                f"the worker ended {STARTS} times shortly after it started; its last words are in"
                f" {self.folder / LOGS / 'worker.log'}",
                "`fed-diffmic preflight --config FILE` looks for the cause.",
            )
        silent = now - self.last_contact
        if silent > self.config.coordinator.give_up_s:
            raise MachineError(
                f"nothing was heard of the coordinator ({self.config.coordinator.address}) for {silent:.0f} s: "
                f"{self.problem or 'it cannot be reached'}",
                "Check network, certificate and clock with `fed-diffmic preflight --config FILE`.",
            )
        self.housekeeping.step(now)

    def _contact(self) -> Contact | None:
        """What the present SuperNode says of itself, or none yet."""
        contact, child = read_contact(self.run_folder), self.node.child
        return contact if contact is not None and child is not None and contact.pid == child.pid else None

    def _problem(self) -> str:
        """The last words of a SuperNode that has just ended."""
        contact = self._contact()
        return "" if contact is None else contact.problem

    def _follow(self, contact: Contact, now: float) -> None:
        """What the SuperNode says: contact, problems, a worker or a SuperNode that hangs."""
        patience = 2 * self.config.coordinator.heartbeat_s
        self.port = contact.port
        self.last_contact = max(self.last_contact, contact.contact)
        if contact.problem and (contact.problem != self.problem or now - self.said > QUIET_S):
            logger.warning("coordinator %s: %s", self.config.coordinator.address, contact.problem)
            self.said = now
            self.housekeeping.clock_due()
        elif not contact.problem and contact.connected and (not self.connected or self.problem):
            logger.info("connected to the coordinator %s", self.config.coordinator.address)
            self._note("connected", address=str(self.config.coordinator.address))
        if contact.dropped and self.dropped != (contact.pid, contact.dropped):
            logger.warning("an undelivered reply was dropped: %s", contact.why)
            self.dropped = (contact.pid, contact.dropped)
        self.problem, self.connected = contact.problem, contact.connected
        if now - contact.alive > patience and self.node.child is not None and now - self.node.started > patience:
            self.node.kill("it does not move")
            self._without_node()
        since = max(
            self.worker.started, self.node.started
        )  # a new SuperNode has heard nobody yet, however old the worker
        spoke = contact.worker > since  # this one, not the one before it, which needs no time to load
        heard = max(contact.worker, since)
        if self.worker.child is not None and now - heard > (patience if spoke else READY_S):
            self.worker.kill("it does not move")
            self.worker.failures += 1

    def _without_node(self) -> None:
        """The SuperNode is gone, and with it this site's turn among the machine's: another one begins any moment.

        The worker would hold its model and its optimizer all the same, and could hand nothing to the next SuperNode,
        which has the request done again.
        """
        self.connected = False
        if self.config.site.turn is not None and worker_state(self.run_folder) == "working":
            self.worker.end("its turn ended with its SuperNode; the request is done again", END_S)

    def _watch_worker(self) -> None:
        """End a worker that takes more than the policy allows; its request is answered with that by the next one."""
        if self.worker.child is None:
            return
        found = self.watchdog.look(self.worker.child.pid, time.monotonic())
        if found is not None:
            facts = record(found, self.folder)  # first: the next worker gets the same request
            self.worker.end(found.why, END_S)
            self._note("ended", **facts)

    def _follow_control(self) -> None:
        """A decision of the site's people; withdrawing stops what is being computed or sent, and removes it."""
        control = read_control(self.folder)
        if control == self.control:
            return
        before, self.control = self.control, control
        logger.warning("this site is now %s (it was %s)", control_text(control), before.state)
        self._note("control", state=control.state)
        if control.state == WITHDRAW:
            self.worker.kill("the site withdraws")
            self.node.kill("the site withdraws")
            self.housekeeping.forget()

    def _note(self, kind: str, **facts: str | int) -> None:
        """A line in the audit log; that it cannot be written stops what leaves (the worker), not the supervision."""
        try:
            self.audit.append(kind, **facts)
        except FedDiffmicError as error:
            logger.error("%s", error.cause)

    def _start_node(self, way: CoordinatorConfig, secret: str) -> Child:
        settings = NodeSettings(
            address=str(way.address),
            folder=str(self.folder),
            run=str(self.run_folder),
            secret=secret,
            ca=way.ca,
            key=None if way.insecure else way.key,
            key_passphrase=None if way.insecure else way.key_passphrase,
            insecure=way.insecure,
            port=self.port,
            heartbeat_s=way.heartbeat_s,
            poll_s=way.poll_s,
            retry_min_s=way.retry_min_s,
            retry_max_s=way.retry_max_s,
            give_up_s=way.give_up_s,
            turn=self.config.site.turn,
            turn_s=self.config.site.turn_s,
        )
        return start_supernode(settings, self.folder / LOGS / "supernode.log", proxy=way.proxy)

    def _start_worker(self, secret: str) -> Child:
        for name in (STATE, DOING):
            (self.run_folder / name).unlink(missing_ok=True)
        return start_worker(self.config, self.run_folder, secret, self.folder / LOGS / "worker.log")

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:  # the second one: at once; the kernel ends the children with us
            os._exit(128 + number)
        self.signal = number

    def _stop(self) -> None:
        self.worker.stop(GRACE_S)
        self.node.stop(GRACE_S)
        self.housekeeping.stop()
