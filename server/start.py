"""What a coordinator checks before anything listens, and what it makes of its configuration."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

from cryptography import x509

from fed_diffmic.config.checks import differences
from fed_diffmic.config.compose import to_json
from fed_diffmic.config.folders import check_run_folder, holds_run, renamed
from fed_diffmic.config.network_checks import check_server_start
from fed_diffmic.config.server import ServerConfig
from fed_diffmic.config.simulation import DatasetConfig, RunConfig, SimulateConfig
from fed_diffmic.config.spec import RunSpec, make_spec
from fed_diffmic.config.stages import check_crossfit
from fed_diffmic.errors import ConfigError, UsageError
from fed_diffmic.provision.certificates import leads_to, load_certificate, load_certificates, load_pem_key
from fed_diffmic.provision.credentials import read_credential
from fed_diffmic.provision.keys import PrivateKey, load_private
from fed_diffmic.provision.roster import Roster
from server.ledgers import LedgerMemory, memory_path

MAY_CHANGE = (
    "run.dir",
    "run.deadline_s",
    "run.join_s",
    "run.test_s",
    "run.deliver_s",
    "run.restarts",
    "run.quorum",
    "run.exchanges",
    "run.max_update_norm",
    "listen.",
    "security.",
)
LOCAL = ("localhost", "127.0.0.1")


def with_run_dir(config: ServerConfig, now: datetime | None = None) -> ServerConfig:
    """The configuration with an absolute ``run.dir``: ``runs/<UTC time>-federation-<digest>`` if it was none."""
    stamp = (now or datetime.now(UTC)).strftime("%Y%m%d-%H%M%S")
    digest = sha256(repr(config).encode()).hexdigest()[:8]
    folder = Path(config.run.dir or Path("runs") / f"{stamp}-federation-{digest}").absolute()
    return replace(config, run=replace(config.run, dir=str(folder)))


def check_same_run(saved: ServerConfig, config: ServerConfig) -> None:
    """Refuse to continue a run under another configuration.

    Raises:
        ConfigError: names the first key that differs.
        UsageError: the run's folder has another name.
    """
    for key, before, now in differences(saved, config):
        if not any(key == may or (may.endswith(".") and key.startswith(may)) for may in MAY_CHANGE):
            raise ConfigError(
                key,
                now,
                f"{before}, with which the run was started",
                "Leave the key out to continue that run, or start another one in another run.dir.",
            )
    names = [Path(str(one.run.dir)).name for one in (saved, config)]
    if names[0] != names[1]:
        raise UsageError(*renamed(*names))


def check_start(config: ServerConfig, *, resume: bool) -> None:
    """Refuse to start what must not or cannot run here.

    Raises:
        ConfigError: no TLS or roster without ``security.insecure``, files that do not fit, a folder in use.
        CredentialError: a certificate, key or roster that cannot be used.
        ModelFileError, MachineError: what was seen of the sites' privacy ledgers cannot be read or kept.
        UsageError: ``--resume`` with nothing to resume.
    """
    folder = Path(str(config.run.dir))
    check_run_folder(folder)
    if holds_run(folder) and not resume:
        raise ConfigError(
            "run.dir",
            folder,
            "a folder without a run",
            f"Continue that run: `flower-server --resume {shlex.quote(str(folder))}`.",
        )
    if resume and not holds_run(folder):
        raise UsageError(f"--resume {folder}: there is no run in it", "Leave --resume out to start one.")
    check_server_start(config)
    check_crossfit(config.stages)
    if not config.security.insecure:
        check_credentials(config)
    memory = ledger_memory(config)
    if memory is not None:
        memory.check()
    expected_sites(config)


def check_credentials(config: ServerConfig) -> None:
    """Certificate, key and CA fit each other and this machine.

    Raises:
        ConfigError, CredentialError: as :func:`check_start`.
    """
    security = config.security
    certificate = load_certificate(str(security.certificate))
    private = load_pem_key(str(security.key), security.key_passphrase)
    authorities = load_certificates(read_credential(Path(str(security.ca)), "certificate"), str(security.ca))
    chain = load_certificates(read_credential(Path(str(security.certificate)), "certificate"), "security.certificate")
    if not leads_to(chain, authorities):
        raise ConfigError(
            "security.ca",
            security.ca,
            "the authority that issued security.certificate (this one did not: no site that trusts it could connect)",
            "Take the `ca.crt` that belongs to the certificate, or have this one issue it: "
            "`fed-diffmic provision renew server FOLDER --ca CA_FOLDER`.",
        )
    if certificate.public_key() != private.public_key():
        raise ConfigError("security.key", security.key, "the private key of security.certificate", "Check both paths.")
    now = datetime.now(UTC)
    if not certificate.not_valid_before_utc <= now < certificate.not_valid_after_utc:
        raise ConfigError(
            "security.certificate",
            security.certificate,
            f"a certificate that is valid now (this one: {certificate.not_valid_before_utc:%Y-%m-%d} to "
            f"{certificate.not_valid_after_utc:%Y-%m-%d})",
            "Renew it: `fed-diffmic provision renew server FOLDER --ca CA_FOLDER`; or set this clock right.",
        )
    missing = [name for name in LOCAL if name not in names_of(certificate)]
    if missing:
        raise ConfigError(
            "security.certificate",
            security.certificate,
            f"a certificate that also names {', '.join(missing)} (the coordinator reaches itself there)",
            "`fed-diffmic provision renew server FOLDER --ca CA_FOLDER` makes it such a one.",
        )


def names_of(certificate: x509.Certificate) -> set[str]:
    """The names and addresses of a certificate."""
    try:
        value = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return set()
    addresses = {str(a) for a in value.get_values_for_type(x509.IPAddress)}
    return addresses | set(value.get_values_for_type(x509.DNSName))


def expected_sites(config: ServerConfig) -> list[str] | None:
    """Names of the sites a run is made of, sorted; none (insecure trials only): whoever is there.

    Raises:
        ConfigError: a site that the roster does not admit, or nobody at all.
    """
    wanted = config.consortium.sites
    if config.security.roster is None or config.security.insecure:
        return None if wanted is None else sorted(wanted)
    admitted = {entry.name for entry in Roster.load(config.security.roster).sites}
    strangers = sorted(set(wanted or ()) - admitted)
    if strangers:
        raise ConfigError(
            "consortium.sites",
            ", ".join(strangers),
            f"sites of the roster ({', '.join(sorted(admitted)) or 'it admits none'})",
            "`fed-diffmic provision enrol` adds a site to it.",
        )
    if not (wanted or admitted):
        raise ConfigError(
            "security.roster", config.security.roster, "a roster with a site", "`fed-diffmic provision enrol` adds one."
        )
    return sorted(wanted if wanted is not None else admitted)


def signing_key(config: ServerConfig) -> PrivateKey | None:
    """What signs the audit log and the final model; none in an insecure trial without one.

    Raises:
        CredentialError: it cannot be used.
    """
    if config.security.signing_key is not None:
        return load_private(config.security.signing_key, config.security.key_passphrase)
    if config.security.insecure or config.security.key is None:
        return None
    return load_pem_key(config.security.key, config.security.key_passphrase)


def ledger_memory(config: ServerConfig) -> LedgerMemory | None:
    """Where what was seen of the sites' privacy ledgers is kept over all runs; none in an insecure trial."""
    security = config.security
    if security.insecure or security.roster is None:
        return None
    roster = Path(security.roster)
    return LedgerMemory(memory_path(security.ledgers, roster, Path(str(config.run.dir))), roster)


def as_simulation(config: ServerConfig) -> SimulateConfig:
    """What :mod:`server.app` reads: the same groups under the simulation's names."""
    consortium = config.consortium
    return SimulateConfig(
        seed=config.seed,
        dataset=DatasetConfig(
            classes=consortium.classes,
            task=consortium.task,
            mean=consortium.mean,
            std=consortium.std,
            modality=consortium.modality,
            class_names=consortium.class_names,
        ),
        model=config.model,
        stages=config.stages,
        strategy=config.strategy,
        # What a mixture needs beside the global model each site trains by itself, if its people want one.
        baselines=["local"] if "mixture" in config.strategy.personal else [],
        run=RunConfig(
            dir=config.run.dir,
            threads_per_site=config.run.threads_per_site,
            device="cpu",
            precision=config.run.precision,
            quorum=config.run.quorum,
            deadline_s=config.run.deadline_s,
            max_share=config.run.max_share,
            norm_rule=config.run.norm_rule,
            norm_multiple=config.run.norm_multiple,
            patience=config.run.patience,
            exchanges=config.run.exchanges,
        ),
    )


def run_config(config: ServerConfig, sites: list[str] | None) -> dict[str, str]:
    """The ServerApp's run configuration; it stays in this process.

    A run that has a checkpoint keeps the spec that it was started with, classes asked of the sites included.
    """
    folder = Path(str(config.run.dir))
    simulation = as_simulation(config)
    found = {
        "config-json": to_json(simulation),
        "run-dir": str(folder),
        "join-s": repr(config.run.join_s),
        "test-s": repr(config.run.test_s),
        "deliver-s": repr(config.run.deliver_s),
        "sites": "|".join(sites or ()),
    }
    spec = stored_spec(folder)
    consortium = config.consortium
    if spec is None and consortium.classes and consortium.task:
        spec = make_spec(
            simulation,
            classes=consortium.classes,
            task=consortium.task,
            run_id=folder.name,
            arm="federated",
            device="cpu",
        )
    return found if spec is None else {**found, "spec-json": spec.to_json()}


def stored_spec(folder: Path) -> RunSpec | None:
    """The spec of a run's last checkpoint, or none."""
    from server.checkpoints import CheckpointStore  # it loads torch, for which a mistake in the file need not wait

    store = CheckpointStore(folder)
    state = store.load() if store.exists else None
    return None if state is None else RunSpec.from_json(json.dumps(state.settings["spec"]))
