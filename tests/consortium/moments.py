"""A consortium at work, and the moments of a round at which something can be made to fail."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import takewhile
from pathlib import Path
from typing import Any

from tests.consortium.harness import Consortium
from tests.consortium.link import Clock, Link, small_disk
from tests.consortium.matrix import REQUEST_BYTES, RUN_S, STRUCK
from tests.consortium.programs import START_S, Program, wait
from tests.consortium.settings import SITES


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


def audit_lines(stand: Stand) -> list[dict[str, Any]]:
    """The lines of the coordinator's audit log."""
    return stand.made.audit.read()


def aggregating(lines: list[dict[str, Any]]) -> bool:
    """Every site's update is there (beside its metrics of the round before), and nobody was asked anything since."""
    last = takewhile(lambda line: line["kind"] == "reply", reversed(lines))
    return sum(line["facts"].get("reply") == "train.reply" for line in last) == len(SITES)


def saving(lines: list[dict[str, Any]]) -> bool:
    """The round's metrics are there, its checkpoint is not."""
    return bool(lines) and lines[-1]["kind"] == "aggregate"


def between(lines: list[dict[str, Any]]) -> bool:
    """A round is over, nobody was asked anything in the next one."""
    return bool(lines) and lines[-1]["kind"] == "checkpoint"


AUDITED = {"before the task": between, "during aggregation": aggregating, "during checkpoint": saving}


def held(stand: Stand, is_now: Callable[[list[dict[str, Any]]], bool]) -> int | None:
    """The coordinator's pid, stopped at that moment; none yet."""
    if not is_now(audit_lines(stand)):
        return None
    pid = stand.coordinator.pid
    os.kill(pid, signal.SIGSTOP)
    if is_now(audit_lines(stand)):
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
