"""A small HTTP listener on loopback, for health and metrics."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from fed_diffmic.errors import MachineError

Page = Callable[[], tuple[int, str, bytes]]


class LoopbackPages:
    """Serves pages on 127.0.0.1, in a thread, until closed.

    Args:
        port: 0 chooses one.
        pages: by path; each gives status, content type and body. Only GET and HEAD; everything else is 404.

    Raises:
        MachineError: the port is taken.
    """

    def __init__(self, port: int, pages: Mapping[str, Page]) -> None:
        class Handler(_Handler):
            routes = pages

        try:
            self._server = _Server(("127.0.0.1", port), Handler)
        except OSError as error:
            raise MachineError(
                f"cannot listen on 127.0.0.1:{port}: {error.strerror}", "Choose another listen.status_port, or 0."
            ) from error
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True, name="loopback pages")
        self._thread.start()

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=5)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A reader that went away is nobody's concern."""


class _Handler(BaseHTTPRequestHandler):
    routes: Mapping[str, Page]
    timeout = 5  # seconds that a silent socket is kept
    server_version, sys_version = "fed_diffmic", ""

    def do_GET(self) -> None:
        """Answer with a page."""
        page = self.routes.get(self.path.partition("?")[0])
        status, kind, body = page() if page else (404, "text/plain", b"")
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:
        """Requests are not logged."""
