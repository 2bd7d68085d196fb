"""Timestamps of an audit log's head by an authority (RFC 3161): that a log was as it is no later than then.

The request holds a digest of the head and nothing else: no name, no fact. It is sent by whoever has a way to an
authority (``curl -H 'Content-Type: application/timestamp-query' --data-binary @FILE URL``); this program contacts
nobody. The library is the extra ``timestamp`` (``rfc3161-client``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography import x509

from fed_diffmic.errors import CredentialError, ModelFileError, UsageError
from fed_diffmic.exchange.audit_lines import Head, Line
from fed_diffmic.files import atomic_write

_DOMAIN = b"fed_diffmic audit head\0"


@dataclass(frozen=True)
class Stamped:
    """What an authority says.

    Attributes:
        head: of the chain.
        time: no later than which the chain stood there.
    """

    head: Head
    time: datetime


def head_text(head: Head) -> bytes:
    """What is stamped for a head."""
    return _DOMAIN + f"{head.length} {head.digest}".encode()


def write_request(path: Path, head: Head) -> None:
    """Write a request for a timestamp of a head.

    Raises:
        UsageError: the extra is not installed.
        MachineError: it cannot be written.
    """
    library = _library()
    builder = library.TimestampRequestBuilder().data(head_text(head)).hash_algorithm(library.HashAlgorithm.SHA256)
    atomic_write(path, builder.build().as_bytes())


def verify_token(path: Path, authority: Path, lines: Sequence[Line]) -> Stamped:
    """The head of a log that a timestamp is of, the timestamp verified.

    Args:
        path: the authority's response.
        authority: certificate of its root (PEM).
        lines: of the log.

    Raises:
        UsageError: the extra is not installed.
        CredentialError: the certificate cannot be read.
        ModelFileError: it is no response, does not hold, or is of no line of this log.
    """
    library = _library()
    try:
        root = x509.load_pem_x509_certificate(authority.read_bytes())
    except (OSError, ValueError) as error:
        raise CredentialError(f"{authority} is not a certificate (PEM)", "Give the authority's root.") from error
    try:
        response = library.decode_timestamp_response(path.read_bytes())
        imprint, when = response.tst_info.message_imprint.message, response.tst_info.gen_time
    except (OSError, ValueError, AttributeError) as error:
        raise ModelFileError(
            f"{path} is not a response of a timestamp authority", "Give its file as it came."
        ) from error
    heads = (Head(line.n, line.digest) for line in lines)
    head = next((h for h in heads if hashlib.sha256(head_text(h)).digest() == imprint), None)
    if head is None:
        raise ModelFileError(
            f"{path} is a timestamp of no line of this log",
            "Give the log that it was made of; if this is it, lines were cut.",
        )
    try:
        library.VerifierBuilder(roots=[root]).build().verify_message(response, head_text(head))
    except (library.VerificationError, ValueError) as error:
        raise ModelFileError(f"the timestamp {path} does not hold: {error}", "Check --token-ca.") from error
    return Stamped(head, when.astimezone(UTC))


def _library() -> Any:
    try:
        import rfc3161_client
    except ImportError as error:
        raise UsageError(
            "timestamps need the package rfc3161-client", "Install it: `pip install 'fed-diffmic[timestamp]'`."
        ) from error
    return rfc3161_client
