"""Opening DICOM files in processes of their own, within a time and a memory: a bad file is a reason, never a crash.

Processes are started when they are needed, kept for the next file, and replaced when they end. They end with this one.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

import fed_diffmic
from fed_diffmic.data.dicom.child import LENGTH, MEMORY, packed
from fed_diffmic.data.dicom.reasons import UnusableError, readers
from fed_diffmic.errors import MachineError

SECONDS = 60.0
"""Seconds that one file may take, where nothing else is said."""

_GRACE_S = 5.0  # for starting and for the pipe, beyond the child's own alarm
_START_S = 60.0  # a cold disk, a loaded machine: importing the libraries is not the file's fault
_MODULE = "fed_diffmic.data.dicom.child"
_MOST_IDLE = 16
_CGROUP = Path("/sys/fs/cgroup/memory.max")
_PASSED_ON = (
    *("PATH", "PYTHONPATH", "PYTHONHOME", "PYTHONUSERBASE", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH"),
    *("LANG", "LANGUAGE"),
)  # what an interpreter needs to start and to find its libraries, beside LC_*; a token or a password is none of it


def most_at_once() -> int:
    """Processes that may run at once: one for each core, as far as their bounds together fit into the memory."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return int(max(1, min(cores, _memory() // MEMORY)))


def _memory() -> float:
    """Bytes of memory of the machine, or of the container where that has less; infinite where nothing says so."""
    found = [float("inf")]
    with contextlib.suppress(OSError, ValueError):
        found.append(float(os.sysconf("SC_PAGE_SIZE")) * os.sysconf("SC_PHYS_PAGES"))
    with contextlib.suppress(OSError, ValueError):  # "max" where there is no bound
        found.append(float(_CGROUP.read_text()))
    return min(found)


class Decoders:
    """Processes that open DICOM files; any number of threads may ask at a time, each of them waits for its own.

    Args:
        at_once: most processes, those that wait for work among them.
    """

    def __init__(self, at_once: int | None = None) -> None:
        self._at_once = at_once or most_at_once()
        self._lock = threading.Lock()
        self._idle: list[_Process] = []
        self._free = threading.Semaphore(self._at_once)
        self._owner = os.getpid()
        atexit.register(self.close)

    def ask(self, head: dict[str, Any], data: bytes, seconds: float = SECONDS) -> tuple[dict[str, Any], bytes]:
        """One question about one file.

        Args:
            head: what is asked (:mod:`fed_diffmic.data.dicom.child`).
            data: content of the file.
            seconds: that it may take.

        Raises:
            UnusableError: the file cannot be used, whatever the reason.
            MachineError: no process can be started.
        """
        if not readers():
            raise UnusableError("dicom_not_installed")
        with self._place():  # the wait has an end: each of those who are before has a time of its own
            process = self._take()
            try:
                answer, body = process.ask({**head, "seconds": seconds}, data, seconds)
            except BaseException:
                process.end()
                raise
            self._give_back(process)
        if "reason" in answer:
            raise UnusableError(answer["reason"])
        return answer, body

    def close(self) -> None:
        """End the processes that wait for work."""
        with self._lock:
            idle, self._idle = self._idle, []
        if self._owner == os.getpid():
            for process in idle:
                process.end()

    def _place(self) -> threading.Semaphore:
        with self._lock:
            if self._owner != os.getpid():  # after a fork the pipes are the parent's, and so are those who wait
                self._idle, self._owner = [], os.getpid()
                self._free = threading.Semaphore(self._at_once)
            return self._free

    def _take(self) -> _Process:
        with self._lock:
            while self._idle:
                process = self._idle.pop()
                if process.lives():
                    return process
        return _Process()

    def _give_back(self, process: _Process) -> None:
        with self._lock:
            if len(self._idle) < _MOST_IDLE:
                self._idle.append(process)
                return
        process.end()


class _Process:
    """One process that opens files."""

    def __init__(self) -> None:
        root = str(Path(fed_diffmic.__file__).parents[1])
        path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH", "")])])
        passed = {name: os.environ[name] for name in os.environ if name in _PASSED_ON or name.startswith("LC_")}
        env = {**passed, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        try:
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                [sys.executable, "-P", "-m", _MODULE],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=env,
                bufsize=0,
            )
        except OSError as error:
            raise MachineError(
                f"no process can be started to open DICOM files: {error.strerror}", "Free memory or processes."
            ) from error
        assert self._process.stdin is not None and self._process.stdout is not None
        self._in, self._out = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._in, False)
        self._fresh = True

    def lives(self) -> bool:
        return self._process.poll() is None

    def end(self) -> None:
        """End it and take its leave; the pipes are closed."""
        self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_GRACE_S)
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()

    def ask(self, head: dict[str, Any], data: bytes, seconds: float) -> tuple[dict[str, Any], bytes]:
        until = time.monotonic() + seconds + (_START_S if self._fresh else _GRACE_S)
        self._fresh = False
        self._write(packed(head, data), until)
        self._write(data, until)
        length = int.from_bytes(self._read(LENGTH, until), "big")
        answer = json.loads(self._read(length, until))
        return answer, self._read(answer["bytes"], until)

    def _write(self, data: bytes, until: float) -> None:
        rest = memoryview(data)
        while rest:
            self._wait(self._in, selectors.EVENT_WRITE, until)
            try:
                rest = rest[os.write(self._in, rest) :]
            except BlockingIOError:
                continue
            except BrokenPipeError:
                raise self._ended() from None

    def _read(self, count: int, until: float) -> bytes:
        parts: list[bytes] = []
        while count:
            self._wait(self._out, selectors.EVENT_READ, until)
            part = os.read(self._out, min(count, 2**20))
            if not part:
                raise self._ended()
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def _wait(self, fd: int, event: int, until: float) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(fd, event)
            if not selector.select(max(0.0, until - time.monotonic())):
                raise UnusableError("dicom_too_slow")

    def _ended(self) -> UnusableError:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_GRACE_S)
        slow = self._process.returncode == -signal.SIGALRM
        return UnusableError("dicom_too_slow" if slow else "dicom_crashed")


DECODERS = Decoders()
"""Those of this process."""


def rendered(
    data: bytes, *, frame: int | None = None, window: str = "auto", most_pixels: int, seconds: float = SECONDS
) -> tuple[np.ndarray, dict[str, Any]]:
    """One frame of a DICOM file, decoded in a process of its own (:func:`fed_diffmic.data.dicom.picture.picture_of`).

    Returns:
        ``(h, w)`` uint16, 0 black, or ``(h, w, 3)`` uint8 RGB; and how brightness was made.

    Raises:
        UnusableError: the file cannot be used.
        MachineError: no process can be started.
    """
    head = {"what": "picture", "frame": frame, "window": window, "most_pixels": most_pixels}
    answer, body = DECODERS.ask(head, data, seconds)
    pixels = np.frombuffer(body, dtype=np.dtype(answer["dtype"])).reshape(answer["shape"])
    return pixels, {**answer["stated"], "narrow": answer["narrow"]}
