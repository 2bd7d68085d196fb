"""The comparison with peers measures what it says: the same work, all processes, and no row for who is not there."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks import peers, peers_work
from fed_diffmic.seeding import numpy_generator
from fed_diffmic.training import stages
from fed_diffmic.training.local import batches
from server import rounds

TELLING = """
import sys
from benchmarks.peers_work import Clock, tell
clock = Clock()
clock.tick()
tell(sys.argv[1], clock, {"w": [1.0, %s]})
"""


def test_this_projects_weights_are_those_of_the_bare_loop(tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "build_plain", stages.build_plain)  # both are put back: the program replaces them
    monkeypatch.setattr(rounds, "aggregate", rounds.aggregate)
    peers.bare(2, 2, 2, str(tmp_path / "bare"))
    peers.ours(2, 2, 2, str(tmp_path / "ours"))
    with np.load(tmp_path / "bare.npz") as bare, np.load(tmp_path / "ours.npz") as ours:
        assert sum(value.size for value in bare.values()) == 103_930
        assert peers.difference(bare, ours) < 1e-5
        fresh = {name: value.detach().numpy() for name, value in peers_work.network().state_dict().items()}
        assert peers.difference(bare, fresh) > 1e-3


def test_images_are_taken_in_this_projects_order():
    drawn = numpy_generator(0, "order", "plain", "site-3", 2)
    passes = batches(peers_work.IMAGES, peers_work.BATCH, drawn)
    parts = [next(passes) for _ in range(peers_work.IMAGES // peers_work.BATCH)]
    assert np.array_equal(np.concatenate(parts), peers_work.order_of(3, 2))


def test_a_child_that_nobody_waits_for_is_counted():
    burn = "import time\nwhile time.process_time() < 0.3: pass\nprint('burnt', flush=True)\ntime.sleep(60)"
    clock = peers_work.Clock()
    with subprocess.Popen([sys.executable, "-c", burn], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None and child.stdout.readline() == b"burnt\n"
        clock.tick()
        child.kill()
    child.wait()
    clock.tick()
    assert 0.25 < clock.rows[0][0] < 5.0
    assert clock.rows[1][0] >= 0.0  # what has ended is not taken back


def test_a_row_has_no_figure_of_who_is_not_there_or_failed(tmp_path, capsys):
    told = {who: [sys.executable, "-c", TELLING % value] for who, value in (("bare", 2.0), ("ours", 2.5))}
    failing = [sys.executable, "-c", "raise SystemExit('no actors')"]
    found = peers.row("3/3", {**told, "pfl": [], "flower": failing}, tmp_path).split(" | ")
    assert found[0] == "| 3/3" and ", wall " in found[2] and found[4:7] == ["not installed", "", "failed"]
    assert found[-1] == "ours 5.0e-01 |"
    assert "no actors" in capsys.readouterr().err


def test_a_program_that_hangs_is_ended_with_what_it_started(tmp_path, monkeypatch):
    monkeypatch.setattr(peers, "LIMIT", 2)
    kept = tmp_path / "pid"
    hang = (
        "import subprocess, sys, time; child = subprocess.Popen(['sleep', '60']); "
        f"open({str(kept)!r}, 'w').write(str(child.pid)); time.sleep(60)"
    )
    assert peers.measured([sys.executable, "-c", hang], tmp_path / "out") is None
    until = time.monotonic() + 20
    while time.monotonic() < until and _runs(int(kept.read_text())):
        time.sleep(0.05)
    assert not _runs(int(kept.read_text()))


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("python", [sys.executable, "/no/such/python"])
def test_what_is_not_installed_is_known_without_loading_it(python):
    assert not peers.installed(python, "no_such_module_anywhere")
    assert peers.installed(sys.executable, "numpy")
