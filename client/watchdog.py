"""Ends a worker that takes longer or more memory than the site's policy allows, from outside its process.

Inside, time is looked at between steps and memory not at all. Here the supervisor compares the worker's own word
(:mod:`client.watch`) with the clock, and what the kernel says of its memory with ``policy.limits.memory_mib``.
"""

from __future__ import annotations

import logging
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from client.watch import Doing, Mark, leave_mark, read_doing
from fed_diffmic.config.policy_limits import MEMORY_SHARE, Limits
from fed_diffmic.errors import FedDiffmicError
from fed_diffmic.exchange.failures import LIMIT_MEMORY, POLICY_HOURS

MEMORY_S = 0.5
_MIB = 2**20
_CGROUP = Path("/sys/fs/cgroup/memory.max")
logger = logging.getLogger(__name__)

_OWN = ("RssAnon:", "RssShmem:", "VmSwap:")


@dataclass(frozen=True)
class Verdict:
    """A worker that must end.

    Attributes:
        why: in words, for the log.
        code: what its request is answered with.
        allowed: the bound that it broke: seconds, or MiB.
        doing: the task in hand; none: it broke the bound between tasks.
    """

    why: str
    code: int
    allowed: float
    doing: Doing | None


class Watchdog:
    """Looks at the worker whenever the supervisor does.

    Args:
        limits: the site's.
        run: folder of the state files.
        memory: bytes that the worker may have; none: as the limits and the machine say.
    """

    def __init__(self, limits: Limits, run: Path, memory: float | None = None) -> None:
        self._limits, self._run = limits, run
        self.memory = memory_bound(limits) if memory is None else memory
        self._next_memory = 0.0

    def look(self, pid: int, now: float) -> Verdict | None:
        """Why the worker must end, or none.

        Args:
            pid: of the worker.
            now: on the monotonic clock.
        """
        doing = read_doing(self._run)
        if doing is not None and doing.pid != pid:  # of the worker before this one
            doing = None
        if doing is not None and doing.until is not None and now > doing.until + self._limits.grace_s:
            allowed = doing.allowed or 0.0
            over = now - doing.until
            why = f"its task took {over:.0f} s longer than the {allowed:.0f} s that it may"
            return Verdict(why, doing.code, allowed, doing)
        if now < self._next_memory:
            return None
        self._next_memory = now + MEMORY_S
        used = resident_bytes(pid)
        if used <= self.memory:
            return None
        allowed = self.memory / _MIB
        why = f"it has {used / _MIB:.0f} MiB of memory and may have {allowed:.0f} (policy.limits.memory_mib)"
        return Verdict(why, LIMIT_MEMORY, allowed, doing)


def record(verdict: Verdict, folder: Path) -> dict[str, str | int]:
    """Leave the mark by which the request is answered, and say what happened for the audit log.

    No mark is left of a task that its policy's hours ended: outside of them the policy refuses it by itself, and inside
    it may be done.

    Args:
        folder: the site's own.
    """
    doing = verdict.doing
    if doing is None:
        return {"code": verdict.code, "reason": verdict.why}
    if verdict.code != POLICY_HOURS:
        mark = Mark(doing.task, doing.phase, verdict.code, verdict.allowed, time.time())
        try:
            leave_mark(folder, doing.request, mark)
        except (FedDiffmicError, OSError) as error:  # the worker is ended all the same
            logger.error("a task that is ended may be tried again: %s", error)
    return {"code": verdict.code, "reason": verdict.why, "task": doing.task, "request": doing.request}


def memory_bound(limits: Limits) -> float:
    """Bytes that the worker may have; infinite where neither the policy nor the machine says."""
    if limits.memory_mib:
        return limits.memory_mib * _MIB
    return MEMORY_SHARE * machine_memory()


def machine_memory() -> float:
    """Bytes of memory of the machine, or of the container where that has less; infinite where nothing says so."""
    found = [float("inf")]
    with suppress(OSError, ValueError):
        found.append(float(os.sysconf("SC_PAGE_SIZE")) * os.sysconf("SC_PHYS_PAGES"))
    with suppress(OSError, ValueError):  # "max" where there is no bound
        found.append(float(_CGROUP.read_text()))
    return min(found)


def resident_bytes(pid: int) -> int:
    """Memory that a process and its children (a worker's further devices) hold of their own, on this machine or swapped
    out; 0 where the system does not say.

    Mapped files do not count (the decoded images, the libraries): the kernel takes them back when it needs to.
    """
    return sum(_resident(one) for one in (pid, *_children(pid)))


def _resident(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith(_OWN))


def _children(pid: int) -> list[int]:
    """Processes that it started and that run."""
    found: list[int] = []
    with suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with suppress(OSError):  # over since
                found += [int(child) for child in (thread / "children").read_text().split()]
    return found
