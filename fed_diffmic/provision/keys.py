"""Keys of sites and of the coordinator's signature: EC P-384 in OpenSSH's form, which is what Flower reads.

A private key is made where it is used and never travels. Flower's SuperNode takes NIST EC keys in
OpenSSH's private form only; anything else ends there with "Unable to parse the private key file", so every
other kind is named here, with what to do.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fed_diffmic.errors import CredentialError
from fed_diffmic.files import private_folder, write_all_new
from fed_diffmic.provision.credentials import OPENSSH, PUBLIC, WrongPassphraseError, read_credential, unlocked

PrivateKey = ec.EllipticCurvePrivateKey
PublicKey = ec.EllipticCurvePublicKey
_CURVES = {"secp256r1": "P-256", "secp384r1": "P-384"}
_GROUPS, _GROUP_DIGITS = 6, 5
_KDF_ROUNDS = 32
"""Of bcrypt, twice what ssh-keygen took long: about 0.3 s, and a key is read a few times in a process."""

_SEND = "Send the file that ends in `.pub`, as `fed-diffmic provision site-key` wrote it: one line."
_NAME = (
    "Name the file of the public key: it ends in `.pub`, and its one line begins with `ecdsa-sha2-nistp`. If this is "
    "the file that was sent to you, ask for that one."
)
_MAKE = "Make one at the site with `fed-diffmic provision site-key FILE`."


def make_site_key(path: str | os.PathLike[str], passphrase: bytes | None = None) -> str:
    """Make a private key (0600, never over another file) and ``<path>.pub`` beside it.

    Args:
        path: file of the private key; its folder is made (0700) if it is missing.
        passphrase: that locks it; none: it lies open to whoever may read the file.

    Returns:
        The public key: one line of OpenSSH text, which is what travels to the coordinator.

    Raises:
        CredentialError: one of the two files is there already.
        MachineError: the folder cannot be written, or others may write to it.
    """
    path = Path(path)
    private_folder(path.parent)
    text, files = new_key_files(path, passphrase)
    place_new(files)
    return text


def new_key_files(path: Path, passphrase: bytes | None = None) -> tuple[str, dict[Path, tuple[bytes, int]]]:
    """A new key: its public text, and the two files that hold it (contents and mode)."""
    key = ec.generate_private_key(ec.SECP384R1())
    text = public_text(key.public_key())
    public_path = path.with_name(path.name + ".pub")
    return text, {path: (private_bytes(key, passphrase), 0o600), public_path: (text.encode() + b"\n", 0o644)}


def place_new(files: Mapping[Path, tuple[bytes, int]]) -> None:
    """Write new files, all or none, never over others; in words where one is there.

    Raises:
        CredentialError: one of them is there already.
        MachineError: no space, no permission.
    """
    try:
        write_all_new(files)
    except FileExistsError as error:
        raise CredentialError(
            f"{error.filename} is there already, and nothing is overwritten",
            "Use what is there, or choose another name. How keys and certificates are replaced: "
            "`fed-diffmic provision renew --help`.",
        ) from error


def private_bytes(key: PrivateKey, passphrase: bytes | None = None) -> bytes:
    """``key`` in OpenSSH's private form; locked (bcrypt, AES-256-CTR) where there is a passphrase."""
    form = serialization.PrivateFormat.OpenSSH
    lock: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if passphrase is not None:
        lock = form.encryption_builder().kdf_rounds(_KDF_ROUNDS).build(passphrase)
    return key.private_bytes(serialization.Encoding.PEM, form, lock)


def public_text(key: PublicKey) -> str:
    """``key`` as one line of OpenSSH text without a comment: the form in which keys are compared and kept."""
    return key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()


def public_pem(key: PublicKey) -> bytes:
    """``key`` as PEM (SubjectPublicKeyInfo): the form in which a SuperNode presents it to the SuperLink."""
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def load_private(path: str | os.PathLike[str], passphrase: str | os.PathLike[str] | None = None) -> PrivateKey:
    """Read a private key that Flower accepts.

    Args:
        path: the key.
        passphrase: file of its passphrase, if it is locked; none: the credential of the service
            (:func:`fed_diffmic.provision.credentials.passphrase_of`).

    Raises:
        CredentialError: missing, readable by others, locked and no passphrase opens it, of another kind or form.
    """
    path = Path(path)
    data = read_credential(path, "private key", private=True)
    what = f"the private key {path}"
    if data.startswith(PUBLIC):
        raise CredentialError(f"{what} is a public key", f"Name the file without `.pub`. {_MAKE}")
    if OPENSSH not in data:
        raise CredentialError(f"{what} {_other_form(data)}", f"Flower takes EC keys in OpenSSH's form only. {_MAKE}")
    try:
        key = unlocked(serialization.load_ssh_private_key, data, path, passphrase)
    except (TypeError, UnsupportedAlgorithm) as error:
        raise CredentialError(f"{what} is of a kind that is not known here", _MAKE) from error
    except WrongPassphraseError as error:
        raise error.said from error
    except (ValueError, NotImplementedError) as error:
        raise CredentialError(f"{what} is damaged", f"Restore it from the backup, or start afresh. {_MAKE}") from error
    if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name in _CURVES:
        return key
    raise CredentialError(f"{what} is {_kind(key)}", f"Flower takes EC P-256 or P-384 only. {_MAKE}")


def load_public(path: str | os.PathLike[str]) -> PublicKey:
    """Read a public key from a file of OpenSSH text.

    Raises:
        CredentialError: missing, of another kind, or a private key.
    """
    path = Path(path)
    text = read_credential(path, "public key").decode("utf-8", "replace")
    return parse_public(text, f"the public key {path}", _NAME)


def parse_public(text: str, what: str = "the public key", other: str = _SEND) -> PublicKey:
    """A public key from one line of OpenSSH text; a comment behind it is ignored.

    Args:
        text: for example ``ecdsa-sha2-nistp384 AAAA... name``.
        what: how messages call it.
        other: what to do where it is none: where it came from a site, have another sent; where a file was named, name
            another.

    Raises:
        CredentialError: not one line of that form, another kind of key, or a private key.
    """
    text = text.strip()
    if "PRIVATE KEY" in text:
        raise CredentialError(
            f"{what} is a PRIVATE key",
            "A private key never leaves its site. If this one did (by mail, by a shared folder), it is burnt: make a "
            f"new one at the site, and revoke the old one if it was enrolled. {other}",
        )
    if len(text.splitlines()) != 1:
        raise CredentialError(f"{what} {_other_form(text.encode())}", other)
    try:
        key = serialization.load_ssh_public_key(text.encode())
    except (ValueError, NotImplementedError, UnsupportedAlgorithm) as error:  # a compressed point is not implemented
        raise CredentialError(f"{what} is not a whole line of OpenSSH text", other) from error
    if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in _CURVES:
        return key
    raise CredentialError(f"{what} is {_kind(key)}", f"Flower takes EC P-256 or P-384 only. {_MAKE}")


def digits(domain: str, data: bytes) -> str:
    """Thirty digits in six groups that name ``data``: what two people read to each other by phone.

    Thirty digits are 99 bits of SHA-256. Who would exchange a kit or a key has to find *another* one with the same
    digits (a second preimage), about 2^99 trials; no single group is enough.
    """
    digest = hashlib.sha256(f"fed_diffmic {domain}\0".encode() + data).digest()
    number = int.from_bytes(digest, "big") % 10 ** (_GROUPS * _GROUP_DIGITS)
    text = f"{number:0{_GROUPS * _GROUP_DIGITS}d}"
    return "-".join(text[i : i + _GROUP_DIGITS] for i in range(0, len(text), _GROUP_DIGITS))


def same_digits(given: str, right: str) -> bool:
    """Whether someone typed the digits of ``right``, however they separated them."""
    return [c for c in given if c.isdigit()] == [c for c in right if c.isdigit()] and not set(given) - set(
        "0123456789 -.\t\n"
    )


def fingerprint(key: PublicKey) -> str:
    """The digits that name a public key, for example ``12345-67890-...`` (six groups)."""
    return digits("public key", public_pem(key))


def sign(key: PrivateKey, data: bytes) -> bytes:
    """ECDSA signature over ``data`` (SHA-384, DER)."""
    return key.sign(data, ec.ECDSA(hashes.SHA384()))


def verifies(key: PublicKey, signature: bytes, data: bytes) -> bool:
    """Whether ``signature`` is ``key``'s over ``data``."""
    try:
        key.verify(signature, data, ec.ECDSA(hashes.SHA384()))
    except InvalidSignature:
        return False
    return True


def decode_signature(text: str) -> bytes:
    """A signature from base64, in the one way to write it: unused bits of the last letter must be zero.

    Raises:
        ValueError: not base64, or another spelling of the same bytes (a changed file must not pass for the signed one).
    """
    signature = base64.b64decode(text, validate=True)
    if base64.b64encode(signature).decode() != text:
        raise ValueError("a signature is written in another way than it was made")
    return signature


def _other_form(data: bytes) -> str:
    forms = (
        (b"-----BEGIN CERTIFICATE-----", "is a certificate"),
        (b"-----BEGIN ENCRYPTED PRIVATE KEY-----", "is in the form PKCS8, locked by a passphrase"),
        (b"-----BEGIN PRIVATE KEY-----", "is in the form PKCS8 (PEM)"),
        (b"-----BEGIN EC PRIVATE KEY-----", "is in the form SEC1 (PEM)"),
        (b"-----BEGIN RSA PRIVATE KEY-----", "is RSA (PEM)"),
        (b"-----BEGIN PUBLIC KEY-----", "is a public key in the form PEM"),
        (b"---- BEGIN SSH2 PUBLIC KEY ----", "is a public key in the form of RFC 4716"),
        (b"PuTTY-User-Key-File", "is in PuTTY's form"),
    )
    return next((words for mark, words in forms if mark in data), "is not an OpenSSH key")


def _kind(key: object) -> str:
    if isinstance(key, (ec.EllipticCurvePrivateKey, ec.EllipticCurvePublicKey)):
        return f"EC on the curve {key.curve.name}"
    return type(key).__name__.strip("_").replace("PrivateKey", "").replace("PublicKey", "")
