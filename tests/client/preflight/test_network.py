"""Each way in which a coordinator can be out of reach, caused; and the real one, behind its guard."""

import http.server
import socket
import ssl
import time

import pytest

from client.clock import Skew
from client.preflight import network
from client.preflight.network import check_network, clock_check
from fed_diffmic.provision.authority import make_authority
from fed_diffmic.provision.keys import load_private
from tests.proxy import Proxy, serving


def look(config, key=None, timeout_s=5.0):
    return {check.name: check for check in check_network(config, key, timeout_s)}


def levels(checks):
    return {name: check.level for name, check in checks.items()}


class Page(http.server.BaseHTTPRequestHandler):
    status = 200
    versions = ""

    def do_GET(self):
        self.send_response(self.status)
        if self.versions:
            self.send_header("x-fed-diffmic-versions", self.versions)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


def tls(consortium, folder, days=365.0, authority=None):
    certificate, key = (authority or consortium.authority).issue_server([], [], folder, days=days)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context


def test_the_real_coordinator(site, way, address, consortium):
    config = way(site, address=address).coordinator
    checks = look(config, load_private(consortium.key("north")))
    assert levels(checks) == dict.fromkeys(
        (
            "network.name",
            "network.connect",
            "network.tls",
            "network.certificate",
            "network.health",
            "network.clock",
            "network.versions",
            "network.admission",
        ),
        "passed",
    )


def test_a_key_that_is_not_enrolled(site, way, address, consortium):
    check = look(way(site, address=address).coordinator, load_private(consortium.key("stranger")))["network.admission"]
    assert (check.level, check.exit_code) == ("failed", 2)
    assert "enrol" in check.remedy


def test_through_a_proxy(site, way, address, consortium, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")  # not looked at: only the configuration decides
    monkeypatch.setattr(Proxy, "asked", [])
    with serving(Proxy) as proxy:
        config = way(site, address=address, proxy=f"http://{proxy}").coordinator
        checks = look(config, load_private(consortium.key("north")))
    assert checks["network.proxy"].level == checks["network.admission"].level == "passed"
    assert set(levels(checks).values()) == {"passed"}
    assert set(Proxy.asked) == {address}


def test_a_proxy_that_refuses(site, way, address, monkeypatch):
    monkeypatch.setattr(Proxy, "allowed", False)
    with serving(Proxy) as proxy:
        checks = look(way(site, address=address, proxy=f"http://{proxy}").coordinator)
    assert levels(checks) == {"network.name": "passed", "network.proxy": "failed"}
    assert "CONNECT" in checks["network.proxy"].remedy


def test_another_ca_is_not_believed(site, way, address, tmp_path):
    other = make_authority(tmp_path / "other")
    check = look(way(site, address=address, ca=str(other.certificate_path)).coordinator)["network.tls"]
    assert check.level == "failed"
    assert "not signed by the CA" in check.cause


def test_an_expired_certificate(site, way, consortium, tmp_path):
    context = tls(consortium, tmp_path / "expired", days=1e-5)
    time.sleep(1.0)
    with serving(Page, context) as address:
        check = look(way(site, address=address).coordinator)["network.tls"]
    assert check.level == "failed"
    assert "expired" in check.cause


def test_a_certificate_that_expires_soon_and_a_coordinator_that_says_nothing(site, way, consortium, tmp_path):
    with serving(Page, tls(consortium, tmp_path / "soon", days=5)) as address:
        checks = look(way(site, address=address).coordinator, load_private(consortium.key("north")))
    assert levels(checks)["network.certificate"] == "warning"
    assert levels(checks)["network.versions"] == "warning"
    assert levels(checks)["network.admission"] == "warning"  # it answers 501: no guard of ours


@pytest.mark.parametrize(
    ("versions", "level"),
    [
        ("fed_diffmic=9.9.0 flwr=1.41.0 torch=2.15.0", "failed"),
        ("fed_diffmic={fed_diffmic} flwr={flwr} torch=1.0.0", "warning"),
        ("fed_diffmic={fed_diffmic} flwr={flwr} torch={torch}", "passed"),
    ],
)
def test_versions(versions, level):
    from importlib.metadata import version

    from fed_diffmic import __version__

    mine = {"fed_diffmic": __version__, "flwr": version("flwr"), "torch": version("torch")}
    theirs = dict(part.split("=") for part in versions.format(**mine).split())
    (check,) = network._versions(theirs)
    assert check.level == level


def test_something_else_listens(site, way, consortium, tmp_path, monkeypatch):
    monkeypatch.setattr(Page, "status", 404)
    with serving(Page, tls(consortium, tmp_path / "page")) as address:
        checks = look(way(site, address=address).coordinator)
    assert checks["network.health"].level == "failed"
    assert "404" in checks["network.health"].cause
    assert "network.clock" not in checks


def test_plain_http_where_tls_is_expected(site, way):
    with serving(Page) as address:
        checks = look(way(site, address=address).coordinator)
    assert checks["network.tls"].level == "failed"


def test_insecure_is_said(site, way):
    with serving(Page) as address:
        checks = look(way(site, address=address, insecure=True).coordinator)
    assert checks["network.tls"].level == "warning"
    assert checks["network.health"].level == "passed"


def test_nothing_listens(site):
    checks = look(site.coordinator)
    assert levels(checks) == {"network.name": "passed", "network.connect": "failed"}
    assert "nothing listens" in checks["network.connect"].cause


def test_a_silent_listener_ends_within_the_bound(site, way):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        config = way(site, address=f"127.0.0.1:{silent.getsockname()[1]}").coordinator
        start = time.monotonic()
        checks = look(config, timeout_s=0.5)
        assert time.monotonic() - start < 10
    assert levels(checks) == {"network.name": "passed", "network.connect": "passed", "network.health": "failed"}


def test_a_name_that_nobody_knows(site, way, monkeypatch):
    def nobody(*_, **__):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", nobody)
    checks = look(way(site, address="fl.example.org:9443").coordinator)
    assert levels(checks) == {"network.name": "failed"}
    assert "fl.example.org" in checks["network.name"].cause


@pytest.mark.parametrize(
    ("seconds", "level"), [(0.0, "passed"), (3.8, "warning"), (7.0, "failed"), (-290.0, "warning"), (-400.0, "failed")]
)
def test_clock(seconds, level):
    assert clock_check(Skew(seconds, 0.6)).level == level


def test_the_date_of_the_coordinator_is_what_counts(site, way, consortium, tmp_path, monkeypatch):
    monkeypatch.setattr(Page, "date_time_string", lambda self, timestamp=None: "Mon, 01 Jan 2024 00:00:00 GMT")
    with serving(Page, tls(consortium, tmp_path / "late")) as address:
        check = look(way(site, address=address).coordinator)["network.clock"]
    assert check.level == "failed"
    assert "ahead" in check.cause
