"""A key's passphrase is set, changed or taken away, in place: the key itself, and what knows it, stay as they are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from fed_diffmic.errors import CredentialError
from fed_diffmic.files import atomic_write, hold
from fed_diffmic.provision.certificates import load_pem_key, pem_key
from fed_diffmic.provision.credentials import OPENSSH, is_locked, read_credential, read_passphrase
from fed_diffmic.provision.keys import load_private, private_bytes


def load_either(path: Path, passphrase: Path | None = None) -> ec.EllipticCurvePrivateKey:
    """A private key of either form: OpenSSH's (a site's, the coordinator's signing key) or PEM (TLS, CA).

    Raises:
        CredentialError: it cannot be used.
    """
    openssh = OPENSSH in read_credential(path, "private key", private=True)
    return load_private(path, passphrase) if openssh else load_pem_key(path, passphrase)


def change_passphrase(path: Path, *, old: Path | None, new: Path | None) -> bool:
    """Write a private key again in its form, locked by another passphrase or by none.

    The file is replaced in one step, so that a crash leaves the one or the other; it stays 0600.

    Args:
        path: the key.
        old: file of the passphrase that opens it now; none: it lies open.
        new: file of the passphrase that shall open it; none: it shall lie open.

    Returns:
        Whether it was locked before.

    Raises:
        CredentialError: the key or a passphrase cannot be used, or a client is running with the key.
        MachineError: it cannot be written; the old file stays.
    """
    openssh = OPENSSH in read_credential(path, "private key", private=True)
    before = is_locked(path)
    key = load_either(path, old)
    phrase = None if new is None else read_passphrase(new, new=True)
    with _unused(path):
        atomic_write(path, private_bytes(key, phrase) if openssh else pem_key(key, phrase), 0o600)
    return before


@contextmanager
def _unused(path: Path) -> Iterator[None]:
    """A running client holds its key's file; another file in its place would let a second client start."""
    with path.open("rb") as stream:
        hold(
            stream.fileno(),
            CredentialError(
                f"the private key {path} is in use by a client on this machine", "Stop the client, then try again."
            ),
        )
        yield
