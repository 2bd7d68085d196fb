"""Who is talked to, and who asks: address, TLS and token of a DICOMweb archive.

TLS is checked against the CA that is named, a token is read from a file that nobody else may read, and an address
without encryption has to be asked for.
"""

from __future__ import annotations

import re
import ssl
import stat
from pathlib import Path
from urllib.parse import urlsplit

from fed_diffmic.config.dicom import DicomWebConfig
from fed_diffmic.errors import ConfigError, CredentialError, UsageError

_QUERY = re.compile(r"[A-Za-z0-9.]{1,64}=[^&#?\x00-\x1f]{1,128}")
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


def checked_url(url: str, config: DicomWebConfig) -> str:
    """The address of a service, without its last slash.

    Raises:
        UsageError: it is none, or holds a password.
        ConfigError: it is not encrypted, or the query cannot be used.
    """
    parts = urlsplit(url)
    plain = parts.scheme in ("http", "https") and "@" not in parts.netloc
    if not plain or not parts.hostname or parts.query or parts.fragment:
        raise UsageError(
            f"{url.split('@')[-1]} is not the address of a DICOMweb service",
            "Write https://host/path, without name, password or query; a token goes into dicom.web.token_file.",
        )
    if parts.scheme == "http" and parts.hostname not in _LOOPBACK and not config.insecure:
        raise ConfigError(
            "dicom.web.insecure",
            "false",
            "true for an address with http://",
            "Use https://: with http:// patients' images and the token cross the network in the clear.",
        )
    for part in config.query:
        if not _QUERY.fullmatch(part):
            raise ConfigError("dicom.web.query", part, "Attribute=value, for example Modality=CR")
    return url.rstrip("/")


def token_of(path: Path) -> str:
    """The bearer token of a file that nobody else may read.

    Raises:
        CredentialError: others may, or it holds none.
    """
    try:
        if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise CredentialError(f"others may read the token in {path}", f"Run `chmod 600 {path}`.")
        token = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise CredentialError(f"no token can be read from {path}", "Name its file in dicom.web.token_file.") from error
    if not token or any(character.isspace() for character in token):
        raise CredentialError(f"{path} holds no token", "Write the token alone into it, on one line.")
    return token


def tls_context(ca: str | None) -> ssl.SSLContext:
    """TLS that is checked against a CA (PEM); none: those of this machine.

    Raises:
        CredentialError: the certificate cannot be read.
    """
    try:
        return ssl.create_default_context(cafile=ca)
    except (OSError, ValueError) as error:
        raise CredentialError(
            f"the certificate {ca} cannot be read", "Name the CA's certificate (PEM) in dicom.web.ca."
        ) from error
