"""The public listener against hostile peers, over real sockets and TLS; behind it an app that only counts."""

import asyncio
import base64
import contextlib
import datetime
import http.client
import socket
import ssl
import threading
import time
from pathlib import Path

import pytest
import uvicorn
from flwr.superlink.routers.fleet.router import router as fleet_router

from fed_diffmic.provision.authority import make_authority
from fed_diffmic.provision.keys import load_private, make_site_key, public_pem
from fed_diffmic.provision.roster import Roster
from fed_diffmic.transport import guard
from fed_diffmic.transport.guard import Gate
from fed_diffmic.transport.listener import Listener
from fed_diffmic.transport.seats import Bounds
from fed_diffmic.transport.superlink_child import RosterAdmission, bind

BOUNDS = Bounds(header_s=0.6, body_s=0.8, body_bytes=100_000, per_address=8, total=8, reserved=0, new_per_s=1e6)
PULL = "/v1/fleet/pull-messages"


class Counting:
    """Stands in for Flower's application."""

    def __init__(self):
        self.calls = []

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return
        message = await receive()
        self.calls.append((scope["path"], len(message["body"])))
        body = b"x" * int(dict(scope["headers"]).get(b"x-answer", b"2"))
        length = (b"content-length", str(len(body)).encode())
        await send({"type": "http.response.start", "status": 200, "headers": [length]})
        for start in range(0, len(body), 1_000_000):
            more = start + 1_000_000 < len(body)
            await send({"type": "http.response.body", "body": body[start : start + 1_000_000], "more_body": more})


class Server:
    """A guard on a loopback port, served by a thread."""

    def __init__(self, folder: Path, roster: Path | None, bounds: Bounds):
        authority = make_authority(folder / "ca")
        certificate, key = authority.issue_server([], [], folder / "server")
        self.tls = ssl.create_default_context(cafile=authority.certificate_path)
        self.app = Counting()
        self.gate = Gate(self.app, bounds, RosterAdmission(str(roster)) if roster else None, "fed_diffmic=1")
        config = uvicorn.Config(
            self.app, log_config=None, access_log=False, server_header=False, ssl_certfile=certificate, ssl_keyfile=key
        )
        config.load()
        server = uvicorn.Server(config)
        self.sock = bind("127.0.0.1", 0)
        self.port = self.sock.getsockname()[1]
        shared = {"config": config, "server_state": server.server_state, "app_state": {}}
        self.listener = Listener(self.gate, self.sock, config.ssl, shared)
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self):
        with contextlib.suppress(asyncio.CancelledError):
            self.task = self.loop.create_task(self.listener.serve())
            self.loop.run_until_complete(self.task)

    def close(self):
        self.loop.call_soon_threadsafe(self.task.cancel)
        self.thread.join(5)
        self.sock.close()

    def connect(self) -> ssl.SSLSocket:
        raw = socket.create_connection(("127.0.0.1", self.port), timeout=10)
        return self.tls.wrap_socket(raw, server_hostname="127.0.0.1")

    def request(self, path, headers=None, body=b"", method="POST"):
        connection = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=10, context=self.tls)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer, answer.read()
        finally:
            connection.close()


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys")
    for name in ("alpha", "beta", "stranger"):
        make_site_key(folder / name)
    return folder


@pytest.fixture
def roster(tmp_path, keys):
    found = Roster()
    for name in ("alpha", "beta"):
        found = found.enrol(name, (keys / f"{name}.pub").read_text().strip(), "Hospital")
    return found.save(tmp_path / "roster.json")


@pytest.fixture
def server(tmp_path, roster):
    started = Server(tmp_path, roster, BOUNDS)
    yield started
    started.close()


def signed(keys: Path, name: str, *, ahead_s: float = 0.0, signer: str | None = None) -> dict[str, str]:
    from flwr.supercore.primitives.asymmetric import sign_message

    stamp = (datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=ahead_s)).isoformat()
    signature = sign_message(load_private(keys / (signer or name)), stamp.encode())
    return {
        "flwr-public-key": base64.b64encode(public_pem(load_private(keys / name).public_key())).decode(),
        "flwr-timestamp": stamp,
        "flwr-signature": base64.b64encode(signature).decode(),
    }


def closed_after(sock: socket.socket, limit_s: float = 8.0) -> float:
    """Seconds until the peer closed; what it still sent is read."""
    started = time.monotonic()
    sock.settimeout(limit_s)
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        while sock.recv(65536):
            pass
    return time.monotonic() - started


def refused(server: Server, reason: str) -> int:
    until = time.monotonic() + 5
    while not server.gate.counts.refused[reason] and time.monotonic() < until:
        time.sleep(0.02)
    return server.gate.counts.refused[reason]


def open_connections(server: Server) -> int:
    until = time.monotonic() + 5
    while server.gate.counts.open.total() and time.monotonic() < until:
        time.sleep(0.02)
    return server.gate.counts.open.total()


def test_the_fleet_paths_are_flowers():
    assert {route.path for route in fleet_router.routes} == set(guard.FLEET)


def test_a_site_of_the_roster_is_served_and_its_contact_noted(server, keys):
    answer, body = server.request(PULL, signed(keys, "alpha"), b"abc")
    assert (answer.status, body) == (200, b"xx")
    assert server.app.calls == [(PULL, 3)]
    assert time.time() - server.gate.counts.contact["alpha"] < 60
    assert open_connections(server) == 0


@pytest.mark.parametrize(
    "path",
    [
        "/", "/docs", "/openapi.json", "/v1/control/start-run", "/v1/control/register-node", "/v1/runtime/acquire-task",
        "/v1/fleet", "/v1/fleet/", "/v1/fleet/../control/start-run", "/v1/fleet/%2e%2e/control/start-run",
        "//v1/fleet/pull-messages", "/v1/fleet/pull-messages/", "/V1/FLEET/PULL-MESSAGES", "/metrics",
        "/fed-diffmic/counts", "/health/",
    ],
)  # fmt: skip
def test_every_other_path_does_not_exist(server, keys, path):
    answer, body = server.request(path, signed(keys, "alpha"), b"abc")
    assert (answer.status, body) == (404, b"")
    assert server.app.calls == []


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "OPTIONS"])
def test_every_other_method_does_not_exist(server, keys, method):
    assert server.request(PULL, signed(keys, "alpha"), method=method)[0].status == 404
    assert server.request("/health", method="POST")[0].status == 404


def test_health_says_the_versions_and_nothing_else(server):
    answer, body = server.request("/health", method="GET")
    assert (answer.status, body) == (200, b"")
    assert answer.headers["x-fed-diffmic-versions"] == "fed_diffmic=1"
    assert "server" not in answer.headers


@pytest.mark.parametrize("reason", ["roster", "signature", "clock", "headers"])
def test_who_is_not_admitted_is_refused_before_the_body_is_read(server, keys, reason):
    headers = {
        "roster": lambda: signed(keys, "stranger"),
        "signature": lambda: signed(keys, "alpha", signer="beta"),
        "clock": lambda: signed(keys, "alpha", ahead_s=30),
        "headers": lambda: signed(keys, "alpha"),
    }[reason]()
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    if reason == "headers":
        lines += f"flwr-public-key: {signed(keys, 'stranger')['flwr-public-key']}\r\n"
    with server.connect() as sock:
        sock.sendall(f"POST {PULL} HTTP/1.1\r\nhost: x\r\ncontent-length: 90000\r\n{lines}\r\n".encode())
        answer = sock.recv(4096)
        assert b" 401 " in answer.splitlines()[0]
        assert closed_after(sock) < 5
    assert server.gate.counts.refused[reason] == 1
    assert server.app.calls == []


def test_no_headers_at_all(server):
    assert server.request(PULL, body=b"abc")[0].status == 401


def test_a_site_removed_from_the_roster_is_refused_at_once(server, keys, roster):
    assert server.request(PULL, signed(keys, "alpha"))[0].status == 200
    Roster.load(roster).revoke("alpha", "left").save(roster)
    answer, _ = server.request(PULL, signed(keys, "alpha"))
    assert (answer.status, answer.headers["x-fed-diffmic-refused"]) == (401, "roster")
    assert server.request(PULL, signed(keys, "beta"))[0].status == 200


def test_a_site_removed_while_it_sends_is_refused(server, keys, roster):
    lines = "".join(f"{name}: {value}\r\n" for name, value in signed(keys, "alpha").items())
    with server.connect() as sock:
        sock.sendall(f"POST {PULL} HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n{lines}\r\nhalf.".encode())
        time.sleep(0.1)
        Roster.load(roster).revoke("alpha", "left").save(roster)
        sock.sendall(b"there")
        assert b" 401 " in sock.recv(4096).splitlines()[0]
    assert server.app.calls == []


def test_a_roster_that_is_torn_admits_whom_it_admitted(server, keys, roster):
    assert server.request(PULL, signed(keys, "alpha"))[0].status == 200
    roster.write_text('{"version": 1, "sites": [')
    assert server.request(PULL, signed(keys, "alpha"))[0].status == 200
    assert server.request(PULL, signed(keys, "stranger"))[0].status == 401


def test_without_a_roster_everyone_is_admitted_within_the_bounds(tmp_path, keys):
    server = Server(tmp_path, None, BOUNDS)
    try:
        assert server.request(PULL, signed(keys, "stranger"), b"abc")[0].status == 200
        with server.connect() as sock:  # only the header: a body that is refused unread may end in a reset instead
            sock.sendall(f"POST {PULL} HTTP/1.1\r\nhost: x\r\ncontent-length: 200000\r\n\r\n".encode())
            assert b" 413 " in sock.recv(4096).splitlines()[0]
        assert server.request("/v1/control/list-runs")[0].status == 404
    finally:
        server.close()


@pytest.mark.parametrize("sent", ["nothing", "tcp only", "half a header", "drip"])
def test_a_silent_or_dripping_header_is_cut_off(server, sent):
    started = time.monotonic()
    if sent == "tcp only":
        with socket.create_connection(("127.0.0.1", server.port)) as sock:
            closed_after(sock)
    else:
        with server.connect() as sock:
            if sent != "nothing":
                sock.sendall(f"POST {PULL} HTTP/1.1\r\nhost: x\r\n".encode())
            with contextlib.suppress(OSError):
                while sent == "drip" and time.monotonic() - started < 5:
                    sock.sendall(b"a: b\r\n")
                    time.sleep(0.05)
            closed_after(sock)
    assert time.monotonic() - started < 4
    assert refused(server, "handshake" if sent == "tcp only" else "header_time") == 1
    assert open_connections(server) == 0


@pytest.mark.parametrize("drip", [False, True])
def test_half_a_body_of_a_site_is_cut_off(server, keys, drip):
    lines = "".join(f"{name}: {value}\r\n" for name, value in signed(keys, "alpha").items())
    started = time.monotonic()
    with server.connect() as sock:
        sock.sendall(f"POST {PULL} HTTP/1.1\r\nhost: x\r\ncontent-length: 5000\r\n{lines}\r\nhalf".encode())
        with contextlib.suppress(OSError):
            while drip and time.monotonic() - started < 5:
                sock.sendall(b"a")
                time.sleep(0.05)
        closed_after(sock)
    assert time.monotonic() - started < 4
    assert refused(server, "body_time") == 1
    assert server.app.calls == []


@pytest.mark.parametrize("framing", ["length", "chunked", "nonsense"])
def test_a_huge_body_is_refused(server, keys, framing):
    head = {
        "length": "content-length: 99999999999",
        "chunked": "transfer-encoding: chunked",
        "nonsense": "content-length: -5",
    }[framing]
    lines = "".join(f"{name}: {value}\r\n" for name, value in signed(keys, "alpha").items())
    with server.connect() as sock, contextlib.suppress(ConnectionError, ssl.SSLError):
        sock.sendall(f"POST {PULL} HTTP/1.1\r\nhost: x\r\n{head}\r\n{lines}\r\n".encode())
        if framing == "chunked":
            for _ in range(30):
                sock.sendall(b"2000\r\n" + b"x" * 0x2000 + b"\r\n")
        answer = sock.recv(4096)
        assert (b" 413 " if framing != "nonsense" else b" 400 ") in answer.splitlines()[0]
        assert closed_after(sock) < 5
    assert server.app.calls == []


def test_a_header_without_end_is_refused(server):
    with server.connect() as sock, contextlib.suppress(ConnectionError, ssl.SSLError):
        sock.sendall(f"POST {PULL} HTTP/1.1\r\n".encode() + b"a: " + b"x" * 200_000)
        assert b" 400 " in sock.recv(4096).splitlines()[0]
    assert server.app.calls == []


def test_one_address_opens_so_many_connections_and_no_more(server, keys):
    held = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(1000)]
    try:
        assert refused(server, "connections_per_address") > 0
        assert server.gate.counts.open.total() <= BOUNDS.per_address
    finally:
        for sock in held:
            sock.close()
    assert open_connections(server) == 0
    assert server.request(PULL, signed(keys, "alpha"))[0].status == 200


def test_a_reader_that_does_not_read_is_cut_off(server, keys):
    lines = "".join(f"{name}: {value}\r\n" for name, value in signed(keys, "alpha").items())
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    raw.settimeout(10)
    raw.connect(("127.0.0.1", server.port))
    with server.tls.wrap_socket(raw, server_hostname="127.0.0.1") as sock:
        sock.sendall(f"POST {PULL} HTTP/1.1\r\nhost: x\r\nx-answer: 60000000\r\n{lines}\r\n".encode())
        assert refused(server, "slow_reader") == 1
        assert open_connections(server) == 0


def test_a_connection_is_used_again_and_an_idle_one_closed(server, keys):
    connection = http.client.HTTPSConnection("127.0.0.1", server.port, timeout=10, context=server.tls)
    try:
        for _ in range(3):
            connection.request("POST", PULL, b"abc", signed(keys, "alpha"))
            answer = connection.getresponse()
            assert (answer.status, answer.read()) == (200, b"xx")
        assert server.gate.counts.accepted == 1
        assert open_connections(server) == 0
        assert not server.gate.counts.refused
    finally:
        connection.close()


def test_the_count_of_refusals_is_what_a_supervisor_reads(server):
    import json

    server.request("/docs")
    told = json.loads(server.gate.counts.to_json())
    assert told["refused"] == {"path": 1}
    assert set(told) == {"open", "accepted", "refused", "contact", "bytes_in"}


def test_a_renewed_certificate_is_taken_for_new_connections(server, tmp_path):
    from fed_diffmic.provision.authority import Authority
    from fed_diffmic.transport.superlink import LinkSettings
    from fed_diffmic.transport.superlink_child import renew

    with server.connect() as sock:
        before = sock.getpeercert()["serialNumber"]
    paths = {"certificate": str(tmp_path / "server" / "server.crt"), "key": str(tmp_path / "server" / "server.key")}
    settings = LinkSettings(str(tmp_path), "127.0.0.1", server.port, **paths)
    watching = asyncio.run_coroutine_threadsafe(renew(server.listener.tls, settings, 0.02), server.loop)
    time.sleep(0.1)
    Authority.load(tmp_path / "ca").renew_server(tmp_path / "server")
    until = time.monotonic() + 10
    after = before
    while after == before and time.monotonic() < until:
        with server.connect() as sock:
            after = sock.getpeercert()["serialNumber"]
    watching.cancel()
    assert after != before
