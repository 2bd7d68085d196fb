"""A log that writes what sites do as they should with the line that follows: one flush a round, nothing lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from fed_diffmic.reporting import events
from fed_diffmic.reporting.events import EventLog, read_events


@pytest.fixture
def flushes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    seen: list[int] = []
    monkeypatch.setattr("os.fsync", seen.append)
    return seen


def kinds(path: Path) -> list[str]:
    return [event["kind"] for event in read_events(path)] if path.exists() else []


def test_a_round_of_many_sites_is_flushed_once_and_in_order(tmp_path: Path, flushes: list[int]) -> None:
    path, heard = tmp_path / "events.jsonl", []
    with EventLog(path, observers=[lambda event: heard.append(event["kind"])], later=True) as log:
        for number in range(50):
            log.emit("site_done", site=f"s{number}")
        assert kinds(path) == [] and len(heard) == 50, "an observer waits for no line"
        log.emit("round_done")
        assert kinds(path) == ["site_done"] * 50 + ["round_done"] and len(flushes) == 1


def test_what_went_wrong_is_written_at_once(tmp_path: Path, flushes: list[int]) -> None:
    path = tmp_path / "events.jsonl"
    log = EventLog(path, later=True)
    log.emit("site_done", site="a")
    log.emit("site_failed", site="b")
    assert kinds(path) == ["site_done", "site_failed"]


def test_what_waits_is_written_when_the_log_is_closed_or_after_a_while(
    tmp_path: Path, flushes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "events.jsonl"
    log = EventLog(path, later=True)
    log.emit("site_done", site="a")
    log.close()
    assert kinds(path) == ["site_done"]
    monkeypatch.setattr(events, "LONGEST_S", 0.0)
    log.emit("site_done", site="b")
    assert kinds(path) == ["site_done"] * 2


def test_a_log_of_a_real_coordinator_waits_for_nothing(tmp_path: Path, flushes: list[int]) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    log.emit("site_done", site="a")
    assert kinds(log.path or Path()) == ["site_done"] and len(flushes) == 1
