"""Does the coordinator know this key? What is asked, and what each answer means."""

import base64
import threading
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.common.constant import TIMESTAMP_HEADER
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.primitives.asymmetric import bytes_to_public_key, public_key_to_bytes, verify_signature

from fed_diffmic.transport.guard import Bounds, Gate
from fed_diffmic.transport.probe import ADMITTED, UNKNOWN, probe, versions_of

KEY = ec.derive_private_key(7, ec.SECP384R1())


@pytest.fixture
def coordinator():
    """A listener on loopback that gives the answer it is told to, and remembers what it was asked."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        answer = (413, {})

        def do_POST(self):
            asked.append((self.path, dict(self.headers)))
            status, headers = self.answer
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield Handler, f"127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()
    thread.join(10)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((413, {}), ADMITTED),
        ((401, {"x-fed-diffmic-refused": "roster"}), "roster"),
        ((401, {"x-fed-diffmic-refused": "clock"}), "clock"),
        ((401, {"X-Fed-Diffmic-Refused": "signature"}), "signature"),
        ((401, {}), UNKNOWN),
        ((403, {"x-fed-diffmic-refused": "roster"}), UNKNOWN),
        ((404, {}), UNKNOWN),
        ((200, {}), UNKNOWN),
    ],
)
def test_what_each_answer_means(coordinator, answer, said):
    handler, address, asked = coordinator
    handler.answer = answer
    assert probe(address, KEY, None, timeout_s=5.0) == said
    assert len(asked) == 1


def test_the_present_time_is_signed_with_the_key_and_no_body_can_come(coordinator):
    _, address, asked = coordinator
    probe(address, KEY, None, timeout_s=5.0)
    ((path, headers),) = asked
    stamp = headers[TIMESTAMP_HEADER]
    public = base64.b64decode(headers[FLEET_HTTP_PUBLIC_KEY_HEADER])
    assert public == public_key_to_bytes(KEY.public_key()) and path == "/v1/fleet/pull-messages"
    signature = base64.b64decode(headers[FLEET_HTTP_SIGNATURE_HEADER])
    assert verify_signature(bytes_to_public_key(public), stamp.encode(), signature)
    assert abs((datetime.now(UTC) - datetime.fromisoformat(stamp)).total_seconds()) < 60
    assert int(headers["Content-Length"]) > Bounds().body_bytes
    assert headers["Connection"] == "close"


class Roster:
    """Admits the key."""

    def name_of(self, key):
        return "site-1" if key == public_key_to_bytes(KEY.public_key()) else None


def test_the_guard_itself_takes_the_announcement_for_one_that_is_too_large(coordinator):
    """What the two agree on: the reason for a stranger, "too large" for a site."""
    import asyncio

    _, address, asked = coordinator
    probe(address, KEY, None, timeout_s=5.0)
    headers = {name.lower().encode(): value.encode() for name, value in asked[0][1].items()}
    gate = Gate(None, Bounds(), Roster(), "")
    assert gate._site_of(headers) == ("site-1", "")
    assert asyncio.run(gate._body(headers, None)) == (None, "body_size")


def test_who_cannot_be_reached_or_does_not_speak_http_is_an_error_of_the_line(coordinator):
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        with pytest.raises(OSError, match="refused"):
            probe(f"127.0.0.1:{free.getsockname()[1]}", KEY, None, timeout_s=5.0)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer():
            connection, _ = listener.accept()
            connection.recv(65536)
            connection.sendall(b"not http at all\r\n\r\n")
            connection.close()

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        with pytest.raises(OSError, match=r"no answer in HTTP \(BadStatusLine\)"):
            probe(f"127.0.0.1:{listener.getsockname()[1]}", KEY, None, timeout_s=5.0)
        thread.join(10)


def test_through_a_proxy_the_tunnel_leads_to_the_coordinator(monkeypatch):
    from fed_diffmic.transport import probe as module

    made = module._connection("coordinator.example:9092", None, "http://proxy.example:3128", 5.0)
    assert (made.host, made.port) == ("proxy.example", 3128)
    assert (made._tunnel_host, made._tunnel_port) == ("coordinator.example", 9092)
    plain = module._connection("[2001:db8::1]:9092", None, None, 5.0)
    assert (plain.host, plain.port, plain._tunnel_host) == ("2001:db8::1", 9092, None)


def test_versions_of_a_health_page_are_read_and_anything_else_is_nothing():
    said = {"X-Fed-Diffmic-Versions": "fed-diffmic=0.2.0 flwr=1.2 torn a=b=c"}
    assert versions_of(said) == {"fed-diffmic": "0.2.0", "flwr": "1.2"}
    assert versions_of({"server": "x"}) == {}
