"""The fault matrix: who is struck, at which moment, how; and what must come of it.

All cells of one interval share a run of many rounds: each waits for its moment in the next one, strikes, and demands
that the round is then finished with the weights that it has in the simulation, bit for bit. A moment is found in what
the processes write (event log, audit log, state files) or in the bytes on the link, and is held by stopping a process
there while it is looked at once more: what missed its moment is tried again in the next round, never counted.
"""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Callable
from datetime import datetime

import pytest

from tests.consortium.harness import Consortium
from tests.consortium.link import fill
from tests.consortium.matrix import RUN_S, STRUCK, Cell, Outcome
from tests.consortium.moments import Stand, finished, moment, stage_and_round
from tests.consortium.programs import GoneError, alive, wait


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
