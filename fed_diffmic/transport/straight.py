"""Flower's middlewares without a task, a stream and a timer for each of them.

Flower's two applications pass every request through middlewares of Starlette's ``BaseHTTPMiddleware``: eight in the
SuperLink, three in the SuperNode, of which a site's requests need three. Each of these layers starts three tasks, hands
the body down and the answer up through a stream, and looks for a lost connection with every piece. That was more than
half of what a request cost the SuperLink (docs/performance.md). A request of the runtime's and the fleet's interfaces
is one body and one answer, so here each middleware's own function calls the next one's, with the same request.

What else an application serves (its control interface streams) goes through its own layers, as before.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any

from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import Response

if TYPE_CHECKING:
    from fastapi import FastAPI

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
UNARY = ("/v1/fleet/", "/v1/runtime/")
"""Where Flower's interfaces begin whose every request is one body and one answer."""


class Straight:
    """Middlewares one after the other on one request.

    Args:
        app: what is behind them.
        middlewares: as the application was given them, the outermost first; each a ``BaseHTTPMiddleware``.
    """

    def __init__(self, app: App, middlewares: Sequence[Middleware]) -> None:
        self._app = app
        layers: App = app
        functions = []
        for one in reversed(middlewares):
            layer: Any = one.cls(layers, *one.args, **one.kwargs)
            functions.append(layer.dispatch_func)
            layers = layer
        self._layers = layers
        self._functions = functions[::-1]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or scope["method"] != "POST" or not scope["path"].startswith(UNARY):
            await self._layers(scope, receive, send)
            return
        request: Request[Any] = Request(scope, receive)
        response = await self._after(0, request)
        await response(scope, receive, send)

    async def _after(self, index: int, request: Request[Any]) -> Response:
        if index < len(self._functions):
            answer: Response = await self._functions[index](request, lambda given: self._after(index + 1, given))
            return answer
        return await _whole(self._app, request)


async def _whole(app: App, request: Request[Any]) -> Response:
    """What the application answers, as one response.

    Raises:
        RuntimeError: it answers nothing.
    """
    start: MutableMapping[str, Any] = {}
    body = bytearray()
    given = False

    async def receive() -> MutableMapping[str, Any]:
        nonlocal given
        if given:
            return await request.receive()
        given = True
        return {"type": "http.request", "body": await request.body(), "more_body": False}

    async def send(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            start.update(message)
        elif message["type"] == "http.response.body":
            body.extend(message.get("body", b""))

    await app(request.scope, receive, send)
    if not start:
        raise RuntimeError("the application gave no answer")
    response = Response(bytes(body), start["status"])
    response.raw_headers = list(start.get("headers", ()))
    return response


def straighten(app: FastAPI) -> None:
    """Have an application that has not served yet call its middlewares straight.

    Raises:
        RuntimeError: it serves already, or has a middleware of another kind (another version of Flower).
    """
    if app.middleware_stack is not None:
        raise RuntimeError("the application serves already")
    middlewares: list[Any] = list(app.user_middleware)
    strange = [
        one.cls for one in middlewares if not (isinstance(one.cls, type) and issubclass(one.cls, BaseHTTPMiddleware))
    ]
    if strange:
        raise RuntimeError(f"middlewares of Flower that are not known: {', '.join(str(one) for one in strange)}")
    app.user_middleware = [Middleware(Straight, middlewares=middlewares)]
