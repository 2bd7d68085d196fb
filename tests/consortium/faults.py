"""The fault matrix: who is struck, at which moment, how; and what must come of it.

A moment is found in what the processes write (event log, audit log, state files) or in the bytes on the link, and is
held by stopping a process there while it is looked at once more: what missed its moment is tried again in the
next round, never counted.
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
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tests.consortium.harness import (
    SITES,
    START_S,
    Consortium,
    GoneError,
    Program,
    alive,
    children,
    final_weights,
    wait,
)
from tests.consortium.link import Clock, Link, fill, small_disk

RECORDS = "FED_DIFFMIC_RELIABILITY"
STRUCK = SITES[0]
LATE = SITES[2]
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
        seconds: from the start of the coordinator to the end of the run.
        recovery_s: from the fault to the next sign of progress (a site's good reply or a checkpoint).
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


MATRIX = (
    Cell("site worker", "before the task", "SIGKILL"),
    Cell("site worker", "during training", "SIGKILL", normal=True),
    Cell("site worker", "during training", "SIGSTOP"),
    Cell("site worker", "after training, before delivery", "SIGKILL"),
    Cell("site worker", "during delivery", "SIGKILL"),
    Cell("SuperNode", "before the task", "SIGKILL"),
    Cell("SuperNode", "during training", "SIGKILL"),
    Cell("SuperNode", "during training", "SIGSTOP", normal=True),
    Cell("SuperNode", "after training, before delivery", "SIGKILL"),
    Cell("SuperNode", "during delivery", "SIGKILL", normal=True),
    Cell("site supervisor", "before the task", "SIGKILL"),
    Cell("site supervisor", "during training", "SIGKILL"),
    Cell("site supervisor", "during training", "SIGSTOP"),
    Cell("site supervisor", "after training, before delivery", "SIGKILL", normal=True),
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
    Cell("link", "during training", "stalled for good", failure="did not reply before the deadline",
         settings=("run.deadline_s=20",), normal=True),
    Cell("link", "during delivery", "stalled for a while", normal=True),
    Cell("link", "during delivery", "cut for a while"),
    Cell("site's disk", "during training", "full", failure="1 of 3|2 of 3"),
    Cell("coordinator's disk", "during checkpoint", "full", failure="space", normal=True),
    Cell("site", "before the task", "clock 10 s ahead", failure="not connected|could not be reached",
         settings=("run.join_s=15",), normal=True),
    Cell("site", "during training", "clock 10 min ahead", failure="did not reply before the deadline|not connected",
         settings=("run.deadline_s=30",)),
    Cell("coordinator", "during training", "clock 10 s ahead"),
)  # fmt: skip


class Stand:
    """Sites that stand by from cell to cell; each cell has a run, and a coordinator, of its own.

    Args:
        folder, data, common: as of :class:`Consortium`.
        heartbeat_s: Flower's interval.
    """

    def __init__(self, folder: Path, data: Path, common: dict[str, Any], heartbeat_s: float) -> None:
        self.stack = ExitStack()
        self.made = Consortium(folder, data, common, heartbeat_s=heartbeat_s)
        self.link = Link(self.made.port)
        self.stack.callback(self.link.close)
        self.made.reroute(STRUCK, self.link.port)
        self.common = common
        self.sites: dict[str, Program] = {}

    def ready(self, *, late: bool, clock: Clock | None = None) -> None:
        """Every site runs, the late one only if it is wanted now; one that was replaced starts anew."""
        for site in SITES:
            if site == LATE and late:
                self.stop(site)
            elif site not in self.sites or self.sites[site].process.poll() is not None:
                env = clock.env if clock is not None and site == STRUCK else {}
                self.sites[site] = self.made.start_site(site, **env)

    def stop(self, site: str) -> None:
        """SIGTERM, and see that it ends as it should."""
        program = self.sites.pop(site, None)
        if program is not None and program.process.poll() is None:
            program.look()
            program.process.terminate()
            assert program.wait(30) == 143, program.said()

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
    def coordinator(self) -> Program:
        """The one that was started last."""
        return [p for p in self.made.programs if p.name == "coordinator"][-1]

    def close(self) -> list[int]:
        """End everything; pids that outlived their supervisor."""
        try:
            return self.made.end()
        finally:
            self.stack.close()


# ---- moments -----------------------------------------------------------------------------------------
def connected(stand: Stand, site: str) -> bool:
    """Whether a site's SuperNode lives and is connected, and its worker waits for a task."""
    state = stand.made.site_state(site)
    node, worker = state["node"], state["worker"]
    pids = children(stand.sites[site].pid)
    lives = node.get("pid") in pids and worker.get("pid") in pids
    return lives and bool(node.get("connected")) and worker.get("state") == "ready"


def stage_and_round(stand: Stand) -> tuple[str, int]:
    """The round under way; ("", 0) before the first."""
    rounds = [e for e in stand.made.events.read() if e["kind"] == "round_started"]
    return (rounds[-1]["stage"], rounds[-1]["round"]) if rounds else ("", 0)


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
    """Every site's update is there, and nobody was asked for figures yet."""
    last = lines[-len(SITES) :]
    return len(last) == len(SITES) and all(
        line["kind"] == "reply" and line["facts"].get("reply") == "train.reply" for line in last
    )


def saving(lines: list[dict[str, Any]]) -> bool:
    """The round's figures are there, its checkpoint is not."""
    return bool(lines) and lines[-1]["kind"] == "aggregate"


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
def moment(stand: Stand, when: str) -> Iterator[None]:
    """Inside, the moment has come and lasts; afterwards whatever was stopped to hold it goes on, if it lives."""
    stopped: list[int] = []
    if when == "before the task":
        for site in SITES[:2]:
            stand.made.wait_event("site_found", START_S, site=site)
            wait(f"{site} is ready", lambda site=site: connected(stand, site), START_S)
    elif when in ("during training", "after training, before delivery"):
        stopped.append(wait("training", lambda: training(stand), RUN_S, 0.0005))
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
        test = aggregating if when == "during aggregation" else saving
        stopped.append(wait(when, lambda: held(stand, test), RUN_S, 0.0002))
    try:
        yield
    finally:
        for pid in stopped:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


# ---- faults ------------------------------------------------------------------------------------------
class Fault:
    """A cell as it happens on a stand."""

    def __init__(self, stand: Stand, cell: Cell, clock: Clock | None) -> None:
        self.stand, self.cell, self.clock = stand, cell, clock
        self.struck_at = 0.0
        self.filler: Path | None = None
        self.wake: Callable[[], None] = lambda: None

    def strike(self) -> None:
        """Do it, inside its moment."""
        cell, link = self.cell, self.stand.link
        self.struck_at = time.time()
        if cell.how in ("SIGKILL", "SIGSTOP"):
            pid = self.stand.pid(cell.who)
            os.kill(pid, getattr(signal, cell.how))
            self.wake = lambda: os.kill(pid, signal.SIGCONT) if cell.how == "SIGSTOP" and alive(pid) else None
        elif cell.who == "link":
            link.cut() if cell.how.startswith("cut") else link.stall()
            self.wake = link.heal
        elif cell.how == "full":
            own = cell.who == "site's disk"
            self.filler = fill(self.stand.made.site_folder(STRUCK) if own else self.stand.made.run_dir)
        else:
            assert self.clock is not None
            self.clock.ahead(600 if "min" in cell.how else 10)

    def restart(self) -> None:
        """What an init system does at once: start again what it had started itself."""
        if self.cell.how == "SIGKILL" and self.cell.who == "site supervisor":
            self.stand.sites[STRUCK].wait(5)
            self.stand.ready(late=False)
        if self.cell.how == "SIGKILL" and self.cell.who == "coordinator":
            self.stand.coordinator.wait(5)
            self.stand.made.start_server(*self.cell.settings, resume=True)
        if self.cell.when == "during delivery" and self.cell.who != "link":
            self.stand.link.heal()

    def mend(self) -> None:
        """Take the cause away."""
        if self.filler is not None:
            self.filler.unlink()
        if self.clock is not None:
            self.clock.ahead(0)
        self.wake()


def run_cell(stand: Stand, cell: Cell, reference: dict[str, bytes], workplace: Path) -> Outcome:
    """Let it happen, and check what comes of it.

    Args:
        stand: its sites may run already.
        cell: the fault.
        reference: weights of the undisturbed run.
        workplace: folder for the clock.
    """
    made = stand.made
    outcome = Outcome(cell.who, cell.when, cell.how, made.heartbeat_s)
    with ExitStack() as held_open:
        clock = Clock(workplace / "clock") if "clock" in cell.how else None
        made.new_run(cell.name)
        if cell.who == "coordinator's disk":
            held_open.enter_context(small_disk(made.run_dir, 64))
        if cell.who == "site's disk":
            stand.stop(STRUCK)
            held_open.enter_context(small_disk(made.site_folder(STRUCK), 64))
        if clock is not None and cell.who == "site":
            stand.stop(STRUCK)
        late = cell.when == "before the task"
        begun = time.monotonic()
        env = clock.env if clock is not None and cell.who == "coordinator" else {}
        server = made.start_server(*cell.settings, **env)
        stand.ready(late=late, clock=clock)
        fault = Fault(stand, cell, clock)
        if late and clock is not None:
            fault.strike()  # it is wrong from the start
        else:
            with moment(stand, cell.when):
                fault.strike()
        server.look()
        fault.restart()
        pause = 4 * made.heartbeat_s if cell.how == "SIGSTOP" else 2.5 * made.heartbeat_s
        timer = threading.Timer(pause, fault.mend)
        if not cell.failure:
            timer.start()
        try:
            if late:
                stand.ready(late=False, clock=clock)
            if cell.failure:
                fail_clearly(stand, cell)
                outcome.outcome = "clear failure; mended, continued with --resume: equal weights"
                fault.mend()
                stand.ready(late=False, clock=clock)
                made.start_server("run.deadline_s=150", "run.join_s=150", resume=True)
            code = stand.coordinator.wait(RUN_S)
        finally:
            timer.cancel()
            fault.mend() if not cell.failure else None
        assert code == 0, stand.coordinator.said()[-3000:]
        assert final_weights(made.run_dir) == reference
        outcome.seconds = round(time.monotonic() - begun, 1)
        outcome.recovery_s = recovery(made, fault.struck_at)
        outcome.outcome = outcome.outcome or "equal weights"
        if cell.who == "site's disk" or clock is not None:
            stand.stop(STRUCK)
    outcome.record()
    return outcome


def fail_clearly(stand: Stand, cell: Cell) -> None:
    """The coordinator ends by itself, with an exit code and words that say why."""
    code = stand.coordinator.wait(RUN_S)
    said = stand.coordinator.said()
    assert code in (4, 5, 6), f"{code}\n{said[-3000:]}"
    assert re.search(cell.failure, said), said[-3000:]
    assert "Traceback" not in said, said[-3000:]


def recovery(made: Consortium, struck_at: float) -> float | None:
    """Seconds from the fault to the next good reply or checkpoint."""
    from datetime import datetime

    good = ("site_done", "site_evaluated", "round_done", "site_found")
    times = [datetime.fromisoformat(e["time"]).timestamp() for e in made.events.read() if e["kind"] in good]
    later = [t for t in times if t > struck_at]
    return round(min(later) - struck_at, 1) if later else None


__all__ = ["MATRIX", "Cell", "GoneError", "Outcome", "Stand", "replace", "run_cell"]
