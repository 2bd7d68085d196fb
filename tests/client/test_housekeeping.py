"""Chores: logs that grew long are cut and keep one old part, what is old goes, and each chore has its time."""

import functools
import os
import time
from types import SimpleNamespace

import pytest

from client import housekeeping
from client.housekeeping import KEPT, Housekeeping, shorten_logs
from client.start import LOGS, SITE_LOG
from fed_diffmic.reporting import rotation


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(housekeeping, "set_aside", functools.partial(rotation.set_aside, most=100))
    (tmp_path / LOGS).mkdir()
    return tmp_path


def test_a_long_log_is_set_aside_whole_and_cut_in_place(folder):
    """Whoever holds it open goes on writing at its new end; the old part is private, and the one before moves on."""
    log, site = folder / LOGS / "worker.log", folder / SITE_LOG
    log.write_bytes(b"a" * 101)
    site.write_bytes(b"s" * 500)
    (folder / LOGS / "worker.log.1").write_bytes(b"older")
    with log.open("ab") as held:
        shorten_logs(folder)
        held.write(b"next")
    assert log.read_bytes() == b"next"
    assert (folder / LOGS / "worker.log.1").read_bytes() == b"a" * 101
    assert (folder / LOGS / "worker.log.2").read_bytes() == b"older"
    assert (folder / LOGS / "worker.log.1").stat().st_mode & 0o777 == 0o600
    # The site's own log is opened for each line, so it is renamed, and begins anew with the next one.
    assert not site.exists() and site.with_name(site.name + ".1").read_bytes() == b"s" * 500


def test_a_log_that_is_not_long_and_any_other_file_stay_as_they_are(folder):
    kept = {"short.log": b"b" * 100, "long.txt": b"c" * 200, "worker.log.1": b"d" * 200}
    for name, content in kept.items():
        (folder / LOGS / name).write_bytes(content)
    shorten_logs(folder)  # and no site.log at all
    assert {path.name: path.read_bytes() for path in (folder / LOGS).iterdir()} == kept


def test_a_log_that_cannot_be_shortened_stops_no_other(folder, monkeypatch, caplog):
    for name in ("a.log", "b.log"):
        (folder / LOGS / name).write_bytes(b"x" * 200)
    real = os.truncate

    def truncate(path, size):
        if path.name == "a.log":
            raise PermissionError(1, "Operation not permitted")
        real(path, size)

    monkeypatch.setattr(rotation.os, "truncate", truncate)
    shorten_logs(folder)
    assert ((folder / LOGS / "b.log").read_bytes(), len((folder / LOGS / "a.log").read_bytes())) == (b"", 200)
    assert "could not be shortened: Operation not permitted" in caplog.text


class Copies:
    def __init__(self):
        self.oldest = []

    def forget(self, *oldest):
        self.oldest += oldest
        return 0


@pytest.fixture
def chores(tmp_path, monkeypatch):
    copies, clock = Copies(), []
    monkeypatch.setattr(housekeeping, "site_copies", lambda _: copies)
    monkeypatch.setattr(housekeeping, "measure_skew", lambda coordinator: clock.append(coordinator))
    config = SimpleNamespace(site=SimpleNamespace(keep_days=2.0), coordinator="coordinator")
    return Housekeeping(config, tmp_path), copies, clock


def test_what_is_older_than_the_days_goes_and_nothing_else(tmp_path, chores):
    made, copies, _ = chores
    now, day = time.time(), 86400.0
    old, young, other = tmp_path / KEPT[0] / "x" / "old", tmp_path / KEPT[1] / "young", tmp_path / "audit.jsonl"
    for path, age in ((old, 2.1), (young, 1.9), (other, 100.0)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
        os.utime(path, (now - age * day, now - age * day))
    made.step(now)
    assert not old.exists() and young.exists() and other.exists()
    assert copies.oldest == [now - 2 * day]


def test_each_chore_is_done_when_it_is_due_and_a_complaint_brings_the_clock_forward(chores, monkeypatch):
    made, copies, clock = chores
    logs = []
    monkeypatch.setattr(housekeeping, "shorten_logs", logs.append)

    def step(now):
        made.step(now)
        made._thread.join(10)
        return len(clock), len(logs), len(copies.oldest)

    start = 1e9
    assert step(start) == (1, 1, 1) and clock == ["coordinator"]
    assert step(start + housekeeping.LOGS_S - 1) == (1, 1, 1)
    assert step(start + housekeeping.LOGS_S) == (1, 2, 1)
    made.clock_due()
    assert step(start + housekeeping.LOGS_S + 1) == (2, 2, 1)
    made.clock_due()  # not more often than that, however much it complains
    assert step(start + housekeeping.LOGS_S + housekeeping.CLOCK_LEAST_S) == (2, 2, 1)
    assert step(start + housekeeping.PURGE_S)[2] == 2
    made.stop()
    assert step(start + 1e9) == (3, 3, 2)
