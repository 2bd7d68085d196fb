"""The coordinator's side of provisioning: its folder, whom its sites must trust, the kits that it sends.

The CA's folder and the coordinator's are two: the first may lie on a medium that is locked away, and is needed
only to issue and renew. The coordinator keeps a copy of the CA's certificate, ``ca.crt``; it may hold several
while one CA follows another.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509

from fed_diffmic.config.server import ServerConfig
from fed_diffmic.errors import ConfigError, CredentialError
from fed_diffmic.files import atomic_write, private_folder
from fed_diffmic.provision.authority import (
    CA_CERTIFICATE,
    SERVER_CERTIFICATE,
    SERVER_DAYS,
    Authority,
)
from fed_diffmic.provision.certificates import (
    days_left,
    issued_by,
    load_certificate,
    load_certificates,
    load_pem_key,
    pem,
    server_names,
)
from fed_diffmic.provision.credentials import read_credential, read_passphrase
from fed_diffmic.provision.keys import PrivateKey, load_private, new_key_files, place_new
from fed_diffmic.provision.kit import Kit, check_address, kit_for
from fed_diffmic.provision.roster import Roster
from fed_diffmic.provision.templates import server_yaml

SIGNING_KEY, ROSTER, CONFIG = "signing.key", "roster.json", "server.yaml"
WARN_DAYS = 30.0
"""A certificate that expires sooner is spoken of whenever it is looked at."""


def set_up_coordinator(
    folder: str | os.PathLike[str],
    authority: Authority,
    names: Sequence[str],
    addresses: Sequence[str],
    *,
    port: int,
    host: str = "127.0.0.1",
    days: float = SERVER_DAYS,
    passphrase: Path | None = None,
) -> Path:
    """Write everything that a coordinator starts from into ``folder`` (0700), never over what is there.

    Its certificate and key, the CA's certificate, a signing key, an empty roster, and a ``server.yaml`` that names
    them.

    Args:
        folder: new, or without these files.
        authority: issues the certificate.
        names, addresses: by which sites reach the coordinator.
        port, host: where it listens; ``host`` is what it binds, this machine only unless it is told otherwise.
        days: how long the certificate is valid.
        passphrase: file of what locks the two private keys; none: they lie open.

    Returns:
        The path of ``server.yaml``.

    Raises:
        CredentialError: something is there already, or :meth:`Authority.server_files` refuses.
    """
    folder = private_folder(folder).absolute()
    phrase = None if passphrase is None else read_passphrase(passphrase, new=True)
    files = {folder / name: value for name, value in authority.server_files(names, addresses, days, phrase).items()}
    files[folder / CA_CERTIFICATE] = (pem(authority.certificate), 0o644)
    files |= new_key_files(folder / SIGNING_KEY, phrase)[1]
    files[folder / ROSTER] = (Roster().to_json(), 0o644)
    files[folder / CONFIG] = (server_yaml(folder, host, port, passphrase).encode(), 0o644)
    place_new(files)
    return folder / CONFIG


def signing_key(config: ServerConfig) -> PrivateKey:
    """The key that signs kits, the audit log and the final model: ``security.signing_key``, else the TLS key.

    Raises:
        ConfigError, CredentialError: none is configured, or it cannot be used.
    """
    if config.security.signing_key is not None:
        return load_private(config.security.signing_key, config.security.key_passphrase)
    return load_pem_key(needed(config, "key"), config.security.key_passphrase)


def needed(config: ServerConfig, name: str) -> Path:
    """A file of group ``security`` that must be configured.

    Raises:
        ConfigError: it is not.
    """
    value = getattr(config.security, name)
    if value is None:
        raise ConfigError(f"security.{name}", "null", "a file", "`fed-diffmic provision server` writes a server.yaml.")
    return Path(value)


def make_kit(config: ServerConfig, name: str, address: str | None) -> Kit:
    """The kit of a site of the roster.

    Args:
        config: the coordinator's.
        name: the site.
        address: ``host:port`` by which this site reaches the coordinator; none: the first name of the certificate
            and ``listen.port``.

    Raises:
        CredentialError: no such site, an address that the certificate does not name, a certificate that expired or
            that the CA in the kit did not sign.
    """
    roster = Roster.load(needed(config, "roster"))
    entry = roster.site(name)
    ca = read_credential(needed(config, "ca"), "CA's certificate")
    certificate = load_certificate(needed(config, "certificate"))
    check_chain(certificate, load_certificates(ca, str(config.security.ca)))
    return kit_for(
        entry,
        address=checked_address(address, certificate, config.listen.port),
        ca=b"".join(pem(one) for one in load_certificates(ca, str(config.security.ca))),
        signing_key=signing_key(config),
        classes=config.consortium.classes,
        task=config.consortium.task,
        seed=config.seed,
        made=datetime.now(UTC).isoformat(timespec="microseconds"),  # of two kits of one second, one is the later
        peers=roster.sites,
    )


def checked_address(address: str | None, certificate: x509.Certificate, port: int) -> str:
    """``address``, or the certificate's first name with ``port``; sites refuse a host that it does not name."""
    names, numbers = server_names(certificate)
    if address is None:
        reachable = [name for name in names if name != "localhost"]
        reachable += [n if ":" not in n else f"[{n}]" for n in numbers if not ipaddress.ip_address(n).is_loopback]
        return f"{(reachable or ['localhost'])[0]}:{port}"
    with_port = check_address(address if re.search(r"[^:]:[0-9]+$", address) else f"{address}:{port}")
    host = with_port.rpartition(":")[0]
    bare = host.strip("[]")
    if bare.lower() not in names and not _among(bare, numbers):
        raise CredentialError(
            f"the coordinator's certificate does not name {host!r}; it names {', '.join([*names, *numbers])}",
            "Sites would refuse it. Use one of these, or issue a certificate with this name: "
            "`fed-diffmic provision renew server FOLDER --ca FOLDER --name HOST` (or `--address IP`).",
        )
    return with_port


def check_chain(certificate: x509.Certificate, trusted: Sequence[x509.Certificate]) -> None:
    """Refuse a coordinator's certificate that no site would accept.

    Raises:
        CredentialError: expired, or issued by no CA among ``trusted`` that is still valid.
    """
    if days_left(certificate) <= 0:
        raise CredentialError(
            f"the coordinator's certificate expired on {certificate.not_valid_after_utc:%Y-%m-%d}",
            "Renew it: `fed-diffmic provision renew server FOLDER --ca FOLDER`.",
        )
    issuers = [ca for ca in trusted if issued_by(certificate, ca)]
    if not issuers:
        raise CredentialError(
            "the coordinator's certificate was not issued by the CA that its sites are to trust",
            "Issue it by that CA, or have sites trust the new one first: `fed-diffmic provision renew trust "
            "FOLDER --ca CA_FOLDER`.",
        )
    if all(days_left(ca) <= 0 for ca in issuers):
        raise CredentialError(
            f"the CA expired on {issuers[0].not_valid_after_utc:%Y-%m-%d}",
            "Renew it (`fed-diffmic provision renew ca CA_FOLDER`), have the coordinator trust the renewed one "
            "(`fed-diffmic provision renew trust FOLDER --ca CA_FOLDER`) and send new kits.",
        )


def trust(folder: str | os.PathLike[str], added: x509.Certificate) -> list[x509.Certificate]:
    """Add a CA to those that the coordinator's sites are to trust; a renewed one takes its old one's place.

    Returns:
        The certificates that ``ca.crt`` holds now.
    """
    path = Path(folder) / CA_CERTIFICATE
    kept = [
        ca
        for ca in load_certificates(read_credential(path, "CA's certificate"), str(path))
        if ca.public_key() != added.public_key()
    ]
    return _write_trusted(path, [*kept, added])


def distrust(folder: str | os.PathLike[str], dropped: x509.Certificate) -> list[x509.Certificate]:
    """Take a CA out of those that the coordinator's sites are to trust.

    Raises:
        CredentialError: it is not among them, is the last, or is the one that issued the coordinator's certificate.
    """
    path = Path(folder) / CA_CERTIFICATE
    trusted = load_certificates(read_credential(path, "CA's certificate"), str(path))
    kept = [ca for ca in trusted if ca.public_key() != dropped.public_key()]
    if len(kept) == len(trusted):
        raise CredentialError(f"{path} does not hold this CA", "Nothing is to be done.")
    server = load_certificate(Path(folder) / SERVER_CERTIFICATE)
    if not any(issued_by(server, ca) for ca in kept):
        raise CredentialError(
            "this CA issued the coordinator's certificate: without it no site would come in",
            "First issue it by the new CA: `fed-diffmic provision renew server FOLDER --ca NEWFOLDER`.",
        )
    return _write_trusted(path, kept)


def renew_server(
    folder: str | os.PathLike[str],
    authority: Authority,
    names: Sequence[str] = (),
    addresses: Sequence[str] = (),
    days: float = SERVER_DAYS,
    passphrase: Path | None = None,
) -> x509.Certificate:
    """A new certificate in place of the coordinator's, over the same key and names, and over names more.

    Args:
        folder, names, addresses, days, passphrase: see :meth:`Authority.renew_server`.
        authority: issues it.

    Raises:
        CredentialError: ``ca.crt`` in ``folder`` does not hold this authority: sites would refuse the result.
    """
    path = Path(folder) / CA_CERTIFICATE
    trusted = load_certificates(read_credential(path, "CA's certificate"), str(path))
    if not any(ca.public_key() == authority.certificate.public_key() for ca in trusted):
        raise CredentialError(
            f"{path} does not hold the certificate of this CA, so no site would accept what it issues",
            "Have sites trust it first: `fed-diffmic provision renew trust FOLDER --ca NEWFOLDER`, then new kits.",
        )
    return authority.renew_server(folder, names, addresses, days, passphrase)


def expiries(config: ServerConfig) -> list[tuple[str, float]]:
    """What expires, with the days left: the coordinator's certificate and every CA that sites trust."""
    ca_path = needed(config, "ca")
    found = [("the coordinator's certificate", days_left(load_certificate(needed(config, "certificate"))))]
    for ca in load_certificates(read_credential(ca_path, "CA's certificate"), str(ca_path)):
        found.append((f"the CA {ca.subject.rfc4514_string().removeprefix('CN=')!r}", days_left(ca)))
    return found


def _write_trusted(path: Path, trusted: Sequence[x509.Certificate]) -> list[x509.Certificate]:
    atomic_write(path, b"".join(pem(ca) for ca in trusted))
    return list(trusted)


def _among(text: str, numbers: Sequence[str]) -> bool:
    try:
        return ipaddress.ip_address(text) in {ipaddress.ip_address(number) for number in numbers}
    except ValueError:
        return False
