"""Two faults at once: who is struck is each pair of processes, when and how and how far apart is drawn by a seed.

What one fault leaves, the other meets half mended. In the end the round has the weights that it has in the simulation,
or the coordinator ended by itself and said why, and does so after it was continued.
"""

from __future__ import annotations

import itertools
import os
import random
import re
import signal
import threading
import time
from dataclasses import dataclass
from typing import Any

from tests.consortium.faults import LOST, RUN_S, STRUCK, Outcome, Stand, finished, moment, recovery, stage_and_round
from tests.consortium.harness import SITES, START_S, alive, wait

PROCESSES = ("site worker", "SuperNode", "SuperLink", "coordinator")
OF_EACH_PAIR = 2
MOMENTS = (
    "before the task", "during training", "after training, before delivery", "during delivery", "during aggregation",
    "during checkpoint",
)  # fmt: skip
AT_ONCE, APART_S = 0.4, 8.0
CONTINUED = 2


@dataclass(frozen=True)
class Blow:
    """One of the two.

    Attributes:
        who: of :data:`PROCESSES`.
        how: a signal's name.
        site: whose worker or SuperNode.
    """

    who: str
    how: str
    site: str = STRUCK

    def __str__(self) -> str:
        return f"{self.who} {self.how}"


@dataclass(frozen=True)
class Double:
    """Two faults.

    Attributes:
        first: inside the moment.
        second: ``apart_s`` seconds after it, whatever is going on then.
        when: of :data:`MOMENTS`.
    """

    first: Blow
    second: Blow
    when: str
    apart_s: float

    @property
    def name(self) -> str:
        """For the test's id."""
        return re.sub(r"[^a-z0-9]+", "-", f"{self.first} {self.when} {self.second} {self.apart_s:.0f}s".lower())


def drawn(seed: int) -> list[Double]:
    """Two of each pair; the same for the same seed."""
    found = []
    for pair in itertools.combinations(PROCESSES, 2):
        for n in range(OF_EACH_PAIR):
            rng = random.Random(f"{seed} {pair} {n}")
            first, second = rng.sample(pair, 2)
            apart = 0.0 if rng.random() < AT_ONCE else round(rng.uniform(0.5, APART_S), 1)
            blows = [Blow(who, rng.choice(("SIGKILL", "SIGKILL", "SIGSTOP"))) for who in (first, second)]
            other = rng.choice(SITES) if second in ("site worker", "SuperNode") else STRUCK
            found.append(Double(blows[0], Blow(blows[1].who, blows[1].how, other), rng.choice(MOMENTS), apart))
    return found


def pid_of(stand: Stand, blow: Blow) -> int:
    """The process that is struck now, waited for if it is just being started again."""

    def found() -> int:
        if blow.who == "coordinator":
            return int(stand.coordinator.pid)
        if blow.who == "SuperLink":
            pid = stand.made.link_pid()
        else:
            state = stand.made.site_state(blow.site)["worker" if blow.who == "site worker" else "node"]
            pid = int(state.get("pid", 0))
        return pid if pid and alive(pid) else 0

    return int(wait(f"{blow.who} of {blow.site}", found, START_S))


def strike(stand: Stand, blow: Blow, stopped: list[int], held: list[int]) -> None:
    """Do it; what is stopped by it is remembered in ``stopped``, and is not let go with what holds the moment."""
    if blow.who != "coordinator" and stand.coordinator.process.poll() is not None:
        stand.ready()
    pid = pid_of(stand, blow)
    os.kill(pid, getattr(signal, blow.how))
    if blow.how == "SIGSTOP":
        held[:] = [other for other in held if other != pid]
        stopped.append(pid)


def run_double(stand: Stand, double: Double) -> Outcome:
    """Let both happen in the next round, and check what comes of it.

    Raises:
        AssertionError: not what must come.
    """
    made, stopped = stand.made, list[int]()
    stand.ready()
    with moment(stand, double.when) as held:
        struck = max(stage_and_round(stand)[1], 1)
        before = len([e for e in made.events.read() if e["kind"] == "round_done"])
        for program in made.programs:
            program.look()
        struck_at = time.time()
        strike(stand, double.first, stopped, held)
    if double.when == "during delivery":
        stand.link.heal()
    time.sleep(double.apart_s)
    strike(stand, double.second, stopped, [])

    def wake() -> None:
        for pid in stopped:
            if alive(pid):
                os.kill(pid, signal.SIGCONT)

    timer = threading.Timer(4 * made.heartbeat_s, wake)
    timer.daemon = True
    timer.start()
    try:
        clear = settled(stand, before, struck + 1 if double.when == "before the task" else struck)
    finally:
        timer.cancel()
        wake()
    for number, digest in finished(stand).items():
        assert digest == stand.reference[number - 1], f"round {number} has other weights"
    how = f"{double.first.how}, then {double.second} after {double.apart_s:g} s"
    outcome = Outcome(double.first.who, double.when, how, made.heartbeat_s)
    outcome.seconds, outcome.recovery_s = round(time.time() - struck_at, 1), recovery(made, struck_at)
    outcome.outcome = f"clear failure {clear} times; continued: equal weights" if clear else "equal weights"
    outcome.record()
    return outcome


def settled(stand: Stand, before: int, need: int) -> int:
    """Wait until the round is done; a coordinator that was killed is started as an init system does.

    Returns:
        How often the coordinator ended by itself and said why.
    """
    clear, until = 0, time.monotonic() + RUN_S
    while time.monotonic() < until:
        ended: Any = stand.coordinator.process.poll()
        if ended is not None:
            if ended != -signal.SIGKILL:
                said = stand.coordinator.said()
                assert ended in (4, 5, 6) and re.search(LOST, said) and "Traceback" not in said, said[-3000:]
                clear += 1
                assert clear <= CONTINUED, said[-3000:]
            stand.ready()
        done = [e for e in stand.made.events.read() if e["kind"] == "round_done"]
        if any(e["round"] >= need for e in done[before:]):
            return clear
        time.sleep(0.05)
    raise AssertionError(f"round {need} was not done within {RUN_S:g} s")
