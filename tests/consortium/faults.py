"""The fault matrix: who is struck, at which moment, how; and what must come of it.

All cells of one interval share a run of many rounds: each waits for its moment in the next one, strikes, and demands
that the round is then finished with the weights that it has in the simulation, bit for bit. A moment is found in what
the processes write (event log, audit log, state files) or in the bytes on the link, and is held by stopping a process
there while it is looked at once more: what missed its moment is tried again in the next round, never counted.
"""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.consortium.harness import SITES, START_S, Consortium, GoneError, Program, alive, wait
from tests.consortium.link import Clock, Link, fill, small_disk

RECORDS = "FED_DIFFMIC_RELIABILITY"
STRUCK = SITES[0]
RUN_S = 400.0
REQUEST_BYTES = 40_000

WHO = ("site worker", "SuperNode", "site supervisor", "SuperLink", "coordinator", "link", "site", "site's disk",
       "coordinator's disk")  # fmt: skip
WHEN = ("before the task", "during training", "after training, before delivery", "during delivery",
        "during aggregation", "during checkpoint")  # fmt: skip
HOW = ("SIGKILL", "SIGSTOP", "stalled for a while", "cut for a while", "stalled for good", "full", "clock 10 s ahead",
       "clock 10 min ahead")  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """One fault.

    Attributes:
        who, when, how: what happens (:data:`WHO`, :data:`WHEN`, :data:`HOW`).
        normal: among those of every run of the tests, with short intervals; all run with Flower's own as ``slow``.
        failure: words of the clear failure in which it must end (before the cause is mended and the run continued);
            empty: it must end by itself.
        settings: of the coordinator.
    """

    who: str
    when: str
    how: str
    normal: bool = False
    failure: str = ""
    settings: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """For the test's id and its folder."""
        return re.sub(r"[^a-z0-9]+", "-", f"{self.who} {self.when} {self.how}".lower())


@dataclass
class Outcome:
    """What came of it.

    Attributes:
        outcome: in words.
        seconds: from the fault to the end of the round that it struck.
        recovery_s: from the fault to the struck site's next good reply.
    """

    who: str
    when: str
    how: str
    heartbeat_s: float
    outcome: str = ""
    seconds: float = 0.0
    recovery_s: float | None = None

    def record(self) -> None:
        """Append it to the file that :data:`RECORDS` names, if it does."""
        path = os.environ.get(RECORDS)
        if path:
            with open(path, "a", encoding="utf-8") as stream:
                stream.write(json.dumps(asdict(self)) + "\n")


LOST = (
    "did not reply before the deadline|process failed or is not there|no time was left|it is not connected|"
    "could not be reached"
)
MATRIX = (
    Cell("site worker", "before the task", "SIGKILL"),
    Cell("site worker", "during training", "SIGKILL", normal=True),
    Cell("site worker", "during training", "SIGSTOP"),
    Cell("site worker", "after training, before delivery", "SIGKILL"),
    Cell("site worker", "during delivery", "SIGKILL"),
    Cell("SuperNode", "before the task", "SIGKILL"),
    Cell("SuperNode", "during training", "SIGKILL"),
    Cell("SuperNode", "during training", "SIGSTOP"),
    Cell("SuperNode", "after training, before delivery", "SIGKILL"),
    Cell("SuperNode", "during delivery", "SIGKILL"),
    Cell("site supervisor", "before the task", "SIGKILL"),
    Cell("site supervisor", "during training", "SIGKILL"),
    Cell("site supervisor", "during training", "SIGSTOP"),
    Cell("site supervisor", "after training, before delivery", "SIGKILL"),
    Cell("site supervisor", "during delivery", "SIGKILL"),
    Cell("SuperLink", "before the task", "SIGKILL"),
    Cell("SuperLink", "during training", "SIGKILL", normal=True),
    Cell("SuperLink", "during training", "SIGSTOP"),
    Cell("SuperLink", "during delivery", "SIGKILL"),
    Cell("SuperLink", "during aggregation", "SIGKILL"),
    Cell("SuperLink", "during checkpoint", "SIGKILL"),
    Cell("coordinator", "before the task", "SIGKILL"),
    Cell("coordinator", "during training", "SIGKILL"),
    Cell("coordinator", "during training", "SIGSTOP"),
    Cell("coordinator", "during delivery", "SIGKILL"),
    Cell("coordinator", "during aggregation", "SIGKILL"),
    Cell("coordinator", "during checkpoint", "SIGKILL", normal=True),
    Cell("link", "before the task", "cut for a while"),
    Cell("link", "during training", "cut for a while"),
    Cell("link", "during training", "stalled for good", failure=LOST,
         settings=("run.deadline_s=30",)),
    Cell("link", "during delivery", "stalled for a while"),
    Cell("link", "during delivery", "cut for a while"),
    Cell("site's disk", "during training", "full", failure="1 of 3|2 of 3"),
    Cell("coordinator's disk", "during checkpoint", "full", failure="space", normal=True),
    Cell("site", "before the task", "clock 10 s ahead", failure=LOST, settings=("run.deadline_s=30",)),
    Cell("site", "during training", "clock 10 min ahead", failure=LOST, settings=("run.deadline_s=30",)),
    Cell("coordinator", "during training", "clock 10 s ahead"),
)  # fmt: skip


class Stand:
    """Three sites and a coordinator in a run of many rounds, on which one cell after the other happens.

    Args:
        folder, data, common: as of :class:`Consortium`.
        heartbeat_s: Flower's interval.
        reference: weights' digest after each round of the first stage, of the undisturbed simulation.
    """

    def __init__(
        self, folder: Path, data: Path, common: dict[str, Any], heartbeat_s: float, reference: list[str]
    ) -> None:
        self.stack = ExitStack()
        self.made = Consortium(folder, data, common, heartbeat_s=heartbeat_s)
        self.reference = reference
        self.link = Link(self.made.port)
        self.stack.callback(self.link.close)
        self.made.reroute(STRUCK, self.link.port)
        self.clocks = {who: Clock.make(folder / f"clock-{who}") for who in ("site", "coordinator")}
        self.disks = {
            who: small_disk(path, self.stack)
            for who, path in (("site's disk", self.made.site_folder(STRUCK)), ("coordinator's disk", self.made.run_dir))
        }
        self.sites: dict[str, Program] = {}
        self.settings: tuple[str, ...] = ()

    def ready(self, settings: tuple[str, ...] = ()) -> None:
        """Everybody runs, the coordinator with these settings; whoever ended is started as an init system does."""
        for site in SITES:
            if site not in self.sites or self.sites[site].process.poll() is not None:
                clock = self.clocks["site"] if site == STRUCK else None
                self.sites[site] = self.made.start_site(site, **(clock.env if clock else {}))
        runs = self.coordinator is not None and self.coordinator.process.poll() is None
        if runs and settings != self.settings:
            self.coordinator.look()
            self.coordinator.process.terminate()
            assert self.coordinator.wait(60) == 143, self.coordinator.said()
            runs = False
        if not runs:
            clock, given = self.clocks["coordinator"], settings or ("run.deadline_s=150", "run.join_s=150")
            resume = (self.made.run_dir / "config.yaml").exists()
            self.made.start_server(*given, resume=resume, **(clock.env if clock else {}))
            self.settings = settings

    def stop(self) -> None:
        """SIGTERM to everybody, and see that all end as they should."""
        programs = [p for p in (*self.sites.values(), self.coordinator) if p is not None and p.process.poll() is None]
        for program in programs:
            program.look()
            program.process.terminate()
        assert [program.wait(60) for program in programs] == [143] * len(programs)

    def pid(self, who: str) -> int:
        """Of the process that is struck."""
        state = self.made.site_state(STRUCK)
        if who == "site worker":
            return int(state["worker"]["pid"])
        if who == "SuperNode":
            return int(state["node"]["pid"])
        if who == "site supervisor":
            return self.sites[STRUCK].pid
        return self.made.link_pid() if who == "SuperLink" else self.coordinator.pid

    @property
    def coordinator(self) -> Any:
        """The one that was started last, or none."""
        found = [p for p in self.made.programs if p.name == "coordinator"]
        return found[-1] if found else None

    def close(self) -> list[int]:
        """End everything; pids that outlived their supervisor."""
        try:
            return self.made.end()
        finally:
            self.stack.close()


# ---- moments -----------------------------------------------------------------------------------------
def stage_and_round(stand: Stand) -> tuple[str, int]:
    """The round under way; ("", 0) where none is."""
    facts = [e for e in stand.made.events.read() if e["kind"] in ("round_started", "federation_resumed", "run_failed")]
    going = bool(facts) and facts[-1]["kind"] == "round_started"
    return (facts[-1]["stage"], facts[-1]["round"]) if going else ("", 0)


def finished(stand: Stand) -> dict[int, str]:
    """Digest of the weights after each round that is done, as the coordinator said it."""
    return {int(e["round"]): str(e["weights"]) for e in stand.made.events.read() if e["kind"] == "round_done"}


def training(stand: Stand) -> int | None:
    """The pid of the struck site's worker, stopped while it trains; none yet."""
    place = stage_and_round(stand)
    state = stand.made.site_state(STRUCK)["worker"]
    if not place[1] or state.get("state") != "working":
        return None
    pid = int(state["pid"])
    os.kill(pid, signal.SIGSTOP)
    again = stand.made.site_state(STRUCK)["worker"]
    done = [e for e in stand.made.events.read()
            if e["kind"] == "site_done" and e["site"] == STRUCK and (e["stage"], e["round"]) == place]  # fmt: skip
    if again == state and not done and place == stage_and_round(stand):
        return pid
    os.kill(pid, signal.SIGCONT)
    return None


def trail(stand: Stand) -> list[dict[str, Any]]:
    """The lines of the coordinator's audit log."""
    return stand.made.audit.read()


def aggregating(lines: list[dict[str, Any]]) -> bool:
    """Every site's update is there, and nobody was asked for metrics yet."""
    last = lines[-len(SITES) :]
    return len(last) == len(SITES) and all(
        line["kind"] == "reply" and line["facts"].get("reply") == "train.reply" for line in last
    )


def saving(lines: list[dict[str, Any]]) -> bool:
    """The round's metrics are there, its checkpoint is not."""
    return bool(lines) and lines[-1]["kind"] == "aggregate"


def between(lines: list[dict[str, Any]]) -> bool:
    """A round is over, nobody was asked anything in the next one."""
    return bool(lines) and lines[-1]["kind"] == "checkpoint"


AUDITED = {"before the task": between, "during aggregation": aggregating, "during checkpoint": saving}


def held(stand: Stand, is_now: Callable[[list[dict[str, Any]]], bool]) -> int | None:
    """The coordinator's pid, stopped at that moment; none yet."""
    if not is_now(trail(stand)):
        return None
    pid = stand.coordinator.pid
    os.kill(pid, signal.SIGSTOP)
    if is_now(trail(stand)):
        return pid
    os.kill(pid, signal.SIGCONT)
    return None


@contextmanager
def moment(stand: Stand, when: str) -> Iterator[list[int]]:
    """Inside, the moment has come and lasts; then the pids in the list, stopped to hold it, go on if they live."""
    stopped: list[int] = []
    if when in ("during training", "after training, before delivery"):
        stopped.append(wait("training", lambda: training(stand), RUN_S, 0.001))
        if when != "during training":
            worker = stopped.pop()
            node = int(stand.made.site_state(STRUCK)["node"]["pid"])
            os.kill(node, signal.SIGSTOP)
            stopped.append(node)
            os.kill(worker, signal.SIGCONT)
            stand.made.wait_state(STRUCK, ("replying",), START_S)
    elif when == "during delivery":
        wait("a round", lambda: stage_and_round(stand)[1], RUN_S)
        stand.link.stop_inside(REQUEST_BYTES)
        assert stand.link.hit.wait(RUN_S), "no large request of the site came by"
    else:
        stopped.append(wait(when, lambda: held(stand, AUDITED[when]), RUN_S, 0.001))
    try:
        yield stopped
    finally:
        for pid in stopped:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


# ---- faults ------------------------------------------------------------------------------------------
class Fault:
    """A cell as it happens on a stand."""

    def __init__(self, stand: Stand, cell: Cell) -> None:
        self.stand, self.cell = stand, cell
        self.struck_at = time.time()
        self.wake: Callable[[], None] = lambda: None
        self._mended = threading.Lock()

    def strike(self, stopped: list[int]) -> None:
        """Do it, inside its moment, for which these processes were stopped."""
        cell, link = self.cell, self.stand.link
        self.struck_at = time.time()
        if cell.how in ("SIGKILL", "SIGSTOP"):
            pid = self.stand.pid(cell.who)
            os.kill(pid, getattr(signal, cell.how))
            if cell.how == "SIGSTOP":
                stopped[:] = [other for other in stopped if other != pid]
                self.wake = lambda: os.kill(pid, signal.SIGCONT) if alive(pid) else None
        elif cell.who == "link":
            link.cut() if cell.how.startswith("cut") else link.stall()
            self.wake = link.heal
        elif cell.how == "full":
            own = cell.who == "site's disk"
            filler = fill(self.stand.made.site_folder(STRUCK) if own else self.stand.made.run_dir)
            self.wake = lambda: filler.unlink(missing_ok=True)
        else:
            clock = self.stand.clocks[cell.who]
            assert clock is not None
            clock.ahead(600 if "min" in cell.how else 10)
            self.wake = lambda: clock.ahead(0)

    def mend(self) -> None:
        """Take the cause away, once."""
        if self._mended.acquire(blocking=False):
            self.wake()


def run_cell(stand: Stand, cell: Cell) -> Outcome:
    """Let it happen in the next round, and check what comes of it.

    Raises:
        AssertionError: not what must come.
    """
    made = stand.made
    if "clock" in cell.how and stand.clocks[cell.who] is None:
        pytest.skip("no C compiler: the clock of a process cannot be changed here")
    if cell.how == "full" and not stand.disks[cell.who]:
        pytest.skip("no small file system can be mounted here")
    outcome = Outcome(cell.who, cell.when, cell.how, made.heartbeat_s)
    stand.ready(cell.settings)
    fault = Fault(stand, cell)
    with moment(stand, cell.when) as stopped:
        round_struck = max([place[1] for place in [stage_and_round(stand)]] + [1])
        before = len([e for e in made.events.read() if e["kind"] == "round_done"])
        for program in made.programs:
            program.look()
        fault.strike(stopped)
    if cell.how == "SIGKILL" and cell.who in ("site supervisor", "coordinator"):
        (stand.sites[STRUCK] if cell.who == "site supervisor" else stand.coordinator).wait(5)
        stand.ready(cell.settings)
    if cell.when == "during delivery" and cell.who != "link":
        stand.link.heal()
    timer = threading.Timer((4 if cell.how == "SIGSTOP" else 2.5) * made.heartbeat_s, fault.mend)
    timer.daemon = True
    if not cell.failure:
        timer.start()
    try:
        if cell.failure:
            fail_clearly(stand, cell)
            outcome.outcome = "clear failure; mended, continued: equal weights"
            fault.mend()
            stand.ready()
        need = round_struck + 1 if cell.when == "before the task" else round_struck
        wait(f"round {need} done", lambda: done(stand, before, need), RUN_S, 0.01)
    finally:
        timer.cancel()
        fault.mend()
    for number, digest in finished(stand).items():
        assert digest == stand.reference[number - 1], f"round {number} has other weights"
    outcome.seconds = round(time.time() - fault.struck_at, 1)
    outcome.recovery_s = recovery(made, fault.struck_at)
    outcome.outcome = outcome.outcome or "equal weights"
    outcome.record()
    return outcome


def done(stand: Stand, before: int, need: int) -> bool:
    """Whether a round from ``need`` on was finished since; a coordinator that ended instead is an error."""
    events = [e for e in stand.made.events.read() if e["kind"] == "round_done"]
    if stand.coordinator.process.poll() is not None:
        raise GoneError(f"the coordinator ended:\n{stand.coordinator.said()[-3000:]}")
    return any(e["round"] >= need for e in events[before:])


def fail_clearly(stand: Stand, cell: Cell) -> None:
    """The coordinator ends by itself, with an exit code and words that say why."""
    code = stand.coordinator.wait(RUN_S)
    said = stand.coordinator.said()
    assert code in (4, 5, 6), f"{code}\n{said[-3000:]}"
    assert re.search(cell.failure, said), said[-3000:]
    assert "Traceback" not in said, said[-3000:]
    if "clock" in cell.how:
        log = (stand.made.site_folder(STRUCK) / "logs" / "client.jsonl").read_text(encoding="utf-8")
        assert "clock" in log, log[-3000:]


def recovery(made: Consortium, struck_at: float) -> float | None:
    """Seconds from the fault to the struck site's next good reply (faults elsewhere delay it too)."""
    good = [e for e in made.events.read() if e["kind"] in ("site_done", "site_evaluated") and e["site"] == STRUCK]
    times = [datetime.fromisoformat(e["time"]).timestamp() for e in good]
    later = [t for t in times if t > struck_at]
    return round(min(later) - struck_at, 1) if later else None
