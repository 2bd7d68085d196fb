"""The consortium's own certificate authority, and the coordinator's certificate.

A consortium needs one authority for one purpose: that a site knows it speaks to its coordinator. So it is made
here, with X.509 profiles as narrow as that purpose (RFC 5280): the CA signs end entities only (path length 0), the
coordinator's certificate is for TLS servers only. Sites do not get certificates: they are known by their keys.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fed_diffmic.errors import CredentialError
from fed_diffmic.files import atomic_write, private_folder
from fed_diffmic.provision.certificates import load_certificate, load_pem_key, pem, pem_key, server_names
from fed_diffmic.provision.credentials import read_passphrase
from fed_diffmic.provision.keys import PublicKey, place_new

CA_CERTIFICATE, CA_KEY = "ca.crt", "ca.key"
SERVER_CERTIFICATE, SERVER_KEY = "server.crt", "server.key"
CA_DAYS, SERVER_DAYS = 3650, 365
_BEFORE = timedelta(hours=1)
"""A certificate is valid from an hour ago: clocks of hospitals differ."""

_LOOPBACK_NAMES = ("localhost",)
_LOOPBACK_ADDRESSES = ("127.0.0.1", "::1")


@dataclass(frozen=True)
class Authority:
    """A CA whose private key lies in ``folder``.

    Args:
        folder: holds ``ca.crt`` and ``ca.key``; nobody but the coordinator's administrator needs to reach it.
        certificate: the CA's own.
        passphrase: file of what opens ``ca.key``, if it is locked.
    """

    folder: Path
    certificate: x509.Certificate
    passphrase: Path | None = None

    @classmethod
    def load(cls, folder: str | os.PathLike[str], passphrase: Path | None = None) -> Authority:
        """Read an authority and see that its key fits its certificate.

        Raises:
            CredentialError: missing, damaged, a key that others may read, a key of another certificate.
        """
        authority = cls(Path(folder), load_certificate(Path(folder) / CA_CERTIFICATE), passphrase)
        if authority.key().public_key() != authority.certificate.public_key():
            raise CredentialError(
                f"{CA_KEY} and {CA_CERTIFICATE} in {folder} do not belong together", "Restore both from one backup."
            )
        return authority

    @property
    def certificate_path(self) -> Path:
        """The CA's certificate, which every site gets."""
        return self.folder / CA_CERTIFICATE

    def key(self) -> ec.EllipticCurvePrivateKey:
        """The CA's private key."""
        return load_pem_key(self.folder / CA_KEY, self.passphrase)

    def issue_server(
        self,
        names: Sequence[str],
        addresses: Sequence[str],
        folder: str | os.PathLike[str],
        days: float = SERVER_DAYS,
    ) -> tuple[Path, Path]:
        """Make a key and a certificate for the coordinator.

        ``localhost``, ``127.0.0.1`` and ``::1`` are always among the names: the private listener on loopback has the
        same certificate.

        Args:
            names: DNS names by which sites reach the coordinator.
            addresses: its IP addresses, if sites use them.
            folder: gets ``server.crt`` and ``server.key`` (0600), never over others.
            days: how long it is valid; never longer than the CA.

        Returns:
            The paths of certificate and key.

        Raises:
            CredentialError: a file is there already, a name or address that is none, an expired CA.
        """
        folder = private_folder(folder)
        place_new({folder / name: value for name, value in self.server_files(names, addresses, days).items()})
        return folder / SERVER_CERTIFICATE, folder / SERVER_KEY

    def server_files(
        self,
        names: Sequence[str],
        addresses: Sequence[str],
        days: float = SERVER_DAYS,
        passphrase: bytes | None = None,
    ) -> dict[str, tuple[bytes, int]]:
        """What :meth:`issue_server` writes: contents and mode by file name."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self.sign_server(key.public_key(), names, addresses, days)
        return {SERVER_KEY: (pem_key(key, passphrase), 0o600), SERVER_CERTIFICATE: (pem(certificate), 0o644)}

    def renew_server(
        self,
        folder: str | os.PathLike[str],
        names: Sequence[str] = (),
        addresses: Sequence[str] = (),
        days: float = SERVER_DAYS,
        passphrase: Path | None = None,
    ) -> x509.Certificate:
        """A new certificate over the key and the names of the one in ``folder``, in its place (atomically).

        The key stays, so a restart of the coordinator is all that is needed; sites notice nothing.

        Args:
            folder: holds ``server.crt`` and ``server.key``.
            names, addresses: more of them.
            days: how long the new one is valid; never longer than the CA.
            passphrase: file of what opens ``server.key``, if it is locked.

        Raises:
            CredentialError: no certificate there, or the key is not its own.
        """
        path = Path(folder) / SERVER_CERTIFICATE
        old = load_certificate(path)
        key = load_pem_key(Path(folder) / SERVER_KEY, passphrase)
        if key.public_key() != old.public_key():
            raise CredentialError(f"{SERVER_KEY} in {folder} is not the key of {SERVER_CERTIFICATE}", "Restore both.")
        old_names, old_addresses = server_names(old)
        order = sorted([*old_names, *names], key=_LOOPBACK_NAMES.__contains__)
        new = self.sign_server(key.public_key(), order, [*old_addresses, *addresses], days)
        atomic_write(path, pem(new))
        return new

    def renew(self, days: float = CA_DAYS) -> Authority:
        """The same CA with a longer life: same name, same key, a new certificate in the old one's place.

        What it issued stays valid under both, so sites may get the new one with their next kit. For a key that may
        have leaked this is no cure: make another authority (docs/provisioning.md).
        """
        name = self.certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value
        certificate = self_signed(self.key(), str(name), days)
        atomic_write(self.certificate_path, pem(certificate))
        return Authority(self.folder, certificate, self.passphrase)

    def sign_server(
        self, public: PublicKey, names: Sequence[str], addresses: Sequence[str], days: float
    ) -> x509.Certificate:
        """The coordinator's certificate over ``public``; see :meth:`issue_server`."""
        now = datetime.now(UTC)
        last = self.certificate.not_valid_after_utc
        if last <= now:
            raise CredentialError(
                f"the CA expired on {last:%Y-%m-%d}", "Renew it first: `fed-diffmic provision renew ca CA_FOLDER`."
            )
        hosts = list(dict.fromkeys([*(_dns_name(name) for name in names), *_LOOPBACK_NAMES]))
        numbers = list(dict.fromkeys([_address(text) for text in [*addresses, *_LOOPBACK_ADDRESSES]]))
        alternatives = [*(x509.DNSName(name) for name in hosts), *(x509.IPAddress(number) for number in numbers)]
        usage = _usage(digital_signature=True)
        builder = (
            _builder(hosts[0], public, now, min(now + _days(days), last))
            .issuer_name(self.certificate.subject)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        )
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(_ec(self.certificate.public_key()))
        return builder.add_extension(issuer, critical=False).sign(self.key(), hashes.SHA256())


def make_authority(
    folder: str | os.PathLike[str],
    name: str = "fed_diffmic consortium",
    days: float = CA_DAYS,
    passphrase: Path | None = None,
) -> Authority:
    """Make a CA in ``folder`` (0700): ``ca.crt`` and ``ca.key`` (0600), never over others.

    Args:
        folder: new, or without these two files.
        name: of the consortium, as it stands in the certificate.
        days: how long it is valid.
        passphrase: file of what locks ``ca.key``; none: it lies open.

    Raises:
        CredentialError: one of the files is there already, or the passphrase cannot be used.
    """
    folder = private_folder(folder)
    phrase = None if passphrase is None else read_passphrase(passphrase, new=True)
    key = ec.generate_private_key(ec.SECP384R1())
    certificate = self_signed(key, name, days)
    place_new({folder / CA_KEY: (pem_key(key, phrase), 0o600), folder / CA_CERTIFICATE: (pem(certificate), 0o644)})
    return Authority(folder, certificate, passphrase)


def self_signed(key: ec.EllipticCurvePrivateKey, name: str, days: float) -> x509.Certificate:
    """A CA's certificate over its own key."""
    if not 1 <= len(name) <= 64 or not name.isprintable():
        raise CredentialError(f"a CA cannot be called {name!r}", "Use one line of 1 to 64 characters.")
    now = datetime.now(UTC)
    return (
        _builder(name, key.public_key(), now, now + _days(days))
        .issuer_name(_name(name))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .sign(key, hashes.SHA256())
    )


def _builder(name: str, public: PublicKey, now: datetime, last: datetime) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(_name(name))
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BEFORE)
        .not_valid_after(last)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:64])])


def _usage(**allowed: bool) -> x509.KeyUsage:
    every = [
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    ]
    return x509.KeyUsage(**{name: allowed.get(name, False) for name in every})


def _days(days: float) -> timedelta:
    if not 0 < days <= 36500:
        raise CredentialError(f"a certificate cannot be valid for {days:g} days", "Use more than 0, at most 36500.")
    return timedelta(days=days)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _dns_name(text: str) -> str:
    """A host name in the form of a certificate (lower case, IDNA), or in words why not."""
    if _is_address(text.strip("[]")):
        raise CredentialError(f"{text!r} is an address, not a name", "Give addresses by `--address`.")
    try:
        name = text.rstrip(".").encode("idna").decode().lower()
    except UnicodeError:
        name = ""
    labels = name.split(".")
    if not name or len(name) > 253 or any(not _is_label(label) for label in labels):
        raise CredentialError(
            f"{text!r} is not the name of a host",
            "Give the bare name, such as fl.example.org: no https://, no port, no *.",
        )
    return name


def _is_label(label: str) -> bool:
    return 1 <= len(label) <= 63 and label.replace("-", "").isalnum() and label.isascii() and label.strip("-") == label


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    try:
        number = ipaddress.ip_address(text.strip("[]"))
    except ValueError as error:
        raise CredentialError(f"{text!r} is not an IP address", "Give names by `--name`.") from error
    if number.is_unspecified:
        raise CredentialError(
            f"{text!r} is what a listener binds, not an address that a site can reach",
            "Give the address that sites use.",
        )
    return number


def _ec(key: object) -> PublicKey:
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise CredentialError("the CA's key is not EC", "Use an authority that `fed-diffmic provision ca` made.")
    return key
