"""Flower's SuperLink as a child of ours: one application, a private listener and a guarded public one.

The child is :mod:`fed_diffmic.transport.superlink_child`; it reads :class:`LinkSettings` as JSON from standard input,
for they hold a secret. It is taken for ours once its private listener (on loopback) answers with our nonce, so
that a SuperLink of someone else, or one that a killed coordinator left behind, never is.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import ssl
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fed_diffmic.errors import MachineError
from fed_diffmic.files import read_json
from fed_diffmic.transport.processes import Child, child_env, ignore_proxies, start_child

LOOPBACK = "127.0.0.1"
TOKEN_HEADER, NONCE_HEADER = "x-fed-diffmic-token", "x-fed-diffmic-nonce"
COUNTS_PATH = "/fed-diffmic/counts"
START_S = 180.0
STATE = "link.json"


class LinkLostError(RuntimeError):
    """The SuperLink does not answer, or does not know the run any more: start again."""


@dataclass(frozen=True)
class LinkSettings:
    """What a SuperLink is started with.

    Attributes:
        folder: its database, its log and Flower's own files (0700); holds sites' updates while they travel.
        host, port: public listener.
        certificate, key, ca: PEM files; all none: plain HTTP and nobody authenticated (insecure trials).
        key_passphrase: file of what opens ``key``, if it is locked; the child opens it in its own memory.
        roster: who is admitted; read again when it changes. None only without TLS.
        secret: hexadecimal; SuperExec's secret, and the private listener's token is derived from it.
        nonce: what the private health answers.
        heartbeat_s: Flower's interval.
        header_s, body_s, body_bytes, per_address, per_site, total, reserved, new_per_s, handshakes: see
            :class:`fed_diffmic.transport.seats.Bounds`.
        reply_bytes, site_bytes: see :class:`fed_diffmic.transport.quota.Limits`.
        private_port: 0 chooses one.
    """

    folder: str
    host: str
    port: int
    certificate: str | None = None
    key: str | None = None
    key_passphrase: str | None = None
    ca: str | None = None
    roster: str | None = None
    secret: str = field(default_factory=lambda: secrets.token_hex(32), repr=False)
    nonce: str = field(default_factory=lambda: secrets.token_hex(16))
    heartbeat_s: float = 30.0
    header_s: float = 10.0
    body_s: float = 120.0
    body_bytes: int = 32 * 2**20
    per_address: int = 64
    per_site: int = 16
    total: int = 1024
    reserved: int = 512
    new_per_s: float = 10.0
    handshakes: int = 256
    reply_bytes: int = 1024 * 2**20
    site_bytes: int = 2048 * 2**20
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
    state = folder / STATE
    state.unlink(missing_ok=True)
    env = child_env(folder / "flower")
    child = start_child(
        "fed_diffmic.transport.superlink_child", env=env, log=folder / "superlink.log",
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
