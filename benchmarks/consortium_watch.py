"""What the processes of a consortium hold: memory, descriptors, threads; who they are, told apart by start time too."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.consortium.harness import Consortium
from tests.consortium.programs import Program, children

ROLES = {
    "client.worker": "worker",
    "fed_diffmic.transport.supernode": "SuperNode",
    "fed_diffmic.transport.superlink": "SuperLink",
    "fed_diffmic.transport.superlink_child": "SuperLink",
}


@dataclass(frozen=True)
class Held:
    """One process at one moment.

    Attributes:
        role: coordinator, SuperLink, supervisor, SuperNode, worker, other.
        site: of the last three.
        pid, born: a process is known by both; numbers are used again.
        rss_mb, anon_mb, peak_mb: resident, of it not of files, and the most that was ever resident (MB of 10**6 bytes).
        descriptors, threads: how many.
    """

    role: str
    site: str
    pid: int
    born: int
    rss_mb: float
    anon_mb: float
    peak_mb: float
    descriptors: int
    threads: int

    def facts(self) -> dict[str, Any]:
        """For a line of a file."""
        return asdict(self)


def born(pid: int) -> int | None:
    """When the process started (clock ticks since boot); none where it is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def look(pid: int, role: str = "", site: str = "") -> Held | None:
    """One process; none where it is gone.

    Args:
        pid: of the process.
        role: empty: by its command line.
        site: whose it is.
    """
    start = born(pid)
    if start is None:
        return None
    folder = Path(f"/proc/{pid}")
    try:
        words = (folder / "cmdline").read_bytes().split(b"\0")
        lines = (folder / "status").read_text(encoding="utf-8").splitlines()
        status = dict(line.split(":", 1) for line in lines if ":" in line)
        descriptors = len(os.listdir(folder / "fd"))
    except (FileNotFoundError, ProcessLookupError):
        return None
    named = [ROLES[word] for word in (w.decode(errors="replace") for w in words) if word in ROLES]

    def megabytes(key: str) -> float:
        return round(int(status[key].split()[0]) * 1024 / 1e6, 1) if key in status else 0.0

    return Held(
        role or (named[0] if named else "other"), site, pid, start, megabytes("VmRSS"), megabytes("RssAnon"),
        megabytes("VmHWM"), descriptors, int(status.get("Threads", "0")),
    )  # fmt: skip


def everybody(made: Consortium) -> Iterator[Held]:
    """Every process of the consortium that lives."""
    for program in list(made.programs):
        if program.process.poll() is not None:
            continue
        coordinator = program.name == "coordinator"
        site = "" if coordinator else site_of(made, program)
        found = look(program.pid, "coordinator" if coordinator else "supervisor", site)
        if found is not None:
            yield found
        for pid in children(program.pid):
            child = look(pid, "", site)
            if child is not None:
                yield child


def site_of(made: Consortium, program: Program) -> str:
    """The site whose client this is."""
    return made.sites[int(program.name.removeprefix("site-"))]


def folder_bytes(folder: Path) -> int:
    """What lies in a folder."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:  # a temporary file that is gone again
            continue
    return total
