"""The SuperLink's child process: ``python -m fed_diffmic.transport.superlink_child``, settings on standard input.

It binds both sockets itself, and writes where it listens into the run's folder, with its pid. On the private
listener every request must carry a token derived from the secret, so that other users of the machine find nothing
there; its health answers the nonce. The public listener is :mod:`fed_diffmic.transport.guard`.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import os
import socket
import ssl
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fed_diffmic.errors import CredentialError
from fed_diffmic.files import write_json
from fed_diffmic.transport.processes import die_with_parent
from fed_diffmic.transport.seats import Bounds, Rate
from fed_diffmic.transport.superlink import COUNTS_PATH, LOOPBACK, NONCE_HEADER, STATE, TOKEN_HEADER, LinkSettings

if TYPE_CHECKING:
    import uvicorn

    from fed_diffmic.transport.bells import Bells

RENEW_S = 30.0
LOOK_S = 0.1
LINES, LINES_PER_S = 200.0, 0.5
PULLS = "/v1/runtime/pull-messages"
App = Callable[[MutableMapping[str, Any], Any, Any], Awaitable[None]]


class PrivateApp:
    """Flower's whole application, for whoever has the token; and what the guard counted.

    Args:
        app: Flower's.
        settings: token and nonce.
        counts: gives the guard's counts as JSON.
        bells: hold the coordinator's question for replies until there is one; none: it is answered at once.
    """

    def __init__(
        self, app: App, settings: LinkSettings, counts: Callable[[], bytes], bells: Bells | None = None
    ) -> None:
        self.app = app
        self._bells = bells
        self._token = settings.token().encode()
        self._nonce = settings.nonce.encode()
        self._counts = counts

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        """Serve one request, or answer 404."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        given = [value for name, value in scope.get("headers", []) if name == TOKEN_HEADER.encode()]
        if scope["type"] != "http" or len(given) != 1 or not hmac.compare_digest(given[0], self._token):
            await _answer(send, 404)
        elif scope["path"] == "/health":
            await _answer(send, 200, [(NONCE_HEADER.encode(), self._nonce)])
        elif scope["path"] == COUNTS_PATH:
            await _answer(send, 200, [(b"content-type", b"application/json")], self._counts())
        elif scope["path"] == PULLS and self._bells is not None:
            await self._bells.answer_coordinator(self.app, scope, receive, send)
        else:
            await self.app(scope, receive, send)


async def _answer(send: Any, status: int, headers: list[tuple[bytes, bytes]] | None = None, body: bytes = b"") -> None:
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [*(headers or []), length]})
    await send({"type": "http.response.body", "body": body})


class RosterAdmission:
    """Who is admitted: the roster's keys, read again when the file changes.

    A roster that cannot be read any more admits whom it admitted last: a slip of the hand must not end a run.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._seen = _stamp(path)
        self._names = self._load()

    def name_of(self, public_pem: bytes) -> str | None:
        """The site whose key this is, or none."""
        stamp = _stamp(self._path)
        if stamp != self._seen:
            self._seen = stamp
            try:
                self._names = self._load()
            except CredentialError as error:
                logging.getLogger("fed_diffmic.guard").error("the roster in use stays: %s", error)
        return self._names.get(public_pem)

    def _load(self) -> dict[bytes, str]:
        from fed_diffmic.provision.keys import public_pem
        from fed_diffmic.provision.roster import Roster

        return {public_pem(entry.key): entry.name for entry in Roster.load(self._path).sites}


class Sparse(logging.Filter):
    """Lets so many of Flower's lines pass: each request that is refused is one, and a site may send many."""

    def __init__(self, per_s: float = LINES_PER_S, most: float = LINES) -> None:
        super().__init__()
        self._rate = Rate(per_s, most)

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the line is written."""
        return self._rate.take("")


def flower_app(settings: LinkSettings) -> App:
    """Flower's SuperLink application: process isolation, database on disk, nothing installed at run time."""
    from flwr.superlink.cli.flower_superlink import SuperLinkLifespan, _parse_superlink_lifespan_config
    from flwr.superlink.main import create_app

    from fed_diffmic.transport.complete import only_complete_replies
    from fed_diffmic.transport.database import expire_seldom, patient_database
    from fed_diffmic.transport.fleetrules import own_messages_only
    from fed_diffmic.transport.quota import Limits
    from fed_diffmic.transport.straight import straighten

    only_complete_replies()
    own_messages_only(Limits(settings.reply_bytes, settings.site_bytes))
    patient_database()
    expire_seldom()
    flower = logging.getLogger("flwr")
    flower.setLevel(logging.WARNING)  # it sets its own when it is imported
    flower.addFilter(Sparse())
    sys.argv = ["flower-superlink", "--isolation", "process", "--disable-runtime-dependency-installation"]
    sys.argv += ["--host", LOOPBACK, "--database", str(Path(settings.folder) / "state.db")]
    if settings.secure:
        sys.argv += ["--ssl-certfile", str(settings.certificate), "--ssl-keyfile", str(settings.key)]
        sys.argv += ["--ssl-ca-certfile", str(settings.ca), "--enable-supernode-auth"]
    else:
        sys.argv += ["--insecure"]
    config = _parse_superlink_lifespan_config()
    config.superexec_auth_secret = bytes.fromhex(settings.secret)  # never in a file or on a command line
    made = create_app(config, SuperLinkLifespan)
    straighten(made)
    app: App = made
    return app


def bounds_of(settings: LinkSettings) -> Bounds:
    """The public listener's."""
    return Bounds(**{one.name: getattr(settings, one.name) for one in fields(Bounds)})


async def serve(settings: LinkSettings, private: socket.socket, public: socket.socket) -> None:
    """Serve both listeners until a signal ends the private one."""
    import uvicorn

    from fed_diffmic.transport.bells import Bells
    from fed_diffmic.transport.guard import Gate
    from fed_diffmic.transport.heartbeats import set_heartbeat
    from fed_diffmic.transport.listener import Listener

    app = flower_app(settings)
    bells = Bells.installed(settings.heartbeat_s)
    set_heartbeat(settings.heartbeat_s)
    admission = RosterAdmission(settings.roster) if settings.roster else None
    gate = Gate(app, bounds_of(settings), admission, versions(), bells)
    config = uvicorn.Config(
        PrivateApp(app, settings, gate.counts.to_json, bells),
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=2,
        timeout_keep_alive=60,
        ssl_certfile=settings.certificate,
        ssl_keyfile=settings.key,
        ssl_keyfile_password=passphrase(settings),
    )
    server = uvicorn.Server(config)
    inner = asyncio.ensure_future(server.serve(sockets=[private]))
    while not server.started and not inner.done():
        await asyncio.sleep(0.02)
    if not inner.done():
        shared = {"config": config, "server_state": server.server_state, "app_state": server.lifespan.state}
        outer = asyncio.ensure_future(Listener(gate, public, config.ssl, shared).serve())
        renewal = asyncio.ensure_future(renew(config.ssl, settings))
        ending = asyncio.ensure_future(close_at_the_end(server, bells))
        ports = {"public_port": public.getsockname()[1], "loopback_port": private.getsockname()[1]}
        write_json(Path(settings.folder) / STATE, {"pid": os.getpid(), **ports}, 0o600)
        await asyncio.wait({inner, outer}, return_when=asyncio.FIRST_COMPLETED)
        server.should_exit = True
        outer.cancel()
        renewal.cancel()
        ending.cancel()
        bells.close()
    await inner


async def close_at_the_end(server: uvicorn.Server, bells: Bells) -> None:
    """Let held questions go once a signal came: they would be cut off with a traceback in the log."""
    while not server.should_exit:
        await asyncio.sleep(LOOK_S)
    bells.close()


def passphrase(settings: LinkSettings) -> str:
    """What opens the TLS key; empty where it lies open (none would have OpenSSL ask at the terminal).

    Raises:
        CredentialError: it is locked, and there is no passphrase that can be read.
    """
    from fed_diffmic.provision.credentials import is_locked, passphrase_of

    key = Path(str(settings.key))
    if settings.key is None or not is_locked(key):
        return ""
    return passphrase_of(key, settings.key_passphrase).decode()


async def renew(tls: ssl.SSLContext | None, settings: LinkSettings, pause_s: float = RENEW_S) -> None:
    """Take a renewed certificate for new connections, without ending those that are open.

    A certificate that cannot be used (half of the pair is written) is tried again at the next look.
    """
    if tls is None:
        return
    files = [Path(str(settings.certificate)), Path(str(settings.key))]
    seen = _stamps(files)
    while True:
        await asyncio.sleep(pause_s)
        now = _stamps(files)
        if now != seen and None not in now:
            try:
                tls.load_cert_chain(files[0], files[1], passphrase(settings))
            except (OSError, ssl.SSLError, CredentialError) as error:
                logging.getLogger("fed_diffmic.guard").error("the certificate in use stays: %s", error)
            else:
                seen = now


def _stamps(paths: list[Path]) -> list[tuple[int, int, int] | None]:
    return [_stamp(path) for path in paths]


def _stamp(path: str | os.PathLike[str]) -> tuple[int, int, int] | None:
    """What changes when a file is replaced; none: it is not there."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def versions() -> str:
    """What the public health tells: the versions that sites compare theirs with."""
    from importlib.metadata import version

    from fed_diffmic import __version__

    return f"fed_diffmic={__version__} flwr={version('flwr')} torch={version('torch')}"


def bind(host: str, port: int) -> socket.socket:
    """A listening socket."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((host, port))
    sock.listen(512)
    return sock


def main() -> None:
    """Entry of the child."""
    die_with_parent()
    os.umask(0o077)
    settings = LinkSettings(**json.loads(sys.stdin.buffer.read()))
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s [%(name)s] %(message)s")
    try:
        sockets = bind(LOOPBACK, settings.private_port), bind(settings.host, settings.port)
    except OSError as error:
        sys.exit(f"cannot listen on {settings.host}:{settings.port}: {error.strerror}")
    asyncio.run(serve(settings, *sockets))


if __name__ == "__main__":
    main()
