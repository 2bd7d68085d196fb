"""What a plain copy of a round's bytes over TLS on loopback takes: the least that any way to the sites could.

As many connections at once as there are sites; to each goes what a site was sent in a round, and back comes what it
sent. Nothing is written, checked, signed or kept.
"""

from __future__ import annotations

import socket
import ssl
import threading
import time
from pathlib import Path

CHUNK = 1 << 18


def copied(certificate: Path, key: Path, ca: Path, *, down: int, up: int, sites: int) -> tuple[float, float]:
    """Wall and processor seconds of one copy; both ends are threads of this process.

    Args:
        certificate, key, ca: of the server, for the name ``localhost``.
        down, up: bytes to and from each site.
        sites: connections at once.
    """
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(certificate, key)
    asking = ssl.create_default_context(cafile=str(ca))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        began, own = time.perf_counter(), time.process_time()
        ends = [threading.Thread(target=_serve, args=(listener, serving, down, up)) for _ in range(sites)]
        ends += [
            threading.Thread(target=_ask, args=(listener.getsockname()[1], asking, down, up)) for _ in range(sites)
        ]
        for end in ends:
            end.start()
        for end in ends:
            end.join()
        return time.perf_counter() - began, time.process_time() - own


def _serve(listener: socket.socket, context: ssl.SSLContext, down: int, up: int) -> None:
    plain, _ = listener.accept()
    with context.wrap_socket(plain, server_side=True) as way:
        _give(way, down)
        _take(way, up)


def _ask(port: int, context: ssl.SSLContext, down: int, up: int) -> None:
    with (
        socket.create_connection(("127.0.0.1", port)) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as way,
    ):
        _take(way, down)
        _give(way, up)


def _give(way: ssl.SSLSocket, left: int) -> None:
    data = bytes(CHUNK)
    while left > 0:
        left -= way.send(data[: min(left, CHUNK)])


def _take(way: ssl.SSLSocket, left: int) -> None:
    while left > 0:
        left -= len(way.recv(CHUNK))
