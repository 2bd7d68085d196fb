"""Remember content digests of files, so that a second run need not read and hash them again."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from fed_diffmic.data.decode import BadImageError, read_content
from fed_diffmic.files import atomic_write

_SALT, _NAME, _DIGEST, _SEAL = 16, 16, 32, 32
_SETTLED_S = 2.0


class DigestMemo:
    """(path, size, modification and change time) -> SHA-256 of the content, kept in one binary file.

    The file holds no path: names are digests under a salt of this memo, ``salt | (name, digest)* | seal``.
    A torn or missing file is an empty memo. Two processes may write it; the last one's entries win.
    Files changed within the last two seconds are not remembered: a further change might not move
    their time stamps.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._salt, self._known = _read(path)
        self._new: dict[bytes, bytes] = {}

    def digest_of(self, path: str) -> tuple[str, str]:
        """Content digest (hex) and "", or "" and a reason code of ``decode.REASONS``; never raises for bad files."""
        try:
            stat = os.stat(path)
        except (OSError, ValueError):
            stat = None
        name = self._name(path, stat) if stat is not None else b""
        known = self._known.get(name)
        if known is not None and os.access(path, os.R_OK):
            return known.hex(), ""
        try:
            digest = read_content(path).digest
        except BadImageError as error:
            return "", error.reason
        if stat is not None and time.time() - max(stat.st_mtime, stat.st_ctime) > _SETTLED_S:
            self._new[name] = bytes.fromhex(digest)
        return digest, ""

    def save(self) -> None:
        """Write new entries, if any (atomic, 0600).

        Raises:
            MachineError: no space or no permission.
        """
        if not self._new:
            return
        self._known |= self._new
        self._new = {}
        body = self._salt + b"".join(name + digest for name, digest in self._known.items())
        atomic_write(self._path, body + hashlib.sha256(body).digest(), mode=0o600)

    def _name(self, path: str, stat: os.stat_result) -> bytes:
        text = f"{os.path.abspath(path)}\0{stat.st_size}\0{stat.st_mtime_ns}\0{stat.st_ctime_ns}"
        return hashlib.blake2b(os.fsencode(text), digest_size=_NAME, key=self._salt).digest()


def _read(path: Path) -> tuple[bytes, dict[bytes, bytes]]:
    try:
        data = path.read_bytes()
    except OSError:
        data = b""
    body, seal = data[:-_SEAL], data[-_SEAL:]
    if len(body) < _SALT or (len(body) - _SALT) % (_NAME + _DIGEST) or hashlib.sha256(body).digest() != seal:
        return os.urandom(_SALT), {}
    return body[:_SALT], dict(_entries(body))


def _entries(body: bytes) -> Iterator[tuple[bytes, bytes]]:
    for start in range(_SALT, len(body), _NAME + _DIGEST):
        yield body[start : start + _NAME], body[start + _NAME : start + _NAME + _DIGEST]
