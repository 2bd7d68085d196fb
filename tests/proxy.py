"""HTTP servers on loopback for tests, among them a hospital's proxy."""

from __future__ import annotations

import contextlib
import http.server
import socket
import ssl
import threading
from collections.abc import Iterator, Mapping
from typing import ClassVar


@contextlib.contextmanager
def serving(handler: type[http.server.BaseHTTPRequestHandler], context: ssl.SSLContext | None = None) -> Iterator[str]:
    """A server on loopback; its address."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


class Proxy(http.server.BaseHTTPRequestHandler):
    """Tunnels by CONNECT, or refuses; remembers where to. Subclass it to change what it does.

    Attributes:
        allowed: whether it opens tunnels.
        routes: names that it alone can resolve, with the address that each stands for.
        asked: what it was asked for, in order.
    """

    allowed: ClassVar[bool] = True
    routes: ClassVar[Mapping[str, str]] = {}
    asked: ClassVar[list[str]] = []

    def do_CONNECT(self) -> None:
        """Open a tunnel and copy both ways until either side ends."""
        type(self).asked.append(self.path)
        if not self.allowed:
            self.send_error(403)
            return
        host, _, port = self.routes.get(self.path, self.path).rpartition(":")
        with socket.create_connection((host, int(port)), timeout=5) as far:
            far.settimeout(None)  # a tunnel may be silent between two requests
            self.send_response(200)
            self.end_headers()
            back = threading.Thread(target=self._copy, args=(far, self.connection), daemon=True)
            back.start()
            self._copy(self.connection, far)
            back.join(5)

    @staticmethod
    def _copy(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def log_message(self, *_: object) -> None:
        """Say nothing."""
