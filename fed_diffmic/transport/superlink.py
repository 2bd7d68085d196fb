"""Flower's SuperLink as a child of ours: one application, a private listener and a guarded public one.

``python -m fed_diffmic.transport.superlink`` reads :class:`LinkSettings` as JSON from standard input (they hold a
secret), binds both sockets itself, and writes where it listens into the run's folder, with its pid. On the
private listener (a free port on loopback) every request must carry a token derived from the secret, so that other users
of the machine find nothing there; its health answers a nonce, so that a SuperLink of someone else is never
taken for ours. The public listener is :mod:`fed_diffmic.transport.guard`.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import os
import secrets
import socket
import ssl
import sys
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fed_diffmic.errors import CredentialError, MachineError
from fed_diffmic.files import read_json, write_json
from fed_diffmic.transport.processes import Child, child_env, die_with_parent, ignore_proxies, start_child

LOOPBACK = "127.0.0.1"
TOKEN_HEADER, NONCE_HEADER = "x-fed-diffmic-token", "x-fed-diffmic-nonce"
COUNTS_PATH = "/fed-diffmic/counts"
START_S = 90.0
_STATE = "link.json"


@dataclass(frozen=True)
class LinkSettings:
    """What a SuperLink is started with.

    Attributes:
        folder: its database, its log and Flower's own files (0700); holds sites' updates while they travel.
        host, port: public listener.
        certificate, key, ca: PEM files; all none: plain HTTP and nobody authenticated (insecure trials).
        roster: who is admitted; read again when it changes. None only without TLS.
        secret: hexadecimal; SuperExec's secret, and the private listener's token is derived from it.
        nonce: what the private health answers.
        heartbeat_s: Flower's interval.
        header_s, body_s, body_bytes, per_address, total: see :class:`fed_diffmic.transport.guard.Bounds`.
        private_port: 0 chooses one.
    """

    folder: str
    host: str
    port: int
    certificate: str | None = None
    key: str | None = None
    ca: str | None = None
    roster: str | None = None
    secret: str = field(default_factory=lambda: secrets.token_hex(32), repr=False)
    nonce: str = field(default_factory=lambda: secrets.token_hex(16))
    heartbeat_s: float = 30.0
    header_s: float = 10.0
    body_s: float = 120.0
    body_bytes: int = 32 * 2**20
    per_address: int = 64
    total: int = 1024
    private_port: int = 0

    @property
    def secure(self) -> bool:
        """Whether there is TLS and authentication."""
        return self.certificate is not None

    def token(self) -> str:
        """What requests on the private listener carry."""
        return hmac.new(bytes.fromhex(self.secret), b"fed_diffmic loopback", hashlib.sha256).hexdigest()


@dataclass(frozen=True)
class RunningLink:
    """A SuperLink that answered as ours.

    Attributes:
        child: its process.
        settings: as started.
        public_port, loopback_port: where it listens.
    """

    child: Child
    settings: LinkSettings
    public_port: int
    loopback_port: int

    @property
    def address(self) -> str:
        """Of the private listener, for this process."""
        return f"{LOOPBACK}:{self.loopback_port}"

    @property
    def ca(self) -> bytes | None:
        """The CA's certificate, to verify the private listener by; none: plain."""
        return Path(self.settings.ca).read_bytes() if self.settings.ca else None

    def alive(self) -> bool:
        """Whether the process runs."""
        return self.child.poll() is None


def start_superlink(settings: LinkSettings, timeout_s: float = START_S) -> RunningLink:
    """Start a SuperLink and wait, at most ``timeout_s`` seconds, until it answers with our nonce.

    Raises:
        MachineError: a port is taken, the files cannot be read, it ended or did not answer in time; with the
            last lines of its log.
    """
    ignore_proxies()
    folder = Path(settings.folder)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    state = folder / _STATE
    state.unlink(missing_ok=True)
    env = child_env(folder / "flower")
    child = start_child(
        "fed_diffmic.transport.superlink", env=env, log=folder / "superlink.log",
        stdin=json.dumps(asdict(settings)).encode(),
    )  # fmt: skip
    until = time.monotonic() + timeout_s
    try:
        while time.monotonic() < until:
            if child.poll() is not None:
                raise _not_started(child, f"ended with code {child.poll()}")
            if state.exists():
                said = read_json(state)
                link = RunningLink(child, settings, said["public_port"], said["loopback_port"])
                if said["pid"] == child.pid and healthy(link):
                    return link
            time.sleep(0.05)
        raise _not_started(child, f"did not answer within {timeout_s:.0f} s")
    except BaseException:
        child.kill()
        raise


def healthy(link: RunningLink, timeout_s: float = 2.0) -> bool:
    """Whether the private listener answers, and is our own child's."""
    response = _get(link, "/health", timeout_s)
    return response is not None and response.headers.get(NONCE_HEADER) == link.settings.nonce


def counts(link: RunningLink, timeout_s: float = 5.0) -> dict[str, Any] | None:
    """What the guard saw (:meth:`fed_diffmic.transport.guard.Counts.to_json`), or none if it does not answer."""
    response = _get(link, COUNTS_PATH, timeout_s)
    return dict(response.json()) if response is not None else None


def _get(link: RunningLink, path: str, timeout_s: float) -> Any:
    import httpx

    scheme = "https" if link.settings.secure else "http"
    verify: Any = ssl.create_default_context(cafile=link.settings.ca) if link.settings.secure else False
    try:
        with httpx.Client(verify=verify, timeout=timeout_s, trust_env=False) as client:
            response = client.get(f"{scheme}://{link.address}{path}", headers={TOKEN_HEADER: link.settings.token()})
    except httpx.HTTPError:
        return None
    return response if response.is_success else None


def _not_started(child: Child, why: str) -> MachineError:
    lines = "\n    ".join(child.last_lines(6))
    return MachineError(
        f"the SuperLink {why}; its last lines:\n    {lines}",
        "Another process may hold the port (listen.port); certificate, key and roster must be readable.",
    )


# ---- the child -----------------------------------------------------------------------------------
App = Callable[[MutableMapping[str, Any], Any, Any], Awaitable[None]]


class PrivateApp:
    """Flower's whole application, for whoever has the token; and what the guard counted.

    Args:
        app: Flower's.
        settings: token and nonce.
        counts: gives the guard's counts as JSON.
    """

    def __init__(self, app: App, settings: LinkSettings, counts: Callable[[], bytes]) -> None:
        self.app = app
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
        self._seen: tuple[int, int, int] | None = None
        self._names: dict[bytes, str] = {}
        self._names = self._load()
        self._seen = self._stamp()

    def name_of(self, public_pem: bytes) -> str | None:
        """The site whose key this is, or none."""
        stamp = self._stamp()
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

    def _stamp(self) -> tuple[int, int, int] | None:
        try:
            status = os.stat(self._path)
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns, status.st_size


def flower_app(settings: LinkSettings) -> App:
    """Flower's SuperLink application: process isolation, database on disk, nothing installed at run time."""
    from flwr.superlink.cli.flower_superlink import SuperLinkLifespan, _parse_superlink_lifespan_config
    from flwr.superlink.main import create_app

    logging.getLogger("flwr").setLevel(logging.WARNING)  # it sets its own when it is imported
    sys.argv = ["flower-superlink", "--isolation", "process", "--disable-runtime-dependency-installation"]
    sys.argv += ["--host", LOOPBACK, "--database", str(Path(settings.folder) / "state.db")]
    if settings.secure:
        sys.argv += ["--ssl-certfile", str(settings.certificate), "--ssl-keyfile", str(settings.key)]
        sys.argv += ["--ssl-ca-certfile", str(settings.ca), "--enable-supernode-auth"]
    else:
        sys.argv += ["--insecure"]
    config = _parse_superlink_lifespan_config()
    config.superexec_auth_secret = bytes.fromhex(settings.secret)  # never in a file or on a command line
    app: App = create_app(config, SuperLinkLifespan)
    return app


async def serve(settings: LinkSettings, private: socket.socket, public: socket.socket) -> None:
    """Serve both listeners until a signal ends the private one."""
    import uvicorn

    from fed_diffmic.transport.guard import Bounds, Gate, Listener
    from fed_diffmic.transport.heartbeats import set_heartbeat

    app = flower_app(settings)
    set_heartbeat(settings.heartbeat_s)
    bounds = Bounds(settings.header_s, settings.body_s, settings.body_bytes, settings.per_address, settings.total)
    admission = RosterAdmission(settings.roster) if settings.roster else None
    gate = Gate(app, bounds, admission, versions())
    config = uvicorn.Config(
        PrivateApp(app, settings, gate.counts.to_json),
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=2,
        timeout_keep_alive=60,
        ssl_certfile=settings.certificate,
        ssl_keyfile=settings.key,
    )
    server = uvicorn.Server(config)
    inner = asyncio.ensure_future(server.serve(sockets=[private]))
    while not server.started and not inner.done():
        await asyncio.sleep(0.02)
    if not inner.done():
        shared = {"config": config, "server_state": server.server_state, "app_state": server.lifespan.state}
        outer = asyncio.ensure_future(Listener(gate, public, config.ssl, shared).serve())
        ports = {"public_port": public.getsockname()[1], "loopback_port": private.getsockname()[1]}
        write_json(Path(settings.folder) / _STATE, {"pid": os.getpid(), **ports}, 0o600)
        await asyncio.wait({inner, outer}, return_when=asyncio.FIRST_COMPLETED)
        server.should_exit = True
        outer.cancel()
    await inner


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
