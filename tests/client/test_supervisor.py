"""The supervisor: pauses between starts, locks, and nothing that outlives it."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from client.start import LOGS
from client.supervisor import Keeper, ending, lock_key
from fed_diffmic.errors import MachineError
from fed_diffmic.transport.processes import Child

DRIVER = """
import json, sys
from fed_diffmic.config.site import SiteConfig
from fed_diffmic.console import run_command
from fed_diffmic.reporting.logs import set_up_logs
from fed_diffmic.config.spec import parse_dataclass
from client.supervisor import run_site
set_up_logs()
config = parse_dataclass(SiteConfig, json.loads(sys.argv[1]), "config")
sys.exit(run_command(lambda: run_site(config)))
"""


class Dead:
    """A child that is over."""

    pid = 1

    def poll(self) -> int:
        return 3


def test_pauses_grow_with_jitter_to_the_longest() -> None:
    keeper = Keeper("x", lambda: cast(Child, Dead()), 1.0, 8.0, random.Random(5))
    now, pauses = 0.0, []
    for _ in range(7):
        assert not keeper.step(now)
        assert keeper.step(now)
        pauses.append(keeper.due - now)
        assert not keeper.step(now)
        assert keeper.child is None
        now = keeper.due
    for pause, whole in zip(pauses, (1, 2, 4, 8, 8, 8, 8), strict=True):
        assert whole / 2 <= pause <= whole
    assert len(set(pauses)) == 7
    assert keeper.failures == 7


def test_why_a_child_ended_is_said_where_it_is_known(caplog: pytest.LogCaptureFixture) -> None:
    said = ["", "the coordinator does not accept this site"]
    keeper = Keeper("SuperNode", lambda: cast(Child, Dead()), 1.0, 8.0, why=lambda: said.pop(0))
    for _ in range(2):
        keeper.step(keeper.due)
        keeper.step(keeper.due)
    lines = [line.split(";")[0] for line in caplog.messages if "ended" in line]
    assert lines == ["SuperNode ended (exit code 3)", "SuperNode ended (the coordinator does not accept this site)"]


def test_how_a_child_ended_is_said_in_words() -> None:
    assert (ending(3), ending(-9), ending(-64)) == ("exit code 3", "SIGKILL", "SIGRTMAX")


def test_a_key_is_held_by_one_client(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("k")
    key.chmod(0o400)
    with lock_key(key), pytest.raises(MachineError, match="in use"), lock_key(key):
        pass
    with lock_key(key):
        pass


def wait(what: Callable[[], Any], bound_s: float = 120.0) -> Any:
    until = time.monotonic() + bound_s
    while time.monotonic() < until:
        found = what()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError(f"not within {bound_s} s")


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] != "Z"
    except OSError:
        return False


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []

    def run(**coordinator: object) -> subprocess.Popen[str]:
        way = {"address": "127.0.0.1:1", "insecure": True, "retry_min_s": 0.1, "retry_max_s": 0.3, **coordinator}
        config = {"site": {"name": "one", "folder": str(tmp_path / "site"), "device": ["cpu"]}, "coordinator": way}
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", DRIVER, json.dumps(config)],
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ},
            )
        )
        return started[-1]

    try:
        yield run
    finally:
        for process in started:
            process.kill()
            process.communicate(timeout=20)


def children(parent: int) -> list[int]:
    """Pids of the SuperNode and the worker, once both run."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(stat.read_text().rsplit(") ", 1)[1].split()[1]) == parent:
                found.append(int(stat.parent.name))
        except (OSError, IndexError):  # it ended while it was looked at
            continue
    return found if len(found) == 2 else []


def test_killed_it_leaves_nothing_behind_and_a_second_client_is_refused(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    first, folder = start(), tmp_path / "site"
    pids = wait(lambda: children(first.pid))
    assert all(alive(pid) for pid in pids)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert all(path.stat().st_mode & 0o077 == 0 for path in (folder / LOGS).iterdir())
    second = start()
    assert second.wait(120) == MachineError.exit_code
    assert "is in use by process" in second.communicate()[1]
    first.kill()
    wait(lambda: not any(alive(pid) for pid in pids), 10)


def test_a_signal_ends_it_cleanly_and_no_contact_ends_it_with_the_reason(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    ended = start()
    pids = wait(lambda: children(ended.pid))
    ended.send_signal(signal.SIGTERM)
    assert ended.wait(60) == 143
    assert not any(alive(pid) for pid in pids)
    silent = start(give_up_s=4.0)
    assert silent.wait(120) == MachineError.exit_code
    said = silent.communicate()[1]
    assert "nothing was heard of the coordinator (127.0.0.1:1)" in said
    assert "policy: closed, nothing is named in policy.runs" in said and "every request will be refused" in said
