"""Logs that stay small, however many processes write."""

import io
import json
import logging
import stat
import subprocess
import sys

from client.housekeeping import shorten_logs
from client.site import log_failure
from fed_diffmic.reporting import rotation
from fed_diffmic.reporting.logs import set_up_logs
from fed_diffmic.reporting.rotation import set_aside

WRITER = """
import sys
from pathlib import Path
from fed_diffmic.files import append_line
from fed_diffmic.reporting.rotation import set_aside
path = Path(sys.argv[1])
for n in range(300):
    set_aside(path, most=2000, parts=100)
    append_line(path, f"{sys.argv[2]} {n}", mode=0o600)
"""


def parts(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_log_has_so_many_parts_and_no_more(tmp_path):
    log = tmp_path / "a.log"
    for number in range(6):
        log.write_text(f"{number}" * 20)
        assert set_aside(log, most=10, parts=3)
    assert parts(tmp_path) == ["a.log.1", "a.log.2", "a.log.3"]
    assert [(tmp_path / f"a.log.{n}").read_text()[0] for n in (1, 2, 3)] == ["5", "4", "3"]
    assert not set_aside(log, most=10)
    log.write_text("short")
    assert not set_aside(log, most=10)


def test_a_log_that_is_held_open_is_cut_and_written_on(tmp_path):
    log = tmp_path / "a.log"
    with log.open("a") as stream:
        stream.write("x" * 20)
        stream.flush()
        assert set_aside(log, held=True, most=10)
        stream.write("y")
    assert (log.read_text(), (tmp_path / "a.log.1").read_text()) == ("y", "x" * 20)
    assert stat.S_IMODE((tmp_path / "a.log.1").stat().st_mode) == 0o600


def test_several_processes_lose_no_line(tmp_path):
    log = tmp_path / "a.log"
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, log, name]) for name in ("a", "b", "c")]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    lines = [line for path in tmp_path.iterdir() for line in path.read_text().splitlines()]
    assert sorted(lines) == sorted(f"{name} {n}" for name in "abc" for n in range(300))
    assert len(parts(tmp_path)) > 2


def test_the_logs_of_a_site_are_bounded_and_private_and_its_audit_log_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr(rotation.set_aside, "__kwdefaults__", {"held": False, "most": 2000, "parts": 2})
    (tmp_path / "logs").mkdir()
    for name in ("audit.jsonl", "logs/worker.log"):
        (tmp_path / name).write_text("x" * 5000)
    for _ in range(50):
        log_failure(tmp_path, "train", 1, ValueError("x" * 200))
    set_up_logs(file=tmp_path / "logs/client.jsonl", stream=io.StringIO())
    try:
        for number in range(100):
            logging.getLogger("fed_diffmic").info("line %d", number)
    finally:
        set_up_logs()
    shorten_logs(tmp_path)
    assert parts(tmp_path) == ["audit.jsonl", "logs", "site.log", "site.log.1", "site.log.2"]
    assert parts(tmp_path / "logs") == [
        "client.jsonl", "client.jsonl.1", "client.jsonl.2", "worker.log", "worker.log.1",
    ]  # fmt: skip
    assert (tmp_path / "audit.jsonl").stat().st_size == 5000
    for path in (*tmp_path.glob("site.log*"), *(tmp_path / "logs").glob("client*"), tmp_path / "logs/worker.log.1"):
        assert path.stat().st_size < 5001
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert json.loads((tmp_path / "logs/client.jsonl").read_text().splitlines()[-1])["message"] == "line 99"
