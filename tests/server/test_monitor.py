import http.client
import json
import socket
import time

import pytest
from prometheus_client.parser import text_string_to_metric_families

from fed_diffmic.errors import MachineError
from fed_diffmic.reporting.events import EventLog
from server.monitor import Monitor
from server.status import RunStatus, SiteStatus


@pytest.fixture
def status():
    return RunStatus("run", "127.0.0.1:9443", insecure=False, updated=time.time())


@pytest.fixture
def monitor(status):
    started = Monitor(status)
    yield started
    started.close()


def get(monitor: Monitor, path: str, method: str = "GET") -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", monitor.port, timeout=10)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_metrics_follow_the_run(monitor, status):
    with EventLog(None, observers=[monitor]) as log:
        log.emit("site_done", site="a", stage="guidance", round=1)
        log.emit("site_failed", site="unnamed/17", stage="", round=0)
        log.emit("round_done", stage="guidance", round=1, rounds=4, seconds=20.0, bytes_sent=2_000_000)
        status.stage, status.round, status.rounds, status.restarts = "guidance", 1, 4, 2
        status.refused, status.sites, status.metrics = {"path": 4}, {"a": SiteStatus(contact=1000.0)}, {"loss": 0.5}
        code, body = get(monitor, "/metrics")
    assert code == 200
    found = {
        (s.name, *sorted(s.labels.values())): s.value
        for family in text_string_to_metric_families(body.decode())
        for s in family.samples
    }
    assert found["fed_diffmic_round", "guidance"] == 1
    assert found["fed_diffmic_tensor_bytes_total",] == 2_000_000
    assert found["fed_diffmic_round_seconds_count", "guidance"] == 1
    assert found["fed_diffmic_site_replies_total", "a", "done"] == 1
    assert found["fed_diffmic_site_contact_timestamp_seconds", "a"] == 1000
    assert found["fed_diffmic_refused", "path"] == 4
    assert found["fed_diffmic_run_active",] == 1
    assert not any("unnamed/17" in key for key in found)


def test_health_is_bad_when_nothing_is_written_or_the_run_failed(monitor, status):
    code, body = get(monitor, "/health")
    assert (code, json.loads(body)["state"]) == (200, "starting")
    status.updated = time.time() - 100
    assert get(monitor, "/health")[0] == 503
    status.updated, status.state = time.time(), "failed"
    assert get(monitor, "/health")[0] == 503


def test_nothing_else_is_there_and_only_on_loopback(monitor):
    assert get(monitor, "/")[0] == 404
    assert get(monitor, "/metrics", "POST")[0] == 501
    assert get(monitor, "/metrics", "HEAD") == (200, b"")
    assert monitor._pages._server.server_address[0] == "127.0.0.1"


def test_a_port_that_is_taken_is_said(status):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(MachineError, match="cannot listen"):
            Monitor(status, taken.getsockname()[1])
