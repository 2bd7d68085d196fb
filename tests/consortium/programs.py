"""Programs as they are started from a shell: their lines, their children, and waiting for what they do."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

POLL_S = 0.002
START_S = 300.0  # with both cores at work for others
BIN = Path(sys.executable).parent


class GoneError(AssertionError):
    """Something did not happen within its bound."""


def environment(**more: str) -> dict[str, str]:
    """Of every process here: one thread, nothing called home, no proxy."""
    env = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    return {**env, "OMP_NUM_THREADS": "1", "FLWR_TELEMETRY_ENABLED": "0", "PYTHONUNBUFFERED": "1", **more}


def free_port() -> int:
    """A port nobody listens on now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def alive(pid: int) -> bool:
    """Whether the process is there and not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def children(pid: int) -> list[int]:
    """Every process below this one."""
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            for child in map(int, path.read_text().split()):
                found += [child, *children(child)]
    return found


def wait(what: str, found: Callable[[], Any], timeout_s: float, poll_s: float = POLL_S) -> Any:
    """The first true value of ``found``.

    Raises:
        GoneError: there was none within ``timeout_s`` seconds.
    """
    until = time.monotonic() + timeout_s
    while True:
        value = found()
        if value:
            return value
        if time.monotonic() > until:
            raise GoneError(f"not within {timeout_s:g} s: {what}")
        time.sleep(poll_s)


class Lines:
    """The JSON lines of a growing file, read as they come."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._position = 0
        self.seen: list[dict[str, Any]] = []

    def read(self) -> list[dict[str, Any]]:
        """All whole lines so far."""
        with suppress(FileNotFoundError), self.path.open("rb") as stream:
            stream.seek(self._position)
            data = stream.read()
            whole = data[: data.rfind(b"\n") + 1]
            self._position += len(whole)
            for line in whole.splitlines():
                with suppress(ValueError):  # torn by a kill
                    self.seen.append(json.loads(line))
        return self.seen


@dataclass
class Program:
    """One of the two commands, started here."""

    name: str
    process: subprocess.Popen[bytes]
    output: Path
    pids: set[int] = field(default_factory=set)

    @property
    def pid(self) -> int:
        return self.process.pid

    def look(self) -> None:
        """Remember its children, so that none is missed in the end."""
        self.pids |= {self.pid, *children(self.pid)}

    def said(self) -> str:
        return self.output.read_text(encoding="utf-8", errors="replace")

    def wait(self, timeout_s: float) -> int:
        """Its exit code.

        Raises:
            GoneError: it still runs after ``timeout_s`` seconds.
        """
        wait(f"the end of {self.name}\n{self.said()[-2000:]}", lambda: self.process.poll() is not None, timeout_s, 0.02)
        return int(self.process.returncode)
