"""Files of keys and of their passphrases: who may read them, and what opens a locked one.

A key that is locked is useless without its passphrase: on a stolen disk, in a backup, in a folder that was copied. So
the passphrase belongs elsewhere than the key: in a file on another volume, which the configuration names, or in a
credential that systemd hands to the service alone (``LoadCredentialEncrypted=``). It is read where the key is used
and stays in that process; an open copy of the key is never written.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

from fed_diffmic.errors import CredentialError

OPENSSH = b"-----BEGIN OPENSSH PRIVATE KEY-----"
PUBLIC = (b"ecdsa-sha2-", b"ssh-")
CREDENTIALS = "CREDENTIALS_DIRECTORY"
SUFFIX = ".passphrase"
SHORTEST, LONGEST = 16, 1023
HOW_TO_MAKE = "Make one: `(umask 077; openssl rand -base64 32 > {path})`"
_LARGEST = 64 * 1024
T = TypeVar("T")


class WrongPassphraseError(ValueError):
    """A passphrase does not open its key.

    Attributes:
        said: what the user is told.
    """

    def __init__(self, said: CredentialError) -> None:
        super().__init__(said.cause)
        self.said = said


def read_credential(path: Path, kind: str, *, private: bool = False) -> bytes:
    """Read a small file of keys or certificates, in words where that fails.

    Args:
        path: the file.
        kind: how messages call it, for example ``private key``.
        private: it must be readable by its owner only.

    Raises:
        CredentialError: missing, a folder, empty, far too large, not readable, readable by others.
    """
    try:
        with path.open("rb") as stream:
            mode = os.fstat(stream.fileno()).st_mode
            data = stream.read(_LARGEST + 1)
    except FileNotFoundError as error:
        raise CredentialError(f"there is no {kind} {path}", "Check the path.") from error
    except OSError as error:
        raise CredentialError(
            f"the {kind} {path} cannot be read: {error.strerror}",
            "It must be a file that the account which runs this may read.",
        ) from error
    if private and mode & 0o077 and not data.startswith(PUBLIC):
        raise CredentialError(
            f"the {kind} {path} may be read by others (mode {mode & 0o777:03o})",
            f"Run `chmod 600 {path}`. If others used this machine meanwhile, make a new one.",
        )
    if not data.strip() or len(data) > _LARGEST:
        raise CredentialError(f"the {kind} {path} is {'empty' if not data.strip() else 'too large to be one'}",
                              "Check that it is the right file.")  # fmt: skip
    return data


def is_locked(path: Path) -> bool:
    """Whether a private key's file is of no use without a passphrase.

    Raises:
        CredentialError: it cannot be read, or others may read it.
    """
    data = read_credential(path, "private key", private=True)
    load = serialization.load_ssh_private_key if OPENSSH in data else serialization.load_pem_private_key
    try:
        load(data, None)
    except TypeError as error:
        return "password" in str(error).lower()
    except (ValueError, NotImplementedError, UnsupportedAlgorithm):
        return False  # not a key: who loads it says so
    return False


def passphrase_of(key: Path, named: str | os.PathLike[str] | None) -> bytes:
    """The passphrase of a locked key.

    Args:
        key: its file.
        named: file of the passphrase; none: ``<name of the key's file>.passphrase`` among the credentials that
            systemd gave this service.

    Raises:
        CredentialError: there is none, others may read it, or it is not one line.
    """
    if named is not None:
        return read_passphrase(Path(named))
    folder = os.environ.get(CREDENTIALS)
    name = key.name + SUFFIX
    if folder and (Path(folder) / name).exists():
        return read_passphrase(Path(folder) / name)
    raise CredentialError(
        f"the private key {key} is locked by a passphrase, and none was given",
        "Name the file that holds it: `coordinator.key_passphrase` in site.yaml, `security.key_passphrase` in "
        f"server.yaml, `--passphrase-file` of a command; or hand it to the service: `LoadCredential={name}:FILE`.",
    )


def read_passphrase(path: Path, *, new: bool = False, kind: str = "passphrase") -> bytes:
    """A passphrase from a file of one line, without the end of the line.

    Args:
        path: only its owner may read it. What systemd handed over is guarded by its folder: the group's bits of its
            mode are the mask of an access list, and only a file that everybody may read is refused there.
        new: a key is about to be locked with it, so it must be long enough not to be guessed.
        kind: what it is, for messages.

    Raises:
        CredentialError: missing, readable by others, not one line, or too short for a new one.
    """
    folder = os.environ.get(CREDENTIALS)
    handed = bool(folder) and path.parent == Path(str(folder))
    data = read_credential(path, f"{kind} file", private=not handed)
    if handed and path.stat().st_mode & stat.S_IROTH:
        raise CredentialError(
            f"the {kind} file {path} may be read by everybody",
            f"Run `chmod 600` on what LoadCredential= names, and see that {CREDENTIALS} was set by systemd.",
        )
    text = data.removesuffix(b"\n").removesuffix(b"\r")
    if b"\n" in text or not _is_text(text) or len(text) > LONGEST:
        raise CredentialError(
            f"the {kind} file {path} does not hold one line of text of at most {LONGEST} characters",
            HOW_TO_MAKE.format(path="FILE") + ".",
        )
    if new and len(text) < SHORTEST:
        raise CredentialError(
            f"the passphrase in {path} has {len(text)} characters; {SHORTEST} are the least",
            "Nobody types it, so it may be long. " + HOW_TO_MAKE.format(path="FILE") + ".",
        )
    return text


def _is_text(data: bytes) -> bool:
    try:
        return data.decode().isprintable()
    except UnicodeDecodeError:
        return False


def unlocked(
    load: Callable[[bytes, bytes | None], T], data: bytes, path: Path, passphrase: str | os.PathLike[str] | None
) -> T:
    """A private key, opened by its passphrase where it is locked.

    Args:
        load: reads ``data`` with a passphrase or none, and raises ``TypeError`` where one is needed.
        data: the file's contents.
        path: of the key, for messages and for the name of its credential.
        passphrase: file of the passphrase, or none.

    Raises:
        CredentialError: it is locked, and there is no passphrase that can be read.
        WrongPassphraseError: it does not open the key.
        ValueError, TypeError: as ``load``.
    """
    try:
        return load(data, None)
    except TypeError as error:
        if "password" not in str(error).lower():
            raise
    phrase = passphrase_of(path, passphrase)
    try:
        return load(data, phrase)
    except ValueError as error:
        where = passphrase or f"${CREDENTIALS}/{path.name}{SUFFIX}"
        raise WrongPassphraseError(
            CredentialError(
                f"the passphrase in {where} does not open the private key {path}",
                "Use the one that it was locked with, or restore both from one backup. Where it is lost the key is "
                "lost: docs/provisioning.md says how each key is replaced.",
            )
        ) from error
