"""The form of an audit log's lines, and reading them; whether they can be trusted is another question.

A line holds ``n`` (from 1), ``time`` (UTC), ``kind``, ``facts``, ``previous`` (digest of the line before), ``digest``
(SHA-256 over those five) and ``signature`` (ECDSA over the digest, by the key of whoever keeps the log). Writing is in
:mod:`fed_diffmic.exchange.audit`, judging in :mod:`fed_diffmic.exchange.audit_verify`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fed_diffmic.errors import FedDiffmicError, ModelFileError
from fed_diffmic.provision.keys import PublicKey, decode_signature, verifies

GENESIS = "0" * 64
DOMAIN = b"fed_diffmic audit line\0"
REKEYED = "rekeyed"
_SIGNED = ("n", "time", "kind", "facts", "previous")
_FIELDS = {*_SIGNED, "digest", "signature"}
_TYPES = {"n": int, "time": str, "kind": str, "facts": dict, "previous": str, "digest": str, "signature": str}
_BLOCK = 1 << 16


@dataclass(frozen=True)
class Head:
    """Where a chain stands.

    Attributes:
        length: number of lines.
        digest: of the last; :data:`GENESIS` before the first.
    """

    length: int = 0
    digest: str = GENESIS


@dataclass(frozen=True)
class Line:
    """One line that could be read."""

    n: int
    time: str
    kind: str
    facts: Mapping[str, Any]
    previous: str
    digest: str
    signature: str

    @property
    def complete(self) -> bool:
        """Whether the digest is that of the line."""
        return line_digest(vars(self)) == self.digest

    def signed_by(self, key: PublicKey) -> bool:
        """Whether the signature is that key's; it covers the line where :attr:`whole`."""
        try:
            signature = decode_signature(self.signature)
        except ValueError:
            return False
        return verifies(key, signature, DOMAIN + self.digest.encode())


def read_lines(path: str | os.PathLike[str]) -> list[Line]:
    """The lines that can be read.

    Raises:
        ModelFileError: the file cannot be read.
    """
    return [line for _, raw, _ in raw_lines(path) if (line := parse_line(raw)) is not None]


def parse_line(raw: bytes) -> Line | None:
    """The line that these bytes are, or none."""
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or set(value) != _FIELDS:
        return None
    if any(type(value[name]) is not kind for name, kind in _TYPES.items()):
        return None
    return Line(**value)


def line_digest(line: Mapping[str, Any]) -> str:
    """SHA-256 over what the signature covers."""
    return hashlib.sha256(canonical({name: line[name] for name in _SIGNED}).encode()).hexdigest()


def canonical(value: Mapping[str, Any]) -> str:
    """The one way to write it.

    Raises:
        FedDiffmicError: it holds what JSON cannot.
    """
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise FedDiffmicError("a fact of an audit line is not JSON") from error


def tail(path: Path) -> tuple[bytes, bytes]:
    """The last whole line without its end, and what stands torn behind it."""
    with path.open("rb") as stream:
        position, data = stream.seek(0, os.SEEK_END), b""
        while position and data.count(b"\n") < 2:
            step = min(position, max(_BLOCK, len(data)))
            position -= step
            stream.seek(position)
            data = stream.read(step) + data
    whole, end, torn = data.rpartition(b"\n")
    return (whole.rpartition(b"\n")[2], torn) if end else (b"", data)


def raw_lines(path: str | os.PathLike[str]) -> Iterator[tuple[int, bytes, bool]]:
    """Place, bytes and whether its end is there, of each line that is not empty."""
    try:
        with Path(path).open("rb") as stream:
            for place, raw in enumerate(stream, start=1):
                if raw.strip():
                    yield place, raw.rstrip(b"\n"), raw.endswith(b"\n")
    except OSError as error:
        raise ModelFileError(f"the audit log {path} cannot be read: {error.strerror}", "Check the path.") from error
