"""Reading X.509 certificates and PEM keys, in words where that fails."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fed_diffmic.errors import CredentialError
from fed_diffmic.provision.credentials import WrongPassphraseError, read_credential, unlocked


def load_certificate(path: str | os.PathLike[str]) -> x509.Certificate:
    """The first certificate of a PEM file.

    Raises:
        CredentialError: missing or not a certificate.
    """
    return load_certificates(read_credential(Path(path), "certificate"), str(path))[0]


def load_certificates(data: bytes, what: str) -> list[x509.Certificate]:
    """Every certificate of a PEM text, at least one.

    Raises:
        CredentialError: not certificates, or a private key among them.
    """
    if b"PRIVATE KEY" in data:
        raise CredentialError(f"{what} holds a PRIVATE key", "Use the file of the certificate: it ends in `.crt`.")
    try:
        return x509.load_pem_x509_certificates(data)
    except ValueError as error:
        raise CredentialError(
            f"{what} is not a certificate in PEM form", "It begins with `-----BEGIN CERTIFICATE-----`."
        ) from error


def load_pem_key(
    path: str | os.PathLike[str], passphrase: str | os.PathLike[str] | None = None
) -> ec.EllipticCurvePrivateKey:
    """A private EC key from a PEM file that only its owner may read.

    Args:
        path: the key.
        passphrase: file of its passphrase, if it is locked; none: as :func:`fed_diffmic.provision.keys.load_private`.

    Raises:
        CredentialError: missing, readable by others, no such key, or locked and no passphrase opens it.
    """
    path = Path(path)
    data = read_credential(path, "private key", private=True)
    try:
        key = unlocked(serialization.load_pem_private_key, data, path, passphrase)
    except WrongPassphraseError as error:
        raise error.said from error
    except (TypeError, ValueError) as error:
        raise CredentialError(f"{path} is not a private key in PEM form", "Check that it is the right file.") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise CredentialError(f"{path} is not an EC key", "Use the files that `fed-diffmic provision` made.")
    return key


def server_names(certificate: x509.Certificate) -> tuple[list[str], list[str]]:
    """The DNS names and the IP addresses (as text) for which a certificate stands."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return [], []
    return names.get_values_for_type(x509.DNSName), [str(a) for a in names.get_values_for_type(x509.IPAddress)]


def issued_by(certificate: x509.Certificate, ca: x509.Certificate) -> bool:
    """Whether ``ca`` signed ``certificate`` (validity in time is not looked at)."""
    try:
        certificate.verify_directly_issued_by(ca)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def leads_to(chain: list[x509.Certificate], authorities: list[x509.Certificate]) -> bool:
    """Whether the first certificate of a chain is signed by an authority, or by one of the chain that is.

    Args:
        chain: the certificate, and those that come with it, in any order.
        authorities: those that are trusted.
    """
    present, rest = chain[0], chain[1:]
    while True:
        if any(issued_by(present, ca) for ca in authorities):
            return True
        above = next((other for other in rest if issued_by(present, other)), None)
        if above is None:
            return False
        rest = [other for other in rest if other is not above]
        present = above


def days_left(certificate: x509.Certificate) -> float:
    """Days until a certificate expires; negative if it has."""
    return (certificate.not_valid_after_utc - datetime.now(UTC)) / timedelta(days=1)


def pem_key(key: ec.EllipticCurvePrivateKey, passphrase: bytes | None = None) -> bytes:
    """A private key as PEM (PKCS8), which TLS servers read; locked (AES-256-CBC) where there is a passphrase."""
    lock: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if passphrase is not None:
        lock = serialization.BestAvailableEncryption(passphrase)
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, lock)


def pem(certificate: x509.Certificate) -> bytes:
    """A certificate as PEM."""
    return certificate.public_bytes(serialization.Encoding.PEM)
