"""A site's SuperNode as a child of its supervisor: Flower's loop, with our bounds around it.

Started by :func:`start_supernode` as ``python -m fed_diffmic.transport.supernode``, with its settings on standard
input. It listens on loopback for this site's own worker, which knows a secret, and calls out to the coordinator;
nothing else. Flower's own program never notices some ends (its listener's thread keeps a process alive whose
connection is over); this one ends, and its supervisor starts another.
"""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import socket
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

from fed_diffmic.errors import ConfigError
from fed_diffmic.transport.pauses import Pauses
from fed_diffmic.transport.processes import Child, child_env, die_with_parent, start_child

INBOX = "inbox"
NODE = "node"
FLOWER = "flower"
STARTED_S = 20.0
GONE = 1
ASK_S, OWN_S, WORKER_S = 0.1, 0.05, 1.0
"""Shortest pause between questions to the coordinator, that between looks at the own worker's replies, and how long its
question for a task waits here."""
NO_WAY = "the connection to the coordinator could not be made"
PEM = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class NodeSettings:
    """What a SuperNode needs to know; crosses on standard input.

    Attributes:
        address: host:port of the coordinator.
        ca: file of CA certificates; none: the system's.
        key: file of the site's private key; none: unauthenticated (insecure only).
        key_passphrase: file of what opens it, if it is locked: the child opens it in its own memory.
        insecure: no TLS.
        folder: the site's own, below which the request in hand is kept.
        run: folder of the file that says how it goes.
        secret: hexadecimal; shared with the worker.
        port: loopback port that is tried first.
        heartbeat_s, poll_s, retry_min_s, retry_max_s, give_up_s: see ``coordinator.*``.
        turn, turn_s: see ``site.*``.
    """

    address: str
    folder: str
    run: str
    secret: str
    ca: str | None = None
    key: str | None = None
    key_passphrase: str | None = None
    insecure: bool = False
    port: int = 0
    heartbeat_s: float = 30.0
    poll_s: float = 0.5
    retry_min_s: float = 1.0
    retry_max_s: float = 60.0
    give_up_s: float = 7 * 86400.0
    turn: str | None = None
    turn_s: float = 21600.0


def start_supernode(settings: NodeSettings, log: Path, *, proxy: str | None = None) -> Child:
    """Start the child; it says how it goes in :mod:`fed_diffmic.transport.contact`'s file.

    Args:
        settings: of the node.
        log: file that takes its output (0600).
        proxy: ``http://host:port`` on the way to the coordinator; none: no proxy, whatever the environment says.
    """
    env = child_env(Path(settings.folder) / FLOWER, proxy=proxy)
    if proxy:  # it makes no connection but the one to the coordinator, wherever that is
        for name in ("NO_PROXY", "no_proxy"):
            env.pop(name, None)
    return start_child(__name__, env=env, log=log, stdin=json.dumps(asdict(settings)).encode())


def ca_certificates(path: str | None) -> bytes | None:
    """The certificates of a PEM file (bundles often hold comments in other alphabets, which Flower cannot read).

    Raises:
        ConfigError: no such file, or no certificate in it.
    """
    if path is None:
        return None
    try:
        found = PEM.findall(Path(path).read_text(encoding="utf-8", errors="replace"))
    except OSError as error:
        raise ConfigError("coordinator.ca", path, f"a readable PEM file ({error.strerror})") from error
    if not found:
        raise ConfigError("coordinator.ca", path, "a PEM file with at least one certificate")
    return "\n".join(found).encode("ascii", errors="replace") + b"\n"


def main() -> NoReturn:
    """The child: read settings, run until the connection is over or a signal comes, end."""
    die_with_parent()
    settings = NodeSettings(**json.loads(sys.stdin.buffer.read()))
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    try:
        run_supernode(settings)
    except SystemExit as end:
        _leave(int(end.code or 0) if not isinstance(end.code, str) else GONE)
    except Exception as error:
        logger.error("the SuperNode ends: %s: %s", type(error).__name__, error)
    _leave(GONE)


def _leave(code: int) -> NoReturn:
    """End now: threads of the listener would keep the process alive."""
    logging.shutdown()
    sys.stdout.flush()
    os._exit(code)


def run_supernode(settings: NodeSettings) -> None:
    """Connect and serve until the connection is over; Flower's exits come out as ``SystemExit``."""
    from flwr.supernode import fleet_http_connection, start_client_internal

    from fed_diffmic.provision.keys import load_private
    from fed_diffmic.transport import fleet, keptcalls
    from fed_diffmic.transport.contact import Reporter
    from fed_diffmic.transport.heartbeats import set_heartbeat
    from fed_diffmic.transport.nodestate import KeptStateFactory
    from fed_diffmic.transport.spool import Spool
    from fed_diffmic.transport.turn import Turn

    logging.getLogger("flwr").setLevel(logging.INFO)  # Flower's own level is DEBUG
    report = Reporter(Path(settings.run))
    spool = Spool(Path(settings.folder) / INBOX)
    factory = KeptStateFactory(spool, report.worker_seen)
    port = serve_worker(factory, spool, settings)
    set_heartbeat(settings.heartbeat_s)
    report.set(port=port, at_once=True)

    internal: Any = start_client_internal
    connection: Any = fleet_http_connection
    flower_exit = connection.flwr_exit

    def exit_with_reason(code: int, message: str = "", **more: Any) -> NoReturn:
        report.set(at_once=True, problem=report.now.problem or NO_WAY, connected=False)
        flower_exit(code, message, **more)
        raise SystemExit(GONE)

    make_invoker = fleet.retry_invoker(settings.retry_min_s, settings.retry_max_s, settings.give_up_s)
    current: list[keptcalls.KeptCalls] = []
    push, pull = internal._push_messages, internal._pull_and_store_message

    def pull_and_settle(**arguments: Any) -> Any:
        asked = time.monotonic()
        run_id = pull(**arguments)
        pauses.waited(time.monotonic() - asked)  # the SuperLink holds a question for which it has no answer yet
        while current[-1].over:  # Flower leaves the task of a run that is over to its worker
            factory.state().abandon(current[-1].over.pop())
        return run_id

    def push_and_settle(**arguments: Any) -> None:
        push(**arguments)
        current[-1].settle()
        pauses.came()

    connection.flwr_exit = internal.flwr_exit = exit_with_reason
    connection.FleetHttpClient = fleet.watched_client(report, Path(settings.run) / NODE if settings.key else None)
    connection.HeartbeatSender = fleet.SteadyHeartbeat
    connection.make_simple_http_retry_invoker = make_invoker
    turn = Turn(settings.turn, settings.turn_s)
    internal.http_request_response = lambda *args: keptcalls.kept_connection(spool, report, turn, current, *args)
    internal._push_messages = push_and_settle
    internal._pull_and_store_message = pull_and_settle
    internal.get_fused_config_from_fab = lambda *_: {}  # the bundle is somebody else's code: it is not opened
    pauses = Pauses(ASK_S, settings.poll_s)
    internal.time = SimpleNamespace(sleep=lambda seconds: time.sleep(pause(seconds, pauses)))

    key = None
    if settings.key is not None:
        private = load_private(settings.key, settings.key_passphrase)
        key = (private, private.public_key())
    try:
        internal.start_client_internal(
            state_factory=factory,
            server_address=settings.address,
            node_config={},
            root_certificates=None if settings.insecure else ca_certificates(settings.ca),
            insecure=settings.insecure,
            authentication_keys=key,
            max_wait_time=settings.give_up_s,
            isolation="process",
            runtime_api_address=f"127.0.0.1:{port}",
            superexec_auth_secret=bytes.fromhex(settings.secret),
            runtime_dependency_install=False,
        )
    finally:
        report.set(at_once=True, connected=False)


def pause(seconds: float, pauses: Pauses) -> float:
    """How long Flower's loop really sleeps: for 3 s before it asks the coordinator, for 0.5 before it looks whether its
    own worker has handed in a reply, which costs nobody anything.
    """
    return OWN_S if seconds < 1.0 else pauses.next()


def serve_worker(factory: Any, spool: Any, settings: NodeSettings) -> int:
    """Listen on loopback for this site's worker; returns the port."""
    import uvicorn
    from flwr.supernode.main import create_app

    from fed_diffmic.transport.nodestate import Handlers
    from fed_diffmic.transport.straight import straighten

    app = create_app(state_factory=factory, superexec_auth_secret=bytes.fromhex(settings.secret))
    app.state.runtime_handlers = Handlers(spool, WORKER_S)
    straighten(app)
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", settings.port))
    except OSError:
        listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, access_log=False, log_level="warning", lifespan="off"))
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True, name="worker api")
    thread.start()
    until = time.monotonic() + STARTED_S
    while not server.started:
        if not thread.is_alive() or time.monotonic() > until:
            raise RuntimeError("the listener for the worker did not start")
        time.sleep(0.02)
    return int(listener.getsockname()[1])


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    main()
