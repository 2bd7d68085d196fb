import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fed_diffmic.errors import MachineError
from fed_diffmic.transport import processes
from fed_diffmic.transport.processes import Child, child_env, free_port, lock_file, start_child

SLEEPER = """
import subprocess, sys, time
from fed_diffmic.transport.processes import die_with_parent
die_with_parent()
said = sys.stdin.read()
grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)"])
print("said", said, "grandchild", grandchild.pid, flush=True)
time.sleep(120)
"""
PARENT = """
import sys, time
from pathlib import Path
from fed_diffmic.transport.processes import child_env, start_child
folder = Path(sys.argv[1])
env = child_env(folder / "home") | {"PYTHONPATH": str(folder)}
child = start_child("sleeper", env=env, log=folder / "log")
print(child.pid, flush=True)
time.sleep(120)
"""


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"


def gone(pid: int, seconds: float = 10.0) -> bool:
    until = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < until:
        time.sleep(0.02)
    return not alive(pid)


@pytest.fixture
def child(tmp_path):
    (tmp_path / "sleeper.py").write_text(SLEEPER)
    env = child_env(tmp_path / "home") | {"PYTHONPATH": str(tmp_path)}
    started = start_child("sleeper", env=env, log=tmp_path / "log", stdin=b"hush")
    try:
        until = time.monotonic() + 30
        while "grandchild" not in (tmp_path / "log").read_text() and time.monotonic() < until:
            time.sleep(0.02)
        yield started
    finally:
        started.kill()


def grandchild_of(child: Child) -> int:
    return int(child.last_lines()[-1].split()[-1])


def test_secrets_go_by_stdin_and_the_log_is_private(child):
    assert "said hush" in child.last_lines()[-1]
    assert child.log.stat().st_mode & 0o777 == 0o600
    cmdline = Path(f"/proc/{child.pid}/cmdline")
    if cmdline.exists():
        assert b"hush" not in cmdline.read_bytes()


def test_terminate_takes_the_whole_group(child):
    grandchild = grandchild_of(child)
    assert child.poll() is None
    assert child.terminate(5.0) == -signal.SIGTERM
    assert gone(grandchild)


def test_a_child_that_was_killed_leaves_no_grandchild(child):
    grandchild = grandchild_of(child)
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait(10) == -signal.SIGKILL
    assert gone(grandchild)


def test_a_stopped_child_is_killed_after_its_grace(child):
    os.kill(child.pid, signal.SIGSTOP)
    until = time.monotonic() + 30  # on a busy machine it may not have been stopped yet, and SIGTERM would be first
    while Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        assert time.monotonic() < until
        time.sleep(0.01)
    started = time.monotonic()
    assert child.terminate(0.3) == -signal.SIGKILL
    assert time.monotonic() - started < 6


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel does it on Linux only")
@pytest.mark.parametrize("stopped", [False, True])
def test_sigkill_of_the_parent_takes_the_child(tmp_path, stopped):
    (tmp_path / "sleeper.py").write_text(SLEEPER.replace("grandchild = ", "grandchild = type('', (), {'pid': 0})() #"))
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    pid = 0
    try:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        until = time.monotonic() + 30
        while "said" not in (tmp_path / "log").read_text() and time.monotonic() < until:
            time.sleep(0.02)
        if stopped:
            os.kill(pid, signal.SIGSTOP)
        parent.kill()
        parent.wait(10)
        assert gone(pid)
    finally:
        parent.kill()
        parent.wait(10)
        if pid and alive(pid):
            os.kill(pid, signal.SIGKILL)


def test_a_child_whose_parent_is_another_ends_at_once():
    code = "from fed_diffmic.transport.processes import die_with_parent; die_with_parent(1); print('lives')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (1, b"")


def test_too_much_for_stdin_is_refused_before_a_process_is_started(tmp_path):
    with pytest.raises(ValueError, match="standard input"):
        start_child("sleeper", env={}, log=tmp_path / "log", stdin=b"x" * (processes.MAX_STDIN + 1))
    assert not (tmp_path / "log").exists()


def test_the_environment_has_only_the_proxy_that_was_configured(tmp_path, monkeypatch):
    monkeypatch.setenv("https_proxy", "http://10.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://10.0.0.1:2")
    env = child_env(tmp_path / "home")
    assert not {name for name in env if name.upper() in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")}
    assert "127.0.0.1" in env["NO_PROXY"].split(",")
    assert (tmp_path / "home").stat().st_mode & 0o777 == 0o700
    assert env["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)
    assert child_env(tmp_path / "home", proxy="http://p:1")["HTTPS_PROXY"] == "http://p:1"


def test_a_lock_is_held_once_and_names_its_holder(tmp_path):
    path = tmp_path / "run.lock"
    with lock_file(path, "run x"):
        with (
            pytest.raises(MachineError, match=rf"run x is in use by process {os.getpid()} on "),
            lock_file(path, "run x"),
        ):
            pytest.fail("held twice")
        code = (
            "import sys; from pathlib import Path; from fed_diffmic.errors import MachineError\n"
            "from fed_diffmic.transport.processes import lock_file\n"
            "try:\n    with lock_file(Path(sys.argv[1])): print('held')\n"
            "except MachineError as error: print(error)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=60, check=True
        )
        assert f"process {os.getpid()}" in done.stdout
    with lock_file(path, "run x"):
        pass


def test_ports_are_free():
    assert 0 < free_port() < 65536
