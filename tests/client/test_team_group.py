"""What the processes of several devices say to each other: exactly, to nobody else, and not to one that is gone."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from client import team_wire as module
from client.team import Team, _heard
from client.team_wire import Group, Task
from fed_diffmic.errors import MachineError
from tests.privacy.models import private_spec, stage_module


def together(folder: Path, size: int, does: Callable[[Group, int], Any], wait_s: float = 20.0) -> list[Any]:
    """What each of so many members comes to, threads of this process; what they raise instead."""
    found: list[Any] = [None] * size

    def member(rank: int) -> None:
        try:
            group = Group(folder, rank, size, wait_s)
            found[rank] = does(group, rank)
        except OSError as error:
            found[rank] = error

    threads = [threading.Thread(target=member, args=(rank,), daemon=True) for rank in reversed(range(size))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_values_and_sums_are_exact_in_lots_of_any_size(
    dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "AT_A_TIME", 7)
    shapes = [(3,), (), (2, 2), (5, 5), (0,), (4,)]
    own = [[torch.randn(shape).to(dtype) for shape in shapes] for _ in range(3)]

    def does(group: Group, rank: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        values, sums = [t.clone() for t in own[rank]], [t.clone() for t in own[rank]]
        group.broadcast(values)
        group.reduce(sums)
        return values, sums

    found = together(tmp_path, 3, does)
    for values, _ in found:
        assert all(torch.equal(*pair) for pair in zip(values, own[0], strict=True))
    for total, *parts in zip(found[0][1], *own, strict=True):
        assert torch.equal(total, parts[0] + parts[1] + parts[2])
    assert list(tmp_path.iterdir()) == []  # nobody can come any more


def test_counters_and_floats_cross_in_one_lot(tmp_path: Path) -> None:
    leads = [torch.tensor([1.5, float("nan")]), torch.tensor(2**40), torch.tensor([True, False])]

    def does(group: Group, rank: int) -> list[torch.Tensor]:
        values = leads if rank == 0 else [torch.zeros_like(value) for value in leads]
        group.broadcast(values)
        return values

    for value, lead in zip(together(tmp_path, 2, does)[1], leads, strict=True):
        assert value.dtype == lead.dtype and torch.equal(value.nan_to_num(), lead.nan_to_num())


def test_who_is_gone_is_noticed_at_once_and_who_is_silent_in_time(tmp_path: Path) -> None:
    def dies(group: Group, rank: int) -> float:
        if rank == 1:
            group.close()
            return 0.0
        begun = time.monotonic()
        with pytest.raises(ConnectionError):
            group.reduce([torch.ones(3)])
        return time.monotonic() - begun

    def sleeps(group: Group, rank: int) -> float:
        begun = time.monotonic()
        if rank == 1:
            time.sleep(1.5)
        else:
            with pytest.raises(TimeoutError):
                group.reduce([torch.ones(3)])
        return time.monotonic() - begun

    assert together(tmp_path, 2, dies)[0] < 10.0
    assert 0.4 < together(tmp_path, 2, sleeps, wait_s=0.5)[0] < 10.0


def test_another_number_of_values_is_refused(tmp_path: Path) -> None:
    found = together(tmp_path, 2, lambda group, rank: group.reduce([torch.ones(3 + rank)]))
    assert isinstance(found[0], ConnectionError)


def test_nobody_comes_in_time_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TimeoutError):
        Group(tmp_path, 0, 2, 0.2)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0 or sys.platform != "linux", reason="needs two accounts")
@pytest.mark.parametrize("opened", [False, True])
def test_another_account_is_not_let_in(opened: bool, tmp_path: Path) -> None:
    """The folder is closed to it; were it open, the kernel says who connects."""
    folder = Path("/tmp") / f"fed-diffmic-test-{os.getpid()}"  # pytest's own folders are closed, too
    folder.mkdir(mode=0o755 if opened else 0o700)
    code = (
        "import os, socket, sys, time; os.setgid(65534); os.setuid(65534); s = socket.socket(socket.AF_UNIX)\n"
        f"until = time.monotonic() + 30\nwhile True:\n  try: s.connect('{folder}/group'); break\n"
        "  except PermissionError: print('closed', end=''); sys.exit()\n"
        "  except OSError:\n    if time.monotonic() > until: raise\n    time.sleep(0.01)\n"
        "try: s.sendall(bytes([1])); got = len(s.recv(100))\nexcept OSError: got = 0\nprint(got, end='')"
    )

    def own() -> None:
        with suppress(FileNotFoundError):
            while not (folder / "group").exists():
                time.sleep(0.01)
            if opened:
                (folder / "group").chmod(0o777)
        stranger = subprocess.run(
            [sys.executable, "-S", "-c", code], capture_output=True, text=True, timeout=60, check=True
        )
        said.append(stranger.stdout)
        said.append(Group(folder, 1, 2, 20.0))

    said: list[Any] = []
    thread = threading.Thread(target=own, daemon=True)
    try:
        thread.start()
        group = Group(folder, 0, 2, 60.0)
        thread.join(60)
        assert said[0] == ("0" if opened else "closed")
        group.close()
    finally:
        with suppress(OSError):
            (folder / "group").unlink()
        folder.rmdir()


def fails(team: Team) -> None:
    """A step in which a device's torch raises."""
    with team._unbroken():
        team._give_all(Task("units", {"inputs": "images"}, {}))
        _heard(team._begun().reduce, [torch.ones(1)])


def test_no_process_of_a_team_has_a_port(tmp_path: Path) -> None:
    """And what goes wrong in a device's process ends the update with that device's name."""
    team = Team(["cpu", "cpu"], tmp_path, wait_s=30.0)
    try:
        trained = stage_module(private_spec("tiny"), "diffusion")
        team.begin(trained)
        assert not any(value.any() for value in team.summed(trained, iter(()), 1.0).values())  # nobody was drawn
        for pid in team.pids:
            inodes = {os.readlink(file)[8:-1] for file in Path(f"/proc/{pid}/fd").iterdir() if file.is_symlink()}
            for table in ("tcp", "tcp6", "udp", "udp6"):
                rows = Path(f"/proc/net/{table}").read_text().splitlines()[1:]
                assert not any(row.split()[9] in inodes for row in rows)
        with pytest.raises(MachineError, match=r"site\.device: a process .* on cpu ended \(code 1\)"):
            fails(team)
    finally:
        team.close()
