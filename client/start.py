"""Starting a site's worker, without loading what it needs itself: the supervisor stays small."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fed_diffmic.config.site import SiteConfig
from fed_diffmic.exchange.audit import AuditLog
from fed_diffmic.provision.keys import PrivateKey, load_private, load_public, make_site_key
from fed_diffmic.transport.processes import Child, child_env, start_child

if TYPE_CHECKING:
    from client.studies import Studies

MODULE = "client.worker"
RUN, LOGS, AUDIT, TRIAL_KEY = "run", "logs", "audit.jsonl", "trial_key"
STATE = "worker.json"
SITE_LOG = "site.log"
BEAT_S = 10.0


@dataclass(frozen=True)
class WorkerSettings:
    """What a worker needs to know; crosses on standard input.

    Attributes:
        config: of the site, as plain values.
        run: folder of the files that say how the SuperNode and the worker do.
        secret: hexadecimal; shared with the SuperNode.
        beat_s: interval at which the SuperNode is told that the worker lives.
    """

    config: dict[str, Any]
    run: str
    secret: str
    beat_s: float = BEAT_S


def start_worker(config: SiteConfig, run: Path, secret: str, log: Path) -> Child:
    """Start the child.

    Args:
        config: of the site, folder set.
        run: folder of the state files.
        secret: hexadecimal.
        log: file that takes its output (0600).
    """
    beat = min(BEAT_S, config.coordinator.heartbeat_s / 3)
    settings = WorkerSettings(asdict(config), str(run), secret, beat)
    env = child_env(Path(str(config.site.folder)) / "flower")
    return start_child(MODULE, env=env, log=log, stdin=json.dumps(asdict(settings)).encode())


def site_audit(config: SiteConfig) -> AuditLog:
    """The site's audit log, signed with its key.

    Raises:
        ConfigError: the key cannot be used.
        MachineError, ModelFileError: see :class:`fed_diffmic.exchange.audit.AuditLog`.
    """
    folder = Path(str(config.site.folder))
    return AuditLog(folder / AUDIT, site_signer(config), owner=config.site.name)


def site_studies(config: SiteConfig, audit: AuditLog) -> Studies:
    """What the site agreed to, and its rules for what may come.

    Raises:
        CredentialError: a key cannot be used.
    """
    from client.studies import Studies

    way = config.coordinator
    known = None if way.insecure or way.public_key is None else load_public(way.public_key)  # none: nobody signs
    return Studies(Path(str(config.site.folder)), config.policy.study, audit, site_signer(config), known)


def site_signer(config: SiteConfig) -> PrivateKey:
    """The site's private key, opened by its passphrase where it is locked.

    Raises:
        CredentialError: it cannot be used.
    """
    return load_private(site_key(config), config.coordinator.key_passphrase)


def site_key(config: SiteConfig) -> Path:
    """The file of the site's key; an insecure trial without one gets a key made in its folder."""
    key = Path(config.coordinator.key) if config.coordinator.key else Path(str(config.site.folder)) / TRIAL_KEY
    if not key.exists() and config.coordinator.insecure:
        make_site_key(key)
    return key
