"""Flower's middlewares called straight: every answer is that of Flower's own layers."""

from __future__ import annotations

import asyncio
import logging

import httpx
import pytest
from fastapi import FastAPI, Request
from flwr.proto.fleet_pb2 import PullMessagesRequest, RegisterNodeFleetRequest
from flwr.proto.runtime_pb2 import PullAppMessagesRequest
from flwr.supercore.error import ApiErrorCode, FlowerError
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import PlainTextResponse, StreamingResponse

from fed_diffmic.transport.straight import Straight, straighten

PROTOBUF = {"content-type": "application/protobuf"}


def superlink() -> FastAPI:
    from flwr.superlink.main import create_app

    return create_app()


def supernode() -> FastAPI:
    from flwr.supernode.main import create_app

    return create_app()


async def asked(app: FastAPI, questions) -> list[tuple[int, list[tuple[bytes, bytes]], bytes]]:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    found = []
    async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
        for method, path, headers, body in questions:
            answer = await client.request(method, path, headers=headers, content=body)
            found.append((answer.status_code, sorted(answer.headers.raw), answer.content))
    return found


def both(make, questions):
    """The answers of Flower's layers and of the straight way."""
    plain, straight = make(), make()
    straighten(straight)
    found = asyncio.run(asked(plain, questions)), asyncio.run(asked(straight, questions))
    assert isinstance(straight.middleware_stack.app, Straight)
    return found


def test_every_answer_of_the_superlink_is_that_of_its_layers():
    register = RegisterNodeFleetRequest(public_key=b"no key").SerializeToString()
    questions = [
        ("POST", "/v1/fleet/register-node", PROTOBUF, register),
        ("POST", "/v1/fleet/pull-messages", PROTOBUF, PullMessagesRequest().SerializeToString()),
        ("POST", "/v1/fleet/pull-messages", {"content-type": "text/plain"}, b""),
        ("POST", "/v1/fleet/pull-messages", PROTOBUF, b"\xff\xff\xff"),
        ("POST", "/v1/fleet/nothing", PROTOBUF, b""),
        ("GET", "/v1/fleet/pull-messages", {}, b""),
        ("POST", "/v1/runtime/pull-messages", PROTOBUF, PullAppMessagesRequest().SerializeToString()),
        ("POST", "/v1/control/list-runs", PROTOBUF, b"\xff"),
        ("GET", "/health", {}, b""),
        ("GET", "/nothing", {}, b""),
    ]
    layers, straight = both(superlink, questions)
    assert straight == layers
    assert len({status for status, _, _ in layers}) >= 4  # they are not all one refusal


def test_every_answer_of_the_supernode_is_that_of_its_layers():
    questions = [
        ("POST", "/v1/runtime/pull-messages", PROTOBUF, PullAppMessagesRequest().SerializeToString()),
        ("POST", "/v1/runtime/pull-messages", {}, b""),
        ("POST", "/v1/runtime/acquire-task", PROTOBUF, b"\xff\xff"),
        ("GET", "/health", {}, b""),
    ]
    layers, straight = both(supernode, questions)
    assert straight == layers


@pytest.mark.parametrize("error", [FlowerError(ApiErrorCode.INVALID_PROTOBUF_PAYLOAD, "no"), RuntimeError("our own")])
def test_an_error_of_a_handler_is_answered_as_by_the_layers(error, monkeypatch, caplog):
    from flwr.superlink.servicer.fleet import fleet_handlers

    def fail(**_):
        raise error

    monkeypatch.setattr(fleet_handlers, "pull_messages", fail)
    body = PullMessagesRequest().SerializeToString()
    with caplog.at_level(logging.CRITICAL):
        layers, straight = both(superlink, [("POST", "/v1/fleet/pull-messages", PROTOBUF, body)])
    assert straight == layers
    assert layers[0][0] >= 400 and b"our own" not in layers[0][2]


def toy(calls: list[str]) -> FastAPI:
    class Named(BaseHTTPMiddleware):
        def __init__(self, app, name: str) -> None:
            super().__init__(app)
            self.name = name

        async def dispatch(self, request, call_next):
            calls.append(f"to {self.name}")
            request.state.seen = [*getattr(request.state, "seen", []), self.name]
            if request.headers.get("stop") == self.name:
                return PlainTextResponse(f"stopped by {self.name}", 403)
            response = await call_next(request)
            response.headers[f"x-{self.name}"] = str(response.status_code)
            calls.append(f"from {self.name}")
            return response

    app = FastAPI()
    app.add_middleware(Named, name="inner")
    app.add_middleware(Named, name="outer")

    async def answer(request: Request):
        body = await request.body()
        seen = ",".join(request.state.seen)

        async def pieces():
            for piece in (body, b" ", seen.encode()):
                yield piece

        return StreamingResponse(pieces(), 201, {"x-app": "yes"})

    app.add_api_route("/v1/fleet/toy", answer, methods=["POST"])
    app.add_api_route("/other", answer, methods=["POST"])
    return app


@pytest.mark.parametrize("stop", ["", "inner", "outer"])
def test_each_middleware_is_called_once_in_its_order_with_one_request(stop):
    calls: list[str] = []
    headers = {"stop": stop} if stop else {}
    layers, straight = both(lambda: toy(calls), [("POST", "/v1/fleet/toy", headers, b"what came")])
    assert calls[: len(calls) // 2] == calls[len(calls) // 2 :]
    length = [header for header in straight[0][1] if header[0] == b"content-length"]
    assert straight[0][0] == layers[0][0] and straight[0][2] == layers[0][2]
    assert sorted(set(straight[0][1]) - set(length)) == sorted(set(layers[0][1]) - set(length))
    if not stop:
        assert straight[0][2] == b"what came outer,inner" and (b"x-outer", b"201") in straight[0][1]


def test_other_paths_go_through_the_layers(monkeypatch):
    layered = []
    inner = BaseHTTPMiddleware.__call__

    async def noted(self, scope, receive, send):
        layered.append(scope["path"])
        await inner(self, scope, receive, send)

    monkeypatch.setattr(BaseHTTPMiddleware, "__call__", noted)
    app = toy([])
    straighten(app)
    found = asyncio.run(asked(app, [("POST", "/v1/fleet/toy", {}, b"a"), ("POST", "/other", {}, b"b")]))
    assert [status for status, _, _ in found] == [201, 201]
    assert layered == ["/other", "/other"]


def test_a_middleware_of_another_kind_or_an_application_that_serves_is_refused():
    app = toy([])
    app.add_middleware(GZipMiddleware)
    with pytest.raises(RuntimeError, match="GZipMiddleware"):
        straighten(app)
    app = toy([])
    asyncio.run(asked(app, [("POST", "/other", {}, b"")]))
    with pytest.raises(RuntimeError, match="serves already"):
        straighten(app)


def test_an_application_that_answers_nothing_is_an_error():
    async def silent(scope, receive, send):
        return

    straight = Straight(silent, [])
    scope = {"type": "http", "method": "POST", "path": "/v1/fleet/toy", "headers": []}
    with pytest.raises(RuntimeError, match="no answer"):
        asyncio.run(_ask(straight, scope))


async def _ask(straight, scope):
    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    await straight(scope, receive, None)
