"""Child processes that never outlive us, their environment, ports and locks.

A child is a process of its own session and group. It asks the kernel to be killed when its parent
dies (:func:`die_with_parent`, the first thing its own ``main`` calls), so that even SIGKILL of a
supervisor leaves nothing behind; and it is stopped by group, so that what it started goes too.
Secrets travel on standard input, never on a command line or in the environment, where other users see them.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from fed_diffmic.errors import MachineError
from fed_diffmic.files import write_json

PARENT_VARIABLE = "FED_DIFFMIC_PARENT_PID"
MAX_STDIN = 60_000  # less than a pipe holds, so that writing it never waits for a child that does not read
_PR_SET_PDEATHSIG = 1
_WATCH_S = 0.5
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
_LOOPBACK = "localhost,127.0.0.1,::1"


def die_with_parent(parent: int | None = None) -> None:
    """Be killed when the parent dies; to be called first thing in a child's ``main``.

    On Linux the kernel does it (``PR_SET_PDEATHSIG``), even to a stopped process; elsewhere a thread looks
    twice a second. Linux means the parent's *thread*: start children from a thread that lives as long as they
    should. A parent that died before this call is noticed too.

    Args:
        parent: pid of the expected parent; none: what :func:`start_child` wrote into the environment, and
            if that is not there (the module was started by hand) nothing is done.
    """
    expected = parent or int(os.environ.get(PARENT_VARIABLE) or 0)
    if not expected:
        return
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    else:
        threading.Thread(target=_watch_parent, args=(expected,), daemon=True, name="parent").start()
    if os.getppid() != expected:
        os._exit(1)


def _watch_parent(expected: int) -> None:
    while os.getppid() == expected:
        time.sleep(_WATCH_S)
    os.killpg(os.getpgrp(), signal.SIGKILL)


class Child:
    """A running child and all that it started (its process group).

    Attributes:
        pid: of the child, and of its group.
        name: for messages.
        log: where its output goes.
        stdin: its standard input, where that was left open.
    """

    def __init__(self, process: subprocess.Popen[bytes], name: str, log: Path) -> None:
        self._process = process
        self.pid = process.pid
        self.stdin = process.stdin
        self.name = name
        self.log = log

    def poll(self) -> int | None:
        """Its exit code (negative: the signal that ended it), or none while it runs.

        Once it is over, what is left of its group is killed: a child's own children do not outlive it.
        """
        if self._process.returncode is None and self._ended():
            self._signal(signal.SIGKILL)  # before it is reaped: its number cannot be another's yet
        return self._process.poll()

    def wait(self, timeout_s: float) -> int | None:
        """As :meth:`poll`, waiting at most ``timeout_s`` seconds."""
        until = time.monotonic() + timeout_s
        while (code := self.poll()) is None and time.monotonic() < until:
            time.sleep(min(0.02, max(0.0, until - time.monotonic())))
        return code

    def terminate(self, grace_s: float = 5.0) -> int | None:
        """SIGTERM, at most ``grace_s`` seconds to end, then SIGKILL; returns the exit code."""
        if self.poll() is None:
            self._signal(signal.SIGTERM)
            if self.wait(grace_s) is None:
                self.kill()
        return self.poll()

    def kill(self) -> int | None:
        """SIGKILL to the whole group; returns the exit code (none: the kernel has it in its hands)."""
        if self.poll() is None:
            self._signal(signal.SIGKILL)
            self.wait(5.0)
        return self.poll()

    def last_lines(self, count: int = 10) -> list[str]:
        """The last lines that it wrote, for the supervisor's own log."""
        with suppress(OSError), self.log.open("rb") as stream:
            stream.seek(max(0, self.log.stat().st_size - 16_384))
            return stream.read().decode(errors="replace").splitlines()[-count:]
        return []

    def _ended(self) -> bool:
        try:
            return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:
            return True

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError, PermissionError):  # gone; macOS says the latter of zombies
            os.killpg(self.pid, number)


def start_child(
    module: str,
    args: Sequence[str] = (),
    *,
    env: Mapping[str, str],
    log: Path,
    stdin: bytes = b"",
    more: bool = False,
) -> Child:
    """Start ``python -m module`` in its own session, its output appended to ``log`` (0600).

    The folder one happens to be in is not on the child's path: a ``secrets.py`` lying there is not imported.

    Args:
        module: whose ``main`` calls :func:`die_with_parent` first.
        args: command line, visible to every user of the machine.
        env: the whole environment (:func:`child_env`).
        log: file for standard output and error.
        stdin: what the child reads: settings and secrets, at most 60 000 bytes.
        more: leave its standard input open (:attr:`Child.stdin`); else it ends after ``stdin``.

    Raises:
        MachineError: the log cannot be written, or no process can be started.
    """
    if len(stdin) > MAX_STDIN:
        raise ValueError(f"{len(stdin)} bytes for a child's standard input; at most {MAX_STDIN}")
    command = [sys.executable, "-P", "-m", module, *args]
    try:
        out = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                command,
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**env, PARENT_VARIABLE: str(os.getpid())},
                start_new_session=True,
            )
        finally:
            os.close(out)
    except OSError as error:
        raise MachineError(f"{module} cannot be started: {error}", "Free memory, processes or space.") from error
    assert process.stdin is not None
    with suppress(BrokenPipeError):  # a child that is over already is found by poll()
        process.stdin.write(stdin)
        process.stdin.flush() if more else process.stdin.close()
    return Child(process, module, log)


def child_env(folder: Path, *, proxy: str | None = None) -> dict[str, str]:
    """The environment of a child that runs Flower.

    Flower's own files go below ``folder`` (made, 0700); nothing calls home; this environment's programs
    are found first. A proxy is what the configuration says and nothing else, and never used for loopback.

    Args:
        folder: ``FLWR_HOME``.
        proxy: ``http://host:port``, or none.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    env = {name: value for name, value in os.environ.items() if name.upper() not in _PROXIES}
    env |= {
        "FLWR_HOME": str(folder.absolute()),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "NO_PROXY": _LOOPBACK,
        "no_proxy": _LOOPBACK,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        "PYTHONUNBUFFERED": "1",
    }
    if proxy:
        env |= {"HTTP_PROXY": proxy, "HTTPS_PROXY": proxy, "http_proxy": proxy, "https_proxy": proxy}
    return env


def ignore_proxies() -> None:
    """Let this process reach loopback directly, whatever the proxy variables of its environment say."""
    for name in ("NO_PROXY", "no_proxy"):
        before = os.environ.get(name, "")
        os.environ[name] = f"{before},{_LOOPBACK}" if before else _LOOPBACK


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port that is free now (another process may take it before it is bound)."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


@contextmanager
def lock_file(path: Path, what: str = "") -> Iterator[None]:
    """Hold a lock while the block runs, without waiting for it; a process that dies lets go of it.

    Args:
        path: the lock's file; who holds it is written next to it.
        what: what is locked, for the message; none: the path.

    Raises:
        MachineError: another process holds it; names it. Or the file cannot be made.
    """
    lock, holder = FileLock(path, timeout=0, mode=0o600), path.with_name(path.name + ".holder")
    try:
        lock.acquire()
    except Timeout:
        raise MachineError(
            f"{what or path} is in use by {_holder(holder)}",
            "Stop that process, or wait until it is done; two at once would spoil each other's work.",
        ) from None
    except OSError as error:
        raise MachineError(f"{path} cannot be locked: {error.strerror}", "Choose a folder you may write to.") from error
    try:
        since = datetime.now(UTC).isoformat(timespec="seconds")
        write_json(holder, {"pid": os.getpid(), "host": socket.gethostname(), "since": since}, 0o600)
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def _holder(path: Path) -> str:
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        return f"process {said['pid']} on {said['host']}, since {said['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
