"""The configuration of ``flower-server``: what the consortium has in common, and how the coordinator listens."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fed_diffmic.config import bounds as config_bounds
from fed_diffmic.config import precision as config_precision
from fed_diffmic.config.fields import Checked, option
from fed_diffmic.config.simulation import ModelConfig, StagesConfig, StrategyConfig


@dataclass(frozen=True)
class ConsortiumConfig(Checked):
    """Group ``consortium``: what every site must agree to; how a site reads its own data is its own business."""

    classes: list[str] | None = option(None, "class names in the order of the outputs; none: what all sites say")
    task: str | None = option(
        None, "what is predicted; none: what all sites say", choices=("multiclass", "ordinal", "multilabel")
    )
    class_names: dict[str, Any] = option(
        doc="plain names of classes, for people: `{mel: melanoma}`; they go with the model", factory=dict, sparse=True
    )
    mean: list[float] = option(
        doc="normalisation constant for each channel of [0, 1] intensities (R, G, B)",
        factory=lambda: [0.5, 0.5, 0.5],
        ge=0,
        le=1,
    )
    std: list[float] = option(
        doc="normalisation constant for each channel of [0, 1] intensities (R, G, B)",
        factory=lambda: [0.5, 0.5, 0.5],
        gt=0,
        le=1,
    )
    modality: str = option(
        "none", "decides the augmentation", choices=("none", "dermoscopy", "fundus", "chest", "ultrasound")
    )
    sites: list[str] | None = option(None, "names of the sites that are expected; none: every site of the roster")


@dataclass(frozen=True)
class ListenConfig(Checked):
    """Group ``listen``: the public listener (fleet endpoints and health only) and the private ports on loopback."""

    host: str = option("127.0.0.1", "address to bind; 0.0.0.0 for all. Nothing else ever listens beyond loopback")
    port: int = option(9443, "public port", ge=1, le=65535)
    status_port: int = option(0, "loopback port for health and Prometheus metrics; 0: choose one", ge=0, le=65535)
    header_timeout_s: float = option(10.0, "seconds for a request's header, TLS handshake included", gt=0, le=600)
    body_timeout_s: float = option(120.0, "seconds for a request's body", gt=0, le=3600)
    body_mib: float = option(32.0, "largest body of a request, MiB (Flower sends pieces of 5 MB)", ge=8, le=1024)
    connections_per_address: int = option(
        64,
        "open connections from one address, those of sites that have shown their key not counted: a site has 16, "
        "whatever address it comes from",
        ge=1,
        le=100_000,
    )
    connections: int = option(1024, "open connections in all", ge=1, le=100_000)
    reserved_share: float = option(
        0.5, "share of `connections` that only sites of the roster may hold, never strangers", ge=0, lt=1
    )
    connection_rate: float = option(
        10.0,
        "new connections of one address in a second, beyond twice `connections_per_address` at once (a hospital with"
        " several sites behind one address comes with a few a minute)",
        gt=0,
        le=100_000,
    )
    handshakes: int = option(256, "TLS handshakes under way in all", ge=1, le=100_000)
    reply_mib: float = option(
        1024.0,
        "largest reply of a site, MiB (`paper`'s update: 530); a larger one is refused",
        ge=1,
        le=2**20,
    )
    site_mib: float = option(
        2048.0, "what a site's replies that were not fetched yet may take in the database, MiB", ge=1, le=2**21
    )
    heartbeat_s: float = option(
        30.0, "interval of Flower's heartbeats; a lost process is noticed after about two", ge=1, le=300
    )


@dataclass(frozen=True)
class ServerSecurityConfig(Checked):
    """Group ``security``: files that `fed-diffmic provision` makes."""

    insecure: bool = option(False, "true: no TLS, nobody is authenticated; for trials on one machine only")
    certificate: str | None = option(None, "the coordinator's certificate (PEM)", path=True)
    key: str | None = option(None, "its private key (PEM, 0600)", path=True)
    ca: str | None = option(None, "certificate of the consortium's CA (PEM)", path=True)
    roster: str | None = option(None, "roster of the sites that are admitted; read again when it changes", path=True)
    signing_key: str | None = option(
        None,
        "key that signs the coordinator's audit log and the final model (OpenSSH EC, 0600); none: security.key",
        path=True,
    )
    key_passphrase: str | None = option(
        None,
        "file of the passphrase that opens `key` and `signing_key` (0600), elsewhere than the keys; none: the "
        "credentials `<name of the key's file>.passphrase` of the service, for keys that are locked",
        path=True,
    )
    ledgers: str | None = option(
        None,
        "file that all runs share: the heads of the sites' privacy ledgers and what they had spent when they were last "
        "seen; none: <roster>.ledgers.json beside the roster, or beside the runs where that folder cannot be written",
        path=True,
    )


@dataclass(frozen=True)
class ServerRunConfig(Checked):
    """Group ``run``: where results go, what a round needs, how long anything may take."""

    dir: str | None = option(None, "folder of the run; none: runs/<date>-federation-<digest>", path=True)
    threads_per_site: int = option(1, "torch threads of a local update (part of what makes bits equal)", ge=1, le=256)
    precision: str = config_precision.precision()
    quorum: float = option(1.0, "share of sites whose good replies a round needs", gt=0, le=1)
    deadline_s: float = option(86400.0, "seconds a round may take", gt=0, le=7 * 86400)
    join_s: float = option(3600.0, "seconds to wait for sites to appear at the start", gt=0, le=7 * 86400)
    max_update_norm: float = option(
        10_000.0, "largest L2 norm of a site's update in a round; a larger one is refused", gt=0
    )
    max_share: float = config_bounds.max_share(0.5)
    norm_rule: str = config_bounds.norm_rule("clip")
    norm_multiple: float = config_bounds.norm_multiple()
    patience: int = config_bounds.patience()
    exchanges: str = config_bounds.exchanges("auto")
    test_s: float = option(
        3600.0,
        "seconds to wait, after the last round, for metrics that sites let out of their test images; 0: none asked for",
        ge=0,
        le=7 * 86400,
    )
    deliver_s: float = option(
        300.0,
        "seconds to wait, when the signed model is there, for sites that take it (policy.take_model of each); who was "
        "away is asked again by `flower-server --resume`. 0: nobody is sent it",
        ge=0,
        le=7 * 86400,
    )
    restarts: int = option(10, "how often a SuperLink that died is started again", ge=0, le=10_000)


@dataclass(frozen=True)
class ServerConfig(Checked):
    """Everything that ``flower-server`` needs; saved resolved as config.yaml in the run."""

    seed: int = option(0, "seed of initial weights, batches, augmentation and noise", ge=0, lt=2**31)
    consortium: ConsortiumConfig = field(default_factory=ConsortiumConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    stages: StagesConfig = field(default_factory=StagesConfig)
    strategy: StrategyConfig = field(default_factory=StrategyConfig)
    listen: ListenConfig = field(default_factory=ListenConfig)
    security: ServerSecurityConfig = field(default_factory=ServerSecurityConfig)
    run: ServerRunConfig = field(default_factory=ServerRunConfig)
