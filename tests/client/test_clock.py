"""The clock is compared with a real HTTP answer's, before Flower refuses signatures made by it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from client.clock import Skew, measure_skew
from fed_diffmic.config.site import CoordinatorConfig


class Health(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/health" else 404)  # says the date
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def way() -> Iterator[CoordinatorConfig]:
    server = HTTPServer(("127.0.0.1", 0), Health)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield CoordinatorConfig(address=f"127.0.0.1:{server.server_port}", insecure=True)
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("ahead", [0.0, 60.0, -600.0])
def test_a_difference_is_measured_within_the_error_it_states(
    way: CoordinatorConfig, ahead: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")  # only the configuration's proxy counts
    skew = measure_skew(way, lambda: time.time() + ahead)
    assert skew is not None
    assert abs(skew.seconds - ahead) <= skew.error + 0.01
    assert skew.refused is (ahead != 0.0)


@pytest.mark.parametrize(
    ("seconds", "refused", "near"),
    [
        (0.0, False, False),
        (2.9, False, True),
        (5.4, False, True),
        (5.6, True, True),
        (-240.0, False, False),
        (-250.0, False, True),
        (-305.4, False, True),
        (-305.6, True, True),
    ],
)
def test_flowers_limits(seconds: float, refused: bool, near: bool) -> None:
    skew = Skew(seconds, 0.5)
    assert (skew.refused, skew.near) == (refused, near)
    assert ("ahead of" if seconds > 0 else "behind") in str(skew)


def test_a_coordinator_that_is_not_there_says_nothing() -> None:
    assert measure_skew(CoordinatorConfig(address="127.0.0.1:1", insecure=True)) is None
