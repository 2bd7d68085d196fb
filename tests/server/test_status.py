import json
import time

import pytest

from fed_diffmic.errors import UsageError
from fed_diffmic.exchange.failures import FAILURES, NODE_FAILED, PAUSED, POLICY_RUN
from fed_diffmic.reporting.events import EventLog
from fed_diffmic.transport.processes import lock_file
from server.status import LOCK, STATUS, RunStatus, StatusWriter, show_status

COUNTS = {"open": 3, "accepted": 9, "refused": {"path": 4}, "contact": {"a": 1000.0}, "bytes_in": 5}


@pytest.fixture
def writer(tmp_path):
    status = RunStatus("run", "127.0.0.1:9443", insecure=False)
    return StatusWriter(tmp_path, status, lambda: COUNTS, lambda sites: sites, pause_s=0.05)


def follow(writer, tmp_path):
    with EventLog(tmp_path / "events.jsonl", observers=[writer]) as log:
        for name in ("a", "b"):
            log.emit("site_found", site=name, images={"train": 39})
        log.emit("site_failed", site="unnamed/17", code=1, reason="it did not say who it is", stage="", round=0)
        log.emit("stage_started", stage="guidance", round=0, rounds=4)
        log.emit("round_started", stage="guidance", round=1, rounds=4, sites=["a", "b"])
        log.emit("site_done", site="a", stage="guidance", round=1, bytes=10)
        log.emit("site_failed", site="b", code="deadline", reason="it did not reply", stage="guidance", round=1)
        metrics = {"auroc_macro": 0.5, "loss": None}
        log.emit("round_done", stage="guidance", round=1, rounds=4, seconds=20.0, bytes_sent=2_000_000, figures=metrics)
        log.emit("link_lost", restarts=1)


def test_events_become_a_status(writer, tmp_path):
    follow(writer, tmp_path)
    writer.write()
    value = json.loads((tmp_path / STATUS).read_text())
    assert (value["state"], value["stage"], value["round"], value["rounds"]) == ("running", "guidance", 1, 4)
    assert value["left_s"] == pytest.approx(60.0)
    assert (value["quorum"], value["restarts"], value["bytes_sent"]) == (2, 1, 2_000_000)
    well = {"reason": "", "since": 0.0, "remedy": ""}
    assert value["sites"]["a"] == {"contact": 0.0, "state": "replied", "round": 1, "images": 39, **well}
    assert value["sites"]["b"]["reason"] == "it did not reply"
    assert set(value["sites"]) == {"a", "b"}


def test_the_guards_counts_are_taken_in_as_it_goes(writer, tmp_path):
    writer.start()
    until = time.monotonic() + 10
    while writer.status.connections != 3 and time.monotonic() < until:
        time.sleep(0.02)
    writer.finish("done")
    value = json.loads((tmp_path / STATUS).read_text())
    assert (value["state"], value["refused"], value["connections"]) == ("done", {"path": 4}, 3)
    assert value["sites"]["a"]["contact"] == 1000.0


def test_people_read_it(writer, tmp_path):
    follow(writer, tmp_path)
    writer.write()
    with lock_file(tmp_path / LOCK):
        text = show_status(tmp_path)
    assert "run: running" in text
    assert "guidance, 1 of 4 rounds done" in text
    assert "1 min" in text
    assert "it did not reply" in text
    assert "INSECURE" not in text


def test_a_coordinator_that_was_killed_is_not_called_running(writer, tmp_path):
    follow(writer, tmp_path)
    writer.write()
    assert "not running" in show_status(tmp_path)
    writer.finish("failed", "quorum missed")
    assert "failed (quorum missed)" in show_status(tmp_path)


def test_an_insecure_run_says_so(tmp_path):
    StatusWriter(tmp_path, RunStatus("run", "x:1", insecure=True), lambda: None, lambda sites: 1).write()
    assert show_status(tmp_path).startswith("INSECURE")


def test_another_folder_is_refused(tmp_path):
    with pytest.raises(UsageError, match="not the folder of a run"):
        show_status(tmp_path)


def site_lines(writer, tmp_path, *events):
    with EventLog(tmp_path / "events.jsonl", observers=[writer]) as log:
        for kind, facts in events:
            log.emit(kind, stage="guidance", round=2, site="South", **facts)
    writer.write()
    return show_status(tmp_path)


def test_a_site_that_is_paused_is_said_with_since_when_and_what_to_do(writer, tmp_path, monkeypatch):
    now = [time.time() - 600]
    monkeypatch.setattr("server.status.time.time", lambda: now[0])
    waits = ("site_waits", {"code": PAUSED, "reason": FAILURES[PAUSED]})
    site_lines(writer, tmp_path, ("site_done", {}), waits)
    now[0] += 600
    text = site_lines(writer, tmp_path, waits)  # asked again: it is paused since then
    assert "South: the site is paused (since" in text and "10 min" in text
    assert "`fed-diffmic client continue`" in text
    text = site_lines(writer, tmp_path, ("site_done", {}))
    assert "paused" not in text and "replied" in text


def test_a_refusal_is_said_with_the_key_that_the_site_would_change(writer, tmp_path):
    text = site_lines(writer, tmp_path, ("site_failed", {"code": POLICY_RUN, "reason": FAILURES[POLICY_RUN]}))
    assert "South: the site's policy does not name the run (since" in text
    assert "its people change policy.runs" in text


def test_a_revoked_site_is_off_the_roster_whatever_its_node_does(writer, tmp_path):
    lost = ("site_failed", {"code": 5, "reason": FAILURES[NODE_FAILED]})
    text = site_lines(writer, tmp_path, ("site_removed", {}), lost)
    assert "removed" in text and "South: the coordinator's roster no longer names the site (since" in text
    assert "`fed-diffmic provision enrol`" in text and "Flower" not in text
    text = site_lines(writer, tmp_path, ("site_admitted", {}))  # which that command brings about
    assert "no longer names" not in text and "expected" in text


def test_a_run_that_is_over_is_not_said_to_listen_or_to_have_time_left(writer, tmp_path):
    follow(writer, tmp_path)
    writer.finish("done")
    text = show_status(tmp_path)
    assert "ended    " in text and "it listened on 127.0.0.1:9443" in text and "sent     2.0 MB of tensors" in text
    assert "connections" not in text and "left" not in text
