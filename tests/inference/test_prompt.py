"""Who does not say what it wants is not waited for; who does is."""

import contextlib
import socket
import threading
import time

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from fed_diffmic.inference import prompt
from fed_diffmic.inference.prompt import Prompt

HEAD_S = 0.5
READ_S = 3.0
LARGE = 2**24


@pytest.fixture
def port(monkeypatch):
    monkeypatch.setattr(prompt, "HEAD_S", HEAD_S)
    monkeypatch.setattr(prompt, "READ_S", READ_S)

    async def length(request: Request):
        return PlainTextResponse(str(len(await request.body())))

    async def large(request: Request):
        return PlainTextResponse(b"x" * LARGE)

    app = Starlette(routes=[Route("/", length, methods=["GET", "POST"]), Route("/large", large)])
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        config = uvicorn.Config(app, http=Prompt, ws="none", log_level="error", lifespan="off", timeout_keep_alive=30)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        server.should_exit = True
        thread.join(20)


@contextlib.contextmanager
def opened(port):
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        yield connection


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nHost: x\r\nX: "])
def test_no_head_and_half_a_head_are_closed(port, sent):
    with opened(port) as connection:
        connection.sendall(sent)
        assert connection.recv(1000) == b""


def test_a_head_that_grows_is_closed_long_before_it_is_large(port):
    sent = 0
    with opened(port) as connection, contextlib.suppress(ConnectionError):
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n")
        while sent < 2**24:
            sent += connection.send(b"X: " + b"a" * 60_000 + b"\r\n")
            time.sleep(0.001)
    assert sent < 2**22


def test_a_slow_body_and_a_kept_connection_are_waited_for(port):
    def body():
        for _ in range(4):
            yield b"x"
            time.sleep(HEAD_S / 2)

    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20) as client:
        assert client.post("/", content=body()).text == "4"
        for _ in range(3):
            assert client.get("/").text == "0"


@pytest.mark.parametrize("more", [b"", b"Connection: close\r\n"])
def test_who_never_reads_its_answer_is_cut_off(port, more):
    with opened(port) as connection:
        connection.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\n" + more + b"\r\n")
        time.sleep(2 * READ_S)
        got = 0
        with contextlib.suppress(ConnectionError):
            while part := connection.recv(2**20):
                got += len(part)
        assert got < LARGE


def test_who_reads_each_answer_in_time_gets_them_all_however_long_they_take_together(port):
    with opened(port) as connection:
        head = b"GET /large HTTP/1.1\r\nHost: x\r\n"
        connection.sendall(head + b"\r\n" + head + b"Connection: close\r\n\r\n")
        got = 0
        for most in (LARGE, 3 * LARGE):
            time.sleep(0.6 * READ_S)
            while got < most and (part := connection.recv(2**20)):
                got += len(part)
        assert got > 2 * LARGE
